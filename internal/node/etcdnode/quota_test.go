package etcdnode

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/redoubt-ml/redoubt/pkg/discovery"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// D10: etcd's disk, or its quota, is used up. What is registered stays and is found for longer than its lease lives; what starts is not, and
// comes by itself when there is room; and the check of the member says what to do.
func TestNoSpace(t *testing.T) {
	n := start(t, Config{Dir: t.TempDir(), UnsafeNoFsync: true, Quota: 2 << 20})
	c := client(t, n, clientTLS(t, n))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	r, err := discovery.Open(discovery.Config{Endpoints: n.Endpoints(), TLS: clientTLS(t, n), LeaseTTL: 2 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	before, err := r.Register(ctx, "keyvault", "a", "127.0.0.1:1")
	if err != nil {
		t.Fatal(err)
	}
	defer before.Close()
	if err := r.Check(ctx); err != nil {
		t.Fatal(err)
	}
	for i := 0; ; i++ {
		if _, err := c.Put(ctx, fmt.Sprintf("junk/%d", i%4), string(bytes.Repeat([]byte{'x'}, 256<<10))); err != nil {
			if !errors.Is(err, rpctypes.ErrNoSpace) {
				t.Fatal(err)
			}
			break
		}
	}
	if err := r.Check(ctx); fault.ReasonOf(err).String() != "STORAGE_FULL" {
		t.Errorf("the check says %v", err)
	}
	late, err := r.Announce("keyvault", "b", "127.0.0.1:2")
	if err != nil {
		t.Fatal(err)
	}
	defer late.Close()
	found := func() string {
		all, err := r.List(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(len(all["keyvault"]))
	}
	for end := time.Now().Add(4 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if got := found(); got != "1" {
			t.Fatalf("%s instances are found", got)
		}
	}
	// Room again.
	if _, err := c.Delete(ctx, "junk/", clientv3.WithPrefix()); err != nil {
		t.Fatal(err)
	}
	at, err := c.Get(ctx, "junk/")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Compact(ctx, at.Header.Revision, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Defragment(ctx, n.Endpoints()[0]); err != nil {
		t.Fatal(err)
	}
	if _, err := c.AlarmDisarm(ctx, &clientv3.AlarmMember{}); err != nil {
		t.Fatal(err)
	}
	if err := late.Ready(ctx); err != nil {
		t.Errorf("what started meanwhile does not come: %v", err)
	}
	if got := found(); got != "2" {
		t.Errorf("%s instances are found", got)
	}
	if err := r.Check(ctx); err != nil {
		t.Errorf("the check says %v", err)
	}
}
