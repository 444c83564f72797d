package discovery_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"

	"github.com/redoubt-ml/redoubt/internal/node/etcdnode"
	"github.com/redoubt-ml/redoubt/pkg/discovery"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

func elections(t *testing.T, ttl time.Duration) func(*discovery.Config) {
	return func(c *discovery.Config) { c.ElectionPrefix, c.ElectionTTL = "elect/"+t.Name(), ttl }
}

func campaign(t *testing.T, r *discovery.Registry, name string) *discovery.Seat {
	t.Helper()
	s, err := r.Campaign(within(t, 20*time.Second), name, "value")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Resign)
	return s
}

func holds(t *testing.T, s *discovery.Seat) bool {
	t.Helper()
	return s.Held(within(t, 5*time.Second)) == nil
}

// next campaigns in the background.
func next(t *testing.T, r *discovery.Registry, name string) <-chan *discovery.Seat {
	t.Helper()
	won := make(chan *discovery.Seat, 1)
	ctx := within(t, 20*time.Second)
	go func() {
		defer close(won)
		if s, err := r.Campaign(ctx, name, "next"); err == nil {
			won <- s
		}
	}()
	return won
}

func TestOneIsElectedAndThenTheNext(t *testing.T) {
	a, b := open(t, shared, elections(t, 5*time.Second)), open(t, shared, elections(t, 5*time.Second))
	first := campaign(t, a, "identity/outbox")
	if !holds(t, first) {
		t.Fatal("the elected one does not hold its seat")
	}
	other := campaign(t, b, "identity/sweep") // another role is another election
	waiting := next(t, b, "identity/outbox")
	select {
	case <-waiting:
		t.Fatal("two are elected")
	case <-time.After(300 * time.Millisecond):
	}
	first.Resign()
	second := <-waiting
	if second == nil {
		t.Fatal("nobody was elected after the first resigned")
	}
	defer second.Resign()
	if holds(t, first) || !holds(t, second) || !holds(t, other) {
		t.Error("the seats are not held by whom they should be")
	}
	select {
	case <-first.Lost():
	default:
		t.Error("a seat that was given up is not lost")
	}
	_, before := first.Origin()
	if cluster, after := second.Origin(); cluster == 0 || after <= before {
		t.Errorf("elected at revision %d after %d, by cluster %x", after, before, cluster)
	}
}

func TestACandidateThatEndsLeavesNothing(t *testing.T) {
	a, b := open(t, shared, elections(t, 5*time.Second)), open(t, shared, elections(t, 5*time.Second))
	first := campaign(t, a, "x")
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := b.Campaign(ctx, "x", "impatient"); err == nil {
		t.Fatal("two are elected")
	}
	waiting := next(t, a, "x")
	first.Resign()
	if s := <-waiting; s == nil {
		t.Fatal("nobody is elected: the candidate that ended stands before")
	} else {
		s.Resign()
	}
	for _, name := range []string{"", "/", "a/", "a/b/c", "../a", "a b"} {
		if _, err := a.Campaign(t.Context(), name, "v"); fault.Code(err) != codes.InvalidArgument {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// inLine waits until so many stand in an election.
func inLine(t *testing.T, n *etcdnode.Node, prefix string, want int64) {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: n.Endpoints(), TLS: clientTLS(t, n), Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	for ctx := within(t, 10*time.Second); ; {
		got, err := c.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
		if err != nil {
			t.Fatal(err)
		}
		if got.Count == want {
			return
		}
	}
}

// A process that is gone without a word loses its seat with its lease; so does one whose etcd has lost its data.
func TestASeatEndsWithItsLease(t *testing.T) {
	a, b := open(t, shared, elections(t, 2*time.Second)), open(t, shared, elections(t, 2*time.Second))
	first := campaign(t, a, "x")
	waiting := next(t, b, "x")
	_ = a.Close() // keeps nothing alive any more, and revokes nothing
	second := <-waiting
	if second == nil {
		t.Fatal("nobody was elected after the first was gone")
	}
	defer second.Resign()
	<-first.Lost()

	dir := t.TempDir()
	cfg := etcdnode.Config{Dir: dir, UnsafeNoFsync: true}
	n, err := etcdnode.Start(within(t, 20*time.Second), cfg)
	if err != nil {
		t.Fatal(err)
	}
	addr := n.Endpoints()[0]
	r := open(t, n, elections(t, 2*time.Second))
	seat := campaign(t, r, "x")
	waiting = next(t, r, "x")
	inLine(t, n, "elect/"+t.Name()+"/x/", 2)
	_ = n.Close()
	if err := os.RemoveAll(filepath.Join(dir, "data")); err != nil {
		t.Fatal(err)
	}
	cfg.ClientAddr = strings.TrimPrefix(addr, "https://")
	n, err = etcdnode.Start(within(t, 20*time.Second), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = n.Close() }()
	select {
	case <-seat.Lost():
	case <-time.After(15 * time.Second):
		t.Fatal("a seat outlives its lease")
	}
	if holds(t, seat) {
		t.Error("a new etcd confirms what the old one said")
	}
	if <-waiting != nil {
		t.Error("who stood in the old etcd was elected by the new one")
	}
	campaign(t, r, "x")
}
