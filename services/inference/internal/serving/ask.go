package serving

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
	// maxAnswer bounds an answer that is taken whole, because it is translated or goes out in one message.
	maxAnswer  = 64 << 20
	jsonType   = "application/json"
	scorePath  = "/score"
	serverName = "redoubt"
)

// takeAll reads all of a worker's answer, at most limit bytes of it.
func (c *call) takeAll(resp *pool.Response, limit int64) ([]byte, *refusal) {
	if resp.ContentLength > limit {
		return nil, modelFailed(http.StatusBadGateway, "the model's answer is longer than %d bytes", limit)
	}
	size := max(resp.ContentLength, 0)
	if !c.reserve(size) {
		return nil, busy()
	}
	if !resp.Streamed() {
		b := make([]byte, size)
		if _, err := io.ReadFull(resp, b); err != nil {
			return nil, exchangeFailed(err)
		}
		return b, nil
	}
	var b []byte
	buf, _ := c.s.copies.Get().(*[]byte)
	defer c.s.copies.Put(buf)
	for {
		n, err := resp.Read(*buf)
		if int64(len(b)+n) > limit {
			return nil, modelFailed(http.StatusBadGateway, "the model's answer is longer than %d bytes", limit)
		}
		if !c.reserve(int64(n)) {
			return nil, busy()
		}
		b = append(b, (*buf)[:n]...)
		switch {
		case errors.Is(err, io.EOF):
			return b, nil
		case err != nil:
			return nil, exchangeFailed(err)
		}
	}
}

// translated puts what a worker is asked in place of what came. size bounds it.
func (c *call) translated(size int, write func([]byte) []byte) *refusal {
	if !c.reserve(int64(size)) {
		return busy()
	}
	was, pooled := c.body, c.pooled
	c.body, c.pooled = pool.NewBody(size), false
	c.body.Fill(write)
	if pooled && was.Cap() <= smallBody {
		c.s.bodies.Put(was)
	}
	return nil
}

// ask forwards what was translated and gives the model's answer, which has to be one that says that it went well.
func (c *call) ask(ctx context.Context) ([]byte, *refusal) {
	c.mirror(scorePath, jsonType)
	resp, refused := c.forward(ctx, &pool.Request{Method: http.MethodPost, Path: scorePath, ContentType: jsonType})
	if refused != nil {
		return nil, refused
	}
	b, refused := c.takeAll(resp, maxAnswer)
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
	c.release()
	return b, nil
}

// modelSaid is an error of the model's own, with its status.
func modelSaid(status int, said string) *refusal {
	code := codes.Internal
	switch {
	case status == http.StatusTooManyRequests:
		code = codes.ResourceExhausted
	case status < 400:
		status = http.StatusBadGateway
	case status < 500:
		code = codes.InvalidArgument
	}
	return refuse(status, code, faultv1.Reason_MODEL_FAILED, "%s", text(said, 4096))
}

// tensors asks the model for an inference.
func (c *call) tensors(ctx context.Context, req *tensor.Request) ([]tensor.Tensor, *refusal) {
	if refused := c.translated(tensor.Size(req.Inputs), func(b []byte) []byte { return tensor.Data(b, req.Inputs) }); refused != nil {
		return nil, refused
	}
	said, refused := c.ask(ctx)
	if refused != nil {
		return nil, refused
	}
	out, err := tensor.Outputs(said, req.Outputs)
	if err != nil {
		return nil, modelFailed(http.StatusBadGateway, "%s", err)
	}
	return out, nil
}

// asJSON refuses a body that says it is something else.
func (q *request) asJSON() *refusal {
	contentType, _, _ := strings.Cut(one(q.r.Header, "Content-Type"), ";")
	switch strings.ToLower(strings.TrimSpace(contentType)) {
	case "", jsonType:
		return nil
	}
	return refuse(http.StatusUnsupportedMediaType, codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID, "this path takes application/json only")
}

// readJSON reads the body of a request that is translated.
func (q *request) readJSON() *refusal {
	if q.r.Method != http.MethodPost {
		return wrongMethod(http.MethodPost)
	}
	if refused := q.asJSON(); refused != nil {
		return refused
	}
	if refused := q.choose(); refused != nil {
		return refused
	}
	return q.readBody(q.w, q.r, q.deployment.bodyLimit())
}

// fit lets the endpoint answer for a model by its id, by its own name or by its uid, and for a version by the number.
func (c *call) fit(name, version string) {
	e := c.endpoint
	id := e.Name[strings.LastIndexByte(e.Name, '/')+1:]
	c.fits = func(d *Deployment) bool {
		return (name == d.Model || name == id || name == e.UID || name == e.Name) && (version == "" || version == d.ModelVersion)
	}
}
