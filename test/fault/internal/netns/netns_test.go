//go:build linux

package netns

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// Two hosts reach each other, do not while they are cut, do again, and nothing is left of them.
func TestNetwork(t *testing.T) {
	if os.Getenv("FAULT_NETNS") == "" {
		t.Skip("make fault runs it")
	}
	if why := Check(); why != "" {
		t.Skip(why)
	}
	before, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	n, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = n.Close() }()
	if _, err := Open(); err == nil {
		t.Error("a second network was made beside the first")
	}
	a, err := n.AddHost("a")
	if err != nil {
		t.Fatal(err)
	}
	b, err := n.AddHost("b")
	if err != nil {
		t.Fatal(err)
	}
	var l net.Listener
	if err := b.inside(func() (err error) { l, err = net.Listen("tcp", b.Addr+":99"); return err }); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	// What is to arrive has time to be sent again: a link may be up a moment before it carries anything.
	dial := func(from *Host, within time.Duration) error {
		ctx, cancel := context.WithTimeout(t.Context(), within)
		defer cancel()
		c, err := from.Dial(ctx, "tcp", b.Addr+":99")
		if err == nil {
			_ = c.Close()
		}
		return err
	}
	if err := dial(a, 20*time.Second); err != nil {
		t.Errorf("before the cut: %v", err)
	}
	if err := n.Cut(a, b); err != nil {
		t.Fatal(err)
	}
	if err := dial(a, 500*time.Millisecond); err == nil {
		t.Error("reached across the cut")
	}
	if err := dial(b, 20*time.Second); err != nil {
		t.Errorf("a host does not reach itself: %v", err)
	}
	if err := n.Heal(); err != nil {
		t.Fatal(err)
	}
	if err := dial(a, 20*time.Second); err != nil {
		t.Errorf("after the cut: %v", err)
	}
	if after, err := net.Interfaces(); err != nil || len(after) != len(before) {
		t.Errorf("the machine's own interfaces: %v instead of %v, %v", after, before, err)
	}
	disk := filepath.Join(Root, "disk")
	if err := Disk(disk, 1<<20); err != nil {
		t.Fatal(err)
	}
	if err := Fill(disk); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(disk, "x"), []byte("x"), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("a full disk took a byte: %v", err)
	}
	if err := Free(disk); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(disk, "x"), []byte("x"), 0o600); err != nil {
		t.Error(err)
	}
	sleeper := a.Command("sleep", "1000")
	if err := sleeper.Start(); err != nil {
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	_ = sleeper.Wait()
	if left, _ := namespaces(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if _, err := os.Stat(Root); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left: %v", err)
	}
}
