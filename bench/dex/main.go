// Command dex is Dex as bench measures Redoubt's tokens beside it: in a process of its own, on TLS, with SQLite and a key on P-256. It is a
// module of its own, so that what Dex needs stays out of bench's.
//
// Dex v2.41 has no client_credentials grant. What it does stand for one is its token exchange with its mock connector, which asks nobody: the
// client's secret is compared, its row read from SQLite, and one token signed. It is the least that any grant of Dex's does.
//
// It prints a line of JSON, {"URL", "Root"}, and ends when its standard input does.
package main

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing/fstest"
	"time"

	"github.com/dexidp/dex/server"
	"github.com/dexidp/dex/storage"
	"github.com/dexidp/dex/storage/sql"
	"github.com/go-jose/go-jose/v4"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "dex:", err)
		os.Exit(1)
	}
}

func run() error {
	dir, err := os.MkdirTemp("", "bench-dex")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	quiet := slog.New(slog.DiscardHandler)
	store, err := (&sql.SQLite3{File: filepath.Join(dir, "dex.db")}).Open(quiet)
	if err != nil {
		return err
	}
	defer store.Close()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	// Dex makes RSA keys only; it signs with what its storage holds.
	err = store.UpdateKeys(func(storage.Keys) (storage.Keys, error) {
		return storage.Keys{
			SigningKey:    &jose.JSONWebKey{Key: key, KeyID: "bench", Algorithm: "ES256", Use: "sig"},
			SigningKeyPub: &jose.JSONWebKey{Key: key.Public(), KeyID: "bench", Algorithm: "ES256", Use: "sig"},
			NextRotation:  time.Now().Add(24 * time.Hour),
		}, nil
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if err := errors.Join(
		store.CreateClient(ctx, storage.Client{ID: "bench", Secret: "bench-secret", Name: "bench"}),
		store.CreateConnector(ctx, storage.Connector{ID: "mock", Type: "mockCallback", Name: "mock", ResourceVersion: "1"}),
	); err != nil {
		return err
	}
	var handler http.Handler
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { handler.ServeHTTP(w, r) }))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.EnableHTTP2 = true
	s.StartTLS()
	defer s.Close()
	handler, err = server.NewServer(ctx, server.Config{
		Issuer: s.URL, Storage: store, SkipApprovalScreen: true, Logger: quiet, RotateKeysAfter: 24 * time.Hour, Web: server.WebConfig{WebFS: pages()},
		AllowedGrantTypes: []string{"urn:ietf:params:oauth:grant-type:token-exchange"},
	})
	if err != nil {
		return err
	}
	if err := json.NewEncoder(os.Stdout).Encode(struct {
		URL  string
		Root []byte
	}{s.URL, s.Certificate().Raw}); err != nil {
		return err
	}
	_, _ = bufio.NewReader(os.Stdin).ReadByte()
	return nil
}

// pages are those that Dex wants to have; nobody sees them.
func pages() fstest.MapFS {
	out := fstest.MapFS{"static/main.css": {}, "themes/light/styles.css": {}, "robots.txt": {}}
	for _, name := range []string{"approval", "device", "device_success", "error", "login", "oob", "password", "header", "footer"} {
		out["templates/"+name+".html"] = &fstest.MapFile{Data: []byte("x")}
	}
	return out
}
