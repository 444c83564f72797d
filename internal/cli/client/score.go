package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
)

// maxAnswer bounds what an endpoint may answer.
const maxAnswer = 256 << 20

// ScoringRequest is one request to the address of an endpoint.
type ScoringRequest struct {
	// URI is the endpoint's scoring_uri.
	URI string
	// Credential is a key or a token of the endpoint's; empty for none.
	Credential redact.Secret
	// Deployment goes past the traffic split; "" for the split.
	Deployment  string
	ContentType string
	Body        []byte
	// CAFile has the roots to believe; "" for those of the context.
	CAFile string
}

// ScoringAnswer is what came back.
type ScoringAnswer struct {
	Status      int
	ContentType string
	RequestID   string
	Body        []byte
}

// ScoreAt asks an endpoint at its own address, as any HTTP client does. The credential goes to that address alone: redirections are
// not followed, and plain HTTP is refused.
func ScoreAt(ctx context.Context, c Context, r ScoringRequest) (*ScoringAnswer, error) {
	u, err := url.Parse(r.URI)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil {
		return nil, fault.FailedPrecondition("the endpoint has no address that can be scored (%s); whoever runs the installation sets its scoring_url", shown(r.URI))
	}
	if r.CAFile != "" {
		c.CAPEM, c.CAFile = nil, r.CAFile
	}
	roots, err := c.Roots()
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}, ForceAttemptHTTP2: true,
		TLSHandshakeTimeout: 10 * time.Second, Proxy: http.ProxyFromEnvironment,
	}
	defer transport.CloseIdleConnections()
	h := &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.URI, strings.NewReader(string(r.Body)))
	if err != nil {
		return nil, fault.FailedPrecondition("the endpoint has no address that can be scored: %s", shown(r.URI))
	}
	req.Header.Set("User-Agent", "redoubt-cli")
	req.Header.Set("Content-Type", r.ContentType)
	if !r.Credential.Empty() {
		req.Header.Set("Authorization", "Bearer "+r.Credential.RevealString())
	}
	if r.Deployment != "" {
		req.Header.Set("azureml-model-deployment", r.Deployment)
	}
	resp, err := h.Do(req)
	if err != nil {
		var around *url.Error // it repeats the address
		if errors.As(err, &around) {
			err = around.Err
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("%s does not answer: %w; is it reached from here, and is its certificate one of the context's root (else --scoring-ca)?", u.Host, err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, ctx.Err()
	case err != nil:
		return nil, fmt.Errorf("the answer broke off: %w", err)
	case len(body) > maxAnswer:
		return nil, fault.ResourceExhausted("the answer has more than %s", size(maxAnswer))
	}
	return &ScoringAnswer{Status: resp.StatusCode, ContentType: resp.Header.Get("Content-Type"), RequestID: resp.Header.Get("X-Request-Id"), Body: body}, nil
}
