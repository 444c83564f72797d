package openid

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync/atomic"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"github.com/redoubt-ml/redoubt/internal/cli/settings"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

const (
	// BrowserLimit is how long a person has for the pages.
	BrowserLimit = 5 * time.Minute

	callback  = "/callback"
	maxHeader = 16 << 10
	// goodbye is how long the browser has to take the last page.
	goodbye = 2 * time.Second
)

// Signed is what a sign-in gave.
type Signed struct {
	Token settings.Token
	// Subject is who signed in, of the ID token; "" where none came.
	Subject string
}

// Fresh asks for a sign-in of now, whoever is signed in at the browser.
func Fresh() oauth2.AuthCodeOption { return oauth2.SetAuthURLParam("max_age", "0") }

// Browser signs in by a browser on this machine: the code grant with PKCE, answered to a listener on 127.0.0.1 (RFC 8252). open leads the
// browser to the address; hint is who is expected, or "". more are asked of the provider, such as Fresh.
func (p *Provider) Browser(ctx context.Context, hint string, open func(ctx context.Context, address string) error, more ...oauth2.AuthCodeOption) (Signed, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, BrowserLimit, refused(fault.FailedPrecondition("nobody signed in within %v; start again", BrowserLimit)))
	defer cancel()
	l, err := new(net.ListenConfig).Listen(ctx, "tcp4", "127.0.0.1:0")
	if err != nil {
		return Signed{}, fault.FailedPrecondition("nothing can listen on 127.0.0.1 for the browser's answer (%v): sign in with --device", err)
	}
	cfg := p.config(ClientID)
	cfg.RedirectURL = "http://" + l.Addr().String() + callback
	state, nonce, verifier := rand.Text(), rand.Text(), oauth2.GenerateVerifier()
	w := &waiter{host: l.Addr().String(), state: state, got: make(chan url.Values, 1)}
	stop := w.serve(l)
	defer stop()
	opts := append(slices.Clone(more), oauth2.S256ChallengeOption(verifier), oidc.Nonce(nonce), oauth2.SetAuthURLParam("dpop_jkt", p.prover.Thumbprint()))
	if hint != "" {
		opts = append(opts, oauth2.SetAuthURLParam("login_hint", hint))
	}
	if err := open(ctx, cfg.AuthCodeURL(state, opts...)); err != nil {
		return Signed{}, err
	}
	var q url.Values
	select {
	case q = <-w.got:
	case <-ctx.Done():
		return Signed{}, context.Cause(ctx)
	}
	stop()
	// Whose answer it is comes first: what another provider says is not even shown (RFC 9207 section 2.4).
	switch {
	case q.Get("iss") != p.meta.Issuer:
		return Signed{}, refused(fault.PermissionDenied("the answer in the browser is not of %s (iss is %q); its code was not used", p.server, clean(q.Get("iss"))))
	case q.Get("error") != "":
		return Signed{}, p.says(q.Get("error"), q.Get("error_description"), http.StatusSeeOther)
	case q.Get("code") == "":
		return Signed{}, refused(fault.FailedPrecondition("the answer in the browser has neither a code nor an error"))
	}
	ctx, end := context.WithTimeout(context.WithoutCancel(ctx), httpLimit) // a code that is sent is used up
	defer end()
	t, err := cfg.Exchange(p.with(ctx), q.Get("code"), oauth2.VerifierOption(verifier))
	if err != nil {
		return Signed{}, p.explain(ctx, err)
	}
	return p.signed(ctx, t, nonce)
}

// signed checks the ID token, which has to be the answer to the request with the nonce.
func (p *Provider) signed(ctx context.Context, t *oauth2.Token, nonce string) (Signed, error) {
	kept, err := p.keep(t)
	if err != nil {
		return Signed{}, err
	}
	if kept.Refresh == "" {
		return Signed{}, refused(fault.FailedPrecondition("the provider gave no refresh token"))
	}
	raw, _ := t.Extra("id_token").(string)
	if raw == "" {
		return Signed{}, refused(fault.FailedPrecondition("the provider gave no ID token, so it is not known who signed in"))
	}
	ctx = oidc.ClientContext(ctx, p.web)
	id, err := oidc.NewVerifier(p.meta.Issuer, oidc.NewRemoteKeySet(ctx, p.meta.Keys), &oidc.Config{
		ClientID: ClientID, SupportedSigningAlgs: []string{oidc.ES256}, Now: p.now,
	}).Verify(ctx, raw)
	if err == nil && subtle.ConstantTimeCompare([]byte(id.Nonce), []byte(nonce)) != 1 {
		err = errors.New("it answers another request (nonce)")
	}
	if err == nil && id.VerifyAccessToken(t.AccessToken) != nil {
		err = errors.New("it is of another access token (at_hash)")
	}
	if err != nil {
		return Signed{}, refused(fault.PermissionDenied("the provider's ID token cannot be believed: %s", clean(err.Error())))
	}
	return Signed{Token: kept, Subject: id.Subject}, nil
}

// waiter takes one answer of the browser's.
type waiter struct {
	host, state string
	taken       atomic.Bool
	got         chan url.Values
}

// serve serves until stop is called, which lets the last page out.
func (w *waiter) serve(l net.Listener) (stop func()) {
	s := &http.Server{Handler: w, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 5 * time.Second, WriteTimeout: 5 * time.Second, MaxHeaderBytes: maxHeader}
	s.SetKeepAlivesEnabled(false)
	go func() { _ = s.Serve(l) }() // ends with stop
	return func() {
		ctx, cancel := context.WithTimeout(context.Background(), goodbye)
		defer cancel()
		if s.Shutdown(ctx) != nil {
			_ = s.Close()
		}
	}
}

// ServeHTTP implements http.Handler. Whoever does not know the state is a stranger: he learns nothing, and we go on waiting.
func (w *waiter) ServeHTTP(out http.ResponseWriter, r *http.Request) {
	h := out.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; sandbox")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cache-Control", "no-store")
	if r.Method != http.MethodGet || r.Host != w.host || r.URL.Path != callback {
		page(out, http.StatusNotFound, "There is nothing here.")
		return
	}
	q, err := url.ParseQuery(r.URL.RawQuery)
	for _, v := range q {
		if len(v) != 1 {
			err = errors.New("given twice")
		}
	}
	if err != nil || subtle.ConstantTimeCompare([]byte(q.Get("state")), []byte(w.state)) != 1 {
		page(out, http.StatusBadRequest, "This is not the answer to the sign-in that waits at the command line. Nothing was done with it.")
		return
	}
	if !w.taken.CompareAndSwap(false, true) {
		page(out, http.StatusGone, "The command line had an answer before this one. Nothing was done with it.")
		return
	}
	w.got <- q
	page(out, http.StatusOK, "The command line has the answer, and says there how it went on. You can close this page.")
}

// page is a page without anything active in it.
func page(out http.ResponseWriter, status int, text string) {
	out.WriteHeader(status)
	_, _ = fmt.Fprintf(out, "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Redoubt</title><p>%s</p></html>\n", text) // fails when the browser is gone
}
