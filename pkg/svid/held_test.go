package svid

import (
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
)

// What an authority answers is checked before it is used.
func TestHeld(t *testing.T) {
	a, other := newAuthority(t, td), newAuthority(t, td)
	key, now := newKey(t), time.Now()
	run, err := RunID(td, "ws_1", "run_1")
	if err != nil {
		t.Fatal(err)
	}
	chain, err := a.Sign(key.Public(), run, time.Minute, now)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := a.SignLeaf(key.Public(), Leaf{CommonName: "x", Client: true}, time.Minute, now)
	if err != nil {
		t.Fatal(err)
	}
	roots := [][]byte{a.Root().Raw}
	s, err := Held(key, chain, roots, now)
	if err != nil || s.ID != run || s.Key != key || len(s.Bundle) != 1 {
		t.Fatalf("%+v, %v", s, err)
	}
	for name, c := range map[string]struct {
		chain, roots [][]byte
		now          time.Time
	}{
		"nothing":           {nil, nil, now},
		"no roots":          {chain, nil, now},
		"other roots":       {chain, [][]byte{other.Root().Raw}, now},
		"a leaf as root":    {chain, chain, now},
		"not a certificate": {[][]byte{{1}}, roots, now},
		"not a root":        {chain, [][]byte{{1}}, now},
		"no SVID":           {leaf, roots, now},
		"over":              {chain, roots, now.Add(time.Hour)},
		"before its time":   {chain, roots, now.Add(-time.Hour)},
	} {
		if _, err := Held(key, c.chain, c.roots, c.now); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if _, err := Held(newKey(t), chain, roots, now); err == nil {
		t.Error("for another key: taken")
	}
}

func TestHeldClient(t *testing.T) {
	a := newAuthority(t, td)
	server, _ := newSource(t, a, service(t, "inference"), time.Minute)
	addr, told := serve(t, server.ServerCredentials(Run()))
	key := newKey(t)
	run, err := RunID(td, "ws_1", "run_1")
	if err != nil {
		t.Fatal(err)
	}
	chain, err := a.Sign(key.Public(), run, time.Minute, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	held, err := Held(key, chain, [][]byte{a.Root().Raw}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	current := func() (*SVID, error) { return held, nil }
	if err := check(t, addr, credentials.NewTLS(HeldClientTLS(current, "inference", nil))); err != nil || told.peer != run.String() {
		t.Errorf("%v, the server saw %q", err, told.peer)
	}
	calls := told.calls
	for name, c := range map[string]credentials.TransportCredentials{
		"another service": credentials.NewTLS(HeldClientTLS(current, "compute", nil)),
		"no service":      credentials.NewTLS(HeldClientTLS(current, "", nil)),
		"over":            credentials.NewTLS(HeldClientTLS(current, "inference", func() time.Time { return time.Now().Add(time.Hour) })),
		"nothing held":    credentials.NewTLS(HeldClientTLS(func() (*SVID, error) { return nil, errOwnEnded }, "inference", nil)),
	} {
		if err := check(t, addr, c); status.Code(err) != codes.Unavailable {
			t.Errorf("%s: %v", name, err)
		}
	}
	if told.calls != calls {
		t.Errorf("%d calls came through", told.calls-calls)
	}
}
