package discovery_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/redoubt-ml/redoubt/internal/node/etcdnode"
	"github.com/redoubt-ml/redoubt/pkg/discovery"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

func owners(t *testing.T) func(*discovery.Config) {
	return func(c *discovery.Config) {
		c.OwnerPrefix, c.LeaseTTL, c.Resync = "owners/"+t.Name(), 2*time.Second, 50*time.Millisecond
	}
}

func at(place string) discovery.Owner {
	return discovery.Owner{Place: place, Instance: "compute-" + place, Host: "host-" + place, Dir: "/" + place}
}

func claim(t *testing.T, r *discovery.Registry, place string) *discovery.Claim {
	t.Helper()
	c, err := r.Claim(within(t, 30*time.Second), "compute", at(place))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// D10: one store is the service's. Another one is refused and told whose it is; the same one, in a new process, is let in at once; and
// when the first is given up another may have it.
func TestOneStoreOwnsAService(t *testing.T) {
	a, b := open(t, shared, owners(t)), open(t, shared, owners(t))
	first := claim(t, a, "here")
	_, err := b.Claim(within(t, 30*time.Second), "compute", at("there"))
	if !fault.Is(err, codes.FailedPrecondition) {
		t.Fatalf("a second store: %v", err)
	}
	for _, part := range []string{"compute-here", "host-here", "/here", "PostgreSQL"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("it does not say %s: %v", part, err)
		}
	}
	if _, err := b.Claim(within(t, 10*time.Second), "keyvault", at("there")); err != nil {
		t.Errorf("of another service: %v", err)
	}
	second := claim(t, b, "here") // the first one's lease lives, and no other place would get it
	select {
	case err := <-first.Lost():
		if !fault.Is(err, codes.FailedPrecondition) {
			t.Errorf("lost with %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("who lost the claim is not told")
	}
	second.Close()
	claim(t, a, "there")
}

// A dead owner's claim ends with its lease, which a new one waits for.
func TestAClaimEndsWithItsLease(t *testing.T) {
	a, b := open(t, shared, owners(t)), open(t, shared, owners(t))
	if _, err := a.Claim(within(t, 10*time.Second), "compute", at("here")); err != nil {
		t.Fatal(err)
	}
	_ = a.Close() // keeps nothing alive any more, and revokes nothing
	claim(t, b, "there")
}

// Without etcd there is no claim, and nobody waits for longer than he wants to. One that is had outlives an etcd that is away, and one
// that lost its data.
func TestAClaimWithoutEtcd(t *testing.T) {
	cfg := etcdnode.Config{Dir: t.TempDir(), UnsafeNoFsync: true}
	n, err := etcdnode.Start(within(t, 20*time.Second), cfg)
	if err != nil {
		t.Fatal(err)
	}
	cfg.ClientAddr = strings.TrimPrefix(n.Endpoints()[0], "https://")
	a, b := open(t, n, owners(t)), open(t, n, owners(t))
	held := claim(t, a, "here")
	_ = n.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := b.Claim(ctx, "compute", at("there")); err == nil {
		t.Fatal("claimed without etcd")
	}
	if err := os.RemoveAll(filepath.Join(cfg.Dir, "data")); err != nil {
		t.Fatal(err)
	}
	if n, err = etcdnode.Start(within(t, 20*time.Second), cfg); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = n.Close() }()
	inLine(t, n, "owners/"+t.Name(), 1) // by itself
	if _, err := b.Claim(within(t, 20*time.Second), "compute", at("there")); !fault.Is(err, codes.FailedPrecondition) {
		t.Errorf("another store, after etcd was begun anew: %v", err)
	}
	select {
	case err := <-held.Lost():
		t.Errorf("lost with %v", err)
	default:
	}
}
