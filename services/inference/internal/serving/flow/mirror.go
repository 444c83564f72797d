package flow

import (
	"context"
	"io"
	"net/http"
	"time"

	"github.com/redoubt-ml/redoubt/services/inference/internal/serving/pool"
)

// Mirror sends a copy of the request to the endpoint's mirror, as often as that is to get one. Nobody waits for it: where as many copies
// are under way as may, or memory is short, none is made.
func (c *Call) Mirror(path, contentType string) {
	m := c.Endpoint.Mirror
	if m == nil || c.Way.cfg.IntN(100) >= m.Percent {
		return
	}
	d := c.Endpoint.Deployments[m.Deployment]
	if d == nil || d.UID == c.Deployment.UID || c.Size > d.BodyLimit() {
		return
	}
	select {
	case c.Way.mirrored <- struct{}{}:
	default:
		return
	}
	twin := c.Way.NewCall(c.protocol, c.ID, "")
	twin.Endpoint, twin.Caller, twin.Deployment, twin.Wanted, twin.Who = c.Endpoint, c.Caller, d, d.ID, c.Who
	if !twin.Reserve(int64(c.Body.Len())) {
		<-c.Way.mirrored
		twin.End()
		return
	}
	twin.Body, twin.Received = c.Body.Clone(), int64(c.Body.Len())
	twin.Record.HttpMethod, twin.Record.UserAgent, twin.Record.RequestUrl = c.Record.HttpMethod, c.Record.UserAgent, c.Record.RequestUrl
	twin.Record.Address, twin.Record.ClientRequestId, twin.Record.Mirrored = c.Record.Address, c.Record.ClientRequestId, true
	c.Way.mirrors.Go(func() {
		defer func() { <-c.Way.mirrored }()
		defer twin.End()
		ctx, cancel := context.WithTimeout(context.Background(), d.timeout()+time.Second)
		defer cancel()
		resp, refused := twin.Forward(ctx, &pool.Request{Method: http.MethodPost, Path: path, ContentType: contentType})
		if refused != nil {
			twin.Log(refused.Status, 0, refused)
			return
		}
		n, err := io.Copy(io.Discard, resp)
		if err != nil {
			refused = ExchangeFailed(err)
			twin.Log(refused.Status, n, refused)
			return
		}
		twin.Log(resp.Status, n, nil)
	})
}
