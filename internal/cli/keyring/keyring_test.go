package keyring

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/zalando/go-keyring"

	"github.com/redoubt-ml/redoubt/internal/cli/settings"
	"github.com/redoubt-ml/redoubt/pkg/redact"
)

var _ settings.Keyring = OS{}

func TestOS(t *testing.T) {
	keyring.MockInit()
	ctx, k := t.Context(), OS{}
	if _, ok, err := k.Get(ctx, "redoubt", "a"); ok || err != nil {
		t.Errorf("what was not set: %v, %v", ok, err)
	}
	if err := k.Delete(ctx, "redoubt", "a"); err != nil {
		t.Errorf("deleting what is not there: %v", err)
	}
	if err := k.Set(ctx, "redoubt", "a", redact.FromString("v")); err != nil {
		t.Fatal(err)
	}
	if v, ok, err := k.Get(ctx, "redoubt", "a"); !ok || err != nil || v.RevealString() != "v" {
		t.Errorf("got %v, %v", ok, err)
	}
	if _, ok, _ := k.Get(ctx, "redoubt", "b"); ok {
		t.Error("one account has another's")
	}
	if err := k.Delete(ctx, "redoubt", "a"); err != nil {
		t.Fatal(err)
	}
	if _, ok, _ := k.Get(ctx, "redoubt", "a"); ok {
		t.Error("it is still there")
	}
	gone := errors.New("gone")
	keyring.MockInitWithError(gone)
	if err := k.Set(ctx, "redoubt", "a", redact.FromString("v")); !errors.Is(err, gone) {
		t.Errorf("got %v", err)
	}
	if _, ok, err := k.Get(ctx, "redoubt", "a"); ok || !errors.Is(err, gone) {
		t.Errorf("got %v, %v", ok, err)
	}
}

// A keyring that waits for somebody does not hold the command.
func TestBounded(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	forever := make(chan struct{})
	defer close(forever)
	cancel()
	if _, err := bounded(ctx, func() (string, error) { <-forever; return "", nil }); err == nil {
		t.Error("it came back with an answer")
	}
}

func TestPresent(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("a part of the system there")
	}
	with, without := t.TempDir(), t.TempDir()
	l, err := net.Listen("unix", filepath.Join(with, "bus"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, c := range []struct {
		name string
		env  map[string]string
		want bool
	}{
		{"a bus by its address", map[string]string{"DBUS_SESSION_BUS_ADDRESS": "unix:path=/x"}, true},
		{"a bus at its place", map[string]string{"XDG_RUNTIME_DIR": with}, true},
		{"no bus there", map[string]string{"XDG_RUNTIME_DIR": without}, false},
		{"nothing said", nil, false},
	} {
		if _, ok := Open(func(k string) string { return c.env[k] }); ok != c.want {
			t.Errorf("%s: %v", c.name, ok)
		}
	}
}
