package main

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strconv"
	"time"

	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/resource"
)

// serveFloor is the server process "floor": what no token over HTTPS can do without. It reads the form, signs a token of the same claims, and
// answers; it looks at no secret, asks no database, records nothing.
func serveFloor() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	signer, err := authn.NewSigner(key, "floor")
	if err != nil {
		return err
	}
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := r.ParseForm(); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		now := time.Now()
		uid := resource.NewUID("spn")
		token, err := signer.Mint(authn.Claims{
			Issuer: domain, Subject: uid, Audience: []string{"https://" + domain}, PrincipalType: authn.ServicePrincipal, ClientID: uid, ID: resource.NewUID("tok"), SessionID: uid,
			IssuedAt: now, Expiry: now.Add(15 * time.Minute),
		})
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		body, _ := json.Marshal(map[string]any{"access_token": token, "token_type": "Bearer", "expires_in": 900}) // of texts and a number: it cannot fail
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		_, _ = w.Write(body)
	}))
	defer s.Close()
	if err := json.NewEncoder(os.Stdout).Encode(hello{Gateway: s.URL, Root: s.Certificate().Raw}); err != nil {
		return err
	}
	_, _ = bufio.NewReader(os.Stdin).ReadByte() // until who started it is done
	return nil
}

// tokensFloorDex measures the floor beside Dex, as tokens-dex and tokens-direct-dex are: how many times Dex's rate the machine can give at all.
func tokensFloorDex(ctx context.Context, o options) error {
	theirs, stop, err := dexAskers(ctx, o)
	if err != nil {
		return err
	}
	defer stop()
	p, err := start(ctx, o, "floor")
	if err != nil {
		return err
	}
	defer func() { _ = p.stop() }()
	root, err := x509.ParseCertificate(p.Root)
	if err != nil {
		return errors.Join(err, fmt.Errorf("the floor's certificate"))
	}
	roots := x509.NewCertPool()
	roots.AddCert(root)
	ours, err := newAskers(tokenClients, roots, p.hello.Gateway+"/token", url.Values{"grant_type": {"client_credentials"}, "client_id": {"floor"}, "client_secret": {"the same length as one of a service principal's"}})
	if err != nil {
		return err
	}
	ours.pid = p.pid
	return besideDex(ctx, o, "tokens-floor-dex", ours, theirs)
}
