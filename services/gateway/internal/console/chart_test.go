package console

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"testing"

	"gonum.org/v1/plot/plotter"

	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
)

// What has no place on an axis is left out, and no history at all is an empty chart.
func TestLineDrawsNumbersOnly(t *testing.T) {
	for name, values := range map[string][]float64{
		"none": nil, "one": {1}, "no number": {math.NaN(), math.Inf(1)}, "some": {1, math.NaN(), 2, math.Inf(-1), 3}, "all the same": {4, 4, 4}, "large": {-math.MaxFloat64 / 4, math.MaxFloat64 / 4},
	} {
		t.Run(name, func(t *testing.T) {
			var points []*telemetryv1.Metric
			for i, v := range values {
				points = append(points, &telemetryv1.Metric{Key: "loss", Step: int64(i), Value: v})
			}
			svg, err := line(points, true)
			if err != nil {
				t.Fatal(err)
			}
			for d := xml.NewDecoder(bytes.NewReader(svg)); ; {
				if _, err := d.Token(); errors.Is(err, io.EOF) {
					break
				} else if err != nil {
					t.Fatalf("not XML: %v", err)
				}
			}
			if bytes.Contains(svg, []byte("NaN")) || bytes.Contains(svg, []byte("Inf")) {
				t.Errorf("drawn: %s", svg)
			}
		})
	}
}

// A long history is thinned, and its peaks stay.
func TestThinKeepsThePeaks(t *testing.T) {
	xys := make(plotter.XYs, 50_000)
	for i := range xys {
		xys[i] = plotter.XY{X: float64(i), Y: 1}
	}
	xys[12_345].Y, xys[40_001].Y = 100, -100
	got := thin(xys)
	low, high, last := 1.0, 1.0, -1.0
	for _, p := range got {
		low, high = min(low, p.Y), max(high, p.Y)
		if p.X <= last {
			t.Fatalf("%v after %v", p.X, last)
		}
		last = p.X
	}
	if len(got) > drawnPoints || low != -100 || high != 100 {
		t.Errorf("%d points from %v to %v", len(got), low, high)
	}
	if short := xys[:drawnPoints]; len(thin(short)) != drawnPoints {
		t.Error("a short history was thinned")
	}
}
