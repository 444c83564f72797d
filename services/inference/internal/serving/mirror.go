package serving

import (
	"context"
	"io"
	"net/http"
	"time"

	"github.com/redoubt-ml/redoubt/services/inference/internal/serving/pool"
)

// mirror sends a copy of the request to the endpoint's mirror, as often as that is to get one. Nobody waits for it: where as many copies
// are under way as may, or memory is short, none is made.
func (c *call) mirror(path, contentType string) {
	m := c.endpoint.Mirror
	if m == nil || c.s.cfg.IntN(100) >= m.Percent {
		return
	}
	d := c.endpoint.Deployments[m.Deployment]
	if d == nil || d.UID == c.deployment.UID || c.size > d.bodyLimit() {
		return
	}
	select {
	case c.s.mirrored <- struct{}{}:
	default:
		return
	}
	twin := c.s.newCall(c.protocol, c.id, "")
	twin.endpoint, twin.caller, twin.deployment, twin.wanted, twin.who = c.endpoint, c.caller, d, d.ID, c.who
	if !twin.reserve(int64(c.body.Len())) {
		<-c.s.mirrored
		twin.end()
		return
	}
	twin.body, twin.received = c.body.Clone(), int64(c.body.Len())
	twin.rec.HttpMethod, twin.rec.UserAgent, twin.rec.RequestUrl = c.rec.HttpMethod, c.rec.UserAgent, c.rec.RequestUrl
	twin.rec.Address, twin.rec.ClientRequestId, twin.rec.Mirrored = c.rec.Address, c.rec.ClientRequestId, true
	c.s.mirrors.Go(func() {
		defer func() { <-c.s.mirrored }()
		defer twin.end()
		ctx, cancel := context.WithTimeout(context.Background(), d.timeout()+time.Second)
		defer cancel()
		resp, refused := twin.forward(ctx, &pool.Request{Method: http.MethodPost, Path: path, ContentType: contentType})
		if refused != nil {
			twin.log(refused.status, 0, refused)
			return
		}
		n, err := io.Copy(io.Discard, resp)
		if err != nil {
			refused = exchangeFailed(err)
			twin.log(refused.status, n, refused)
			return
		}
		twin.log(resp.Status, n, nil)
	})
}
