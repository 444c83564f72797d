package openid

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"sync"

	"github.com/redoubt-ml/redoubt/pkg/authn"
)

// maxNonce bounds what a server may make us repeat.
const maxNonce = 512

// proving puts a proof of the key on each POST (RFC 9449 section 5), and bounds the answers.
type proving struct {
	next   http.RoundTripper
	prover *authn.Prover

	mu    sync.Mutex
	nonce string // the last that the server gave
}

// RoundTrip implements http.RoundTripper.
func (p *proving) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Method != http.MethodPost {
		return bounded(p.next.RoundTrip(req))
	}
	var body []byte
	if req.Body != nil {
		var err error
		body, err = io.ReadAll(req.Body)
		_ = req.Body.Close()
		if err != nil {
			return nil, err
		}
	}
	p.mu.Lock()
	nonce := p.nonce
	p.mu.Unlock()
	for again := false; ; again = true {
		proof, err := p.prover.Proof(req.Method, req.URL.String(), "", nonce)
		if err != nil {
			return nil, err
		}
		try := req.Clone(req.Context())
		try.Body, try.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		try.Header.Set("DPoP", proof)
		res, err := bounded(p.next.RoundTrip(try))
		if err != nil {
			return nil, err
		}
		given := res.Header.Get("DPoP-Nonce")
		if given == "" || len(given) > maxNonce {
			return res, nil
		}
		p.mu.Lock()
		p.nonce = given
		p.mu.Unlock()
		// A server that asks for a nonce has done nothing (section 8): the same once more, and no more than once.
		if again || given == nonce || !wantsNonce(res) {
			return res, nil
		}
		_ = res.Body.Close()
		nonce = given
	}
}

// wantsNonce reports whether the answer asks for a nonce in the proof, and leaves its body to be read.
func wantsNonce(res *http.Response) bool {
	if res.StatusCode != http.StatusBadRequest && res.StatusCode != http.StatusUnauthorized {
		return false
	}
	body, err := io.ReadAll(res.Body)
	_ = res.Body.Close()
	res.Body = io.NopCloser(bytes.NewReader(body))
	var said struct {
		Error string `json:"error"`
	}
	return err == nil && json.Unmarshal(body, &said) == nil && said.Error == errNonce
}

// bounded cuts an answer off where it is too long.
func bounded(res *http.Response, err error) (*http.Response, error) {
	if err != nil {
		return nil, err
	}
	res.Body = struct {
		io.Reader
		io.Closer
	}{io.LimitReader(res.Body, maxAnswer), res.Body}
	return res, nil
}
