package flow

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/services/inference/internal/serving/pool"
	"github.com/redoubt-ml/redoubt/services/inference/internal/serving/tensor"
)

const (
	// MaxAnswer bounds an answer that is taken whole, because it is translated or goes out in one message.
	MaxAnswer = 64 << 20
	jsonType  = "application/json"
	scorePath = "/score"
)

// TakeAll reads all of a worker's answer, at most limit bytes of it.
func (c *Call) TakeAll(resp *pool.Response, limit int64) ([]byte, *Refusal) {
	if resp.ContentLength > limit {
		return nil, ModelFailed(http.StatusBadGateway, "the model's answer is longer than %d bytes", limit)
	}
	size := max(resp.ContentLength, 0)
	if !c.Reserve(size) {
		return nil, Busy()
	}
	if !resp.Streamed() {
		b := make([]byte, size)
		if _, err := io.ReadFull(resp, b); err != nil {
			return nil, ExchangeFailed(err)
		}
		return b, nil
	}
	var b []byte
	buf := c.Way.Buffer()
	defer c.Way.Return(buf)
	for {
		n, err := resp.Read(*buf)
		if int64(len(b)+n) > limit {
			return nil, ModelFailed(http.StatusBadGateway, "the model's answer is longer than %d bytes", limit)
		}
		if !c.Reserve(int64(n)) {
			return nil, Busy()
		}
		b = append(b, (*buf)[:n]...)
		switch {
		case errors.Is(err, io.EOF):
			return b, nil
		case err != nil:
			return nil, ExchangeFailed(err)
		}
	}
}

// Translate puts what a worker is asked in place of what came. size bounds it.
func (c *Call) Translate(size int, write func([]byte) []byte) *Refusal {
	if !c.Reserve(int64(size)) {
		return Busy()
	}
	was, pooled := c.Body, c.pooled
	c.Body, c.pooled = pool.NewBody(size), false
	c.Body.Fill(write)
	if pooled && was.Cap() <= smallBody {
		c.Way.bodies.Put(was)
	}
	return nil
}

// Ask forwards what was translated and gives the model's answer, which has to be one that says that it went well.
func (c *Call) Ask(ctx context.Context) ([]byte, *Refusal) {
	c.Mirror(scorePath, jsonType)
	resp, refused := c.Forward(ctx, &pool.Request{Method: http.MethodPost, Path: scorePath, ContentType: jsonType})
	if refused != nil {
		return nil, refused
	}
	b, refused := c.TakeAll(resp, MaxAnswer)
	if refused != nil {
		return nil, refused
	}
	if resp.Status < 200 || resp.Status > 299 {
		said := tensor.ErrorText(b)
		if said == "" {
			said = "the model answered with an error that is not in words"
		}
		return nil, modelSaid(resp.Status, said)
	}
	c.Release()
	return b, nil
}

// modelSaid is an error of the model's own, with its status.
func modelSaid(status int, said string) *Refusal {
	code := codes.Internal
	switch {
	case status == http.StatusTooManyRequests:
		code = codes.ResourceExhausted
	case status < 400:
		status = http.StatusBadGateway
	case status < 500:
		code = codes.InvalidArgument
	}
	return Refuse(status, code, faultv1.Reason_MODEL_FAILED, "%s", Text(said, 4096))
}

// Tensors asks the model for an inference.
func (c *Call) Tensors(ctx context.Context, req *tensor.Request) ([]tensor.Tensor, *Refusal) {
	if refused := c.Translate(tensor.Size(req.Inputs), func(b []byte) []byte { return tensor.Data(b, req.Inputs) }); refused != nil {
		return nil, refused
	}
	said, refused := c.Ask(ctx)
	if refused != nil {
		return nil, refused
	}
	out, err := tensor.Outputs(said, req.Outputs)
	if err != nil {
		return nil, ModelFailed(http.StatusBadGateway, "%s", err)
	}
	return out, nil
}

// Fit lets the endpoint answer for a model by its id, by its own name or by its uid, and for a version by the number.
func (c *Call) Fit(name, version string) {
	e := c.Endpoint
	id := e.Name[strings.LastIndexByte(e.Name, '/')+1:]
	c.fits = func(d *Deployment) bool {
		return (name == d.Model || name == id || name == e.UID || name == e.Name) && (version == "" || version == d.ModelVersion)
	}
}
