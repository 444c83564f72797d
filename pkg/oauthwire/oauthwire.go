// Package oauthwire owns how a request of OAuth and OpenID Connect becomes a message for identity's provider, and how the provider's answer and
// its refusals become HTTP: at the gateway, and at the listener that identity has for clients with certificates.
//
// Trust boundary: what it reads comes from strangers and is passed on as it was sent; nothing is decoded and nothing decided here. Of the headers
// a fixed list is looked at: whatever else a request says of its sender, such as a certificate that a proxy claims to have seen, does not get through.
//
// Invariants: a header or cookie of those that count is there once or the request is refused; bodies and queries are bounded.
//
// Failure: what cannot be read is invalid_request; a fault without a word of the protocol is server_error and a line in the log.
package oauthwire

import (
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

const (
	// maxForm bounds the body of a request to the OpenID provider.
	maxForm = 64 << 10
	// maxQuery bounds its query.
	maxQuery = 16 << 10
)

// Read gives the request as the provider gets it; cookie names the one that counts, "" for none. A header or cookie of those that count, given twice, is a request with two meanings.
func Read(w http.ResponseWriter, r *http.Request, cookie string) (*identityv1.Exchange, error) {
	x := &identityv1.Exchange{Method: r.Method, Query: r.URL.RawQuery}
	if len(x.GetQuery()) > maxQuery {
		return nil, errors.New("the URL is longer than 16 KiB")
	}
	if !readable(x.GetQuery()) {
		return nil, errors.New("the URL has bytes that have to be escaped")
	}
	var err error
	if x.Body, err = io.ReadAll(http.MaxBytesReader(w, r.Body, maxForm)); err != nil {
		return nil, errors.New("the body cannot be read, or is longer than 64 KiB")
	}
	for name, to := range map[string]*string{
		"Content-Type": &x.ContentType, "Authorization": &x.Authorization, "Dpop": &x.Dpop, "Origin": &x.Origin, "Sec-Fetch-Site": &x.SecFetchSite,
	} {
		v := r.Header.Values(name)
		if len(v) > 1 {
			return nil, errors.New("the header " + name + " is given twice")
		}
		if len(v) == 1 && !readable(v[0]) {
			return nil, errors.New("the header " + name + " is not ASCII")
		}
		if len(v) == 1 {
			*to = v[0]
		}
	}
	if cookie == "" {
		return x, nil
	}
	if c := r.CookiesNamed(cookie); len(c) > 1 {
		return nil, errors.New("the cookie is given twice")
	} else if len(c) == 1 && len(c[0].Value) <= 256 {
		x.Cookie = c[0].Value
	}
	return x, nil
}

// readable reports whether a text is what a message and metadata can hold.
func readable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r > 0x7e })
}

// Refuse answers with a refusal of identity in the words of RFC 6749 section 5.2.
func Refuse(w http.ResponseWriter, err error, log *slog.Logger) {
	f := fault.Describe(err)
	code := f.Metadata()["oauth_error"]
	w.Header().Set("Pragma", "no-cache")
	switch c := fault.Code(err); {
	case c == codes.ResourceExhausted:
		w.Header().Set("Retry-After", strconv.Itoa(max(1, int(f.RetryAfter()/time.Second))))
		Say(w, http.StatusTooManyRequests, "temporarily_unavailable", f.Message())
	case code == "invalid_client":
		w.Header().Set("WWW-Authenticate", `Basic realm="redoubt"`)
		Say(w, http.StatusUnauthorized, code, f.Message())
	case code == "invalid_token":
		w.Header().Set("WWW-Authenticate", `Bearer realm="redoubt", error="invalid_token", DPoP algs="ES256"`)
		Say(w, http.StatusUnauthorized, code, f.Message())
	case code == "insufficient_scope":
		w.Header().Set("WWW-Authenticate", `Bearer realm="redoubt", error="insufficient_scope"`)
		Say(w, http.StatusForbidden, code, f.Message())
	case code != "":
		Say(w, http.StatusBadRequest, code, f.Message())
	case c == codes.InvalidArgument:
		Say(w, http.StatusBadRequest, "invalid_request", f.Message())
	case c == codes.Unavailable || c == codes.DeadlineExceeded || c == codes.Aborted:
		Say(w, http.StatusServiceUnavailable, "temporarily_unavailable", "identity does not answer; repeat the request")
	default:
		log.Error("the provider", "error", err.Error())
		Say(w, http.StatusInternalServerError, "server_error", "internal fault")
	}
}

// Say answers with an error of the protocol.
func Say(w http.ResponseWriter, status int, code, description string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"error": code, "error_description": description}) // fails when the caller is gone
}
