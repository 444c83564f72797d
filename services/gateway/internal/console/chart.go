package console

import (
	"bytes"
	"fmt"
	"image/color"
	"math"
	"net/http"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"

	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
)

// mostPoints is how many points of a metric are fetched for a chart: the last ones of a longer history are left out, and it says so.
const mostPoints = 50_000

// drawnPoints is how many are drawn; a longer history is thinned, and keeps the least and the greatest value of each stretch.
const drawnPoints = 1000

// chart draws the history of one metric. It is an image: no script runs in it, whatever the metric is called.
func (c *Console) chart(w http.ResponseWriter, v *visit) {
	key := v.r.URL.Query().Get("key")
	history, err := c.metrics.ListMetricHistory(v.ctx, &telemetryv1.ListMetricHistoryRequest{Run: v.name + "/runs/" + v.r.PathValue("run"), Key: key, PageSize: mostPoints})
	if err != nil {
		c.refused(w, v.r, v.base, err)
		return
	}
	svg, err := line(history.GetMetrics(), history.GetNextPageToken() != "")
	if err != nil {
		c.cfg.Logger.Error("a chart could not be drawn", "error", err)
		http.Error(w, "this chart could not be drawn; the fault is ours", http.StatusInternalServerError)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "image/svg+xml")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; sandbox") // the drawing library writes style attributes
	_, _ = w.Write(svg)
}

// line draws the points that are numbers.
func line(points []*telemetryv1.Metric, cut bool) ([]byte, error) {
	xys := make(plotter.XYs, 0, len(points))
	for _, p := range points {
		if !math.IsNaN(p.GetValue()) && !math.IsInf(p.GetValue(), 0) {
			xys = append(xys, plotter.XY{X: float64(p.GetStep()), Y: p.GetValue()})
		}
	}
	p := plot.New()
	p.X.Label.Text = "step"
	if cut {
		p.X.Label.Text = fmt.Sprintf("step (the first %d points)", mostPoints)
	}
	p.BackgroundColor = color.Transparent
	p.Add(plotter.NewGrid())
	if len(xys) > 0 {
		l, err := plotter.NewLine(thin(xys))
		if err != nil {
			return nil, err
		}
		l.Color, l.Width = color.RGBA{R: 0x1f, G: 0x5f, B: 0xa8, A: 0xff}, vg.Points(1.5)
		p.Add(l)
		if len(xys) == 1 {
			dot, err := plotter.NewScatter(xys)
			if err != nil {
				return nil, err
			}
			p.Add(dot)
		}
	}
	canvas := vgsvg.New(5*vg.Inch, 2.6*vg.Inch)
	p.Draw(draw.New(canvas))
	var b bytes.Buffer
	_, err := canvas.WriteTo(&b)
	return b.Bytes(), err
}

// thin keeps of each stretch of a long history the least and the greatest value, in their order.
func thin(xys plotter.XYs) plotter.XYs {
	if len(xys) <= drawnPoints {
		return xys
	}
	stretch := (2*len(xys) + drawnPoints - 1) / drawnPoints
	out := make(plotter.XYs, 0, drawnPoints+2)
	for begin := 0; begin < len(xys); begin += stretch {
		part := xys[begin:min(begin+stretch, len(xys))]
		low, high := 0, 0
		for i, p := range part {
			if p.Y < part[low].Y {
				low = i
			}
			if p.Y > part[high].Y {
				high = i
			}
		}
		out = append(out, part[min(low, high)])
		if low != high {
			out = append(out, part[max(low, high)])
		}
	}
	return out
}

func split(name string) []string { return strings.Split(name, "/") }

func last(name string) string { return name[strings.LastIndexByte(name, '/')+1:] }
