package settings

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/redoubt-ml/redoubt/pkg/redact"
)

// ring is a keyring in memory.
type ring struct {
	values            map[string]string
	set, get, deletes error
	forgets           bool // takes what it is given, and does not keep it
}

func (r *ring) Get(_ context.Context, service, account string) (redact.Secret, bool, error) {
	v, ok := r.values[service+"/"+account]
	return redact.FromString(v), ok && r.get == nil, r.get
}

func (r *ring) Set(_ context.Context, service, account string, value redact.Secret) error {
	if r.set == nil && !r.forgets {
		r.values[service+"/"+account] = value.RevealString()
	}
	return r.set
}

func (r *ring) Delete(_ context.Context, service, account string) error {
	if r.deletes == nil {
		delete(r.values, service+"/"+account)
	}
	return r.deletes
}

func newRing() *ring { return &ring{values: make(map[string]string)} }

func inFile(t *testing.T, d Folder) bool {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(d.dir, TokenFile))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(string(b), "secret")
}

func TestTokenIsKeptInOnePlace(t *testing.T) {
	cases := []struct {
		name   string
		ring   *ring
		config string
		file   bool
	}{
		{"a keyring", newRing(), "", false},
		{"no keyring", nil, "", true},
		{"one that takes nothing", &ring{set: errors.New("locked")}, "", true},
		{"one that loses things", &ring{values: make(map[string]string), forgets: true}, "", true},
		{"one that gives nothing back", &ring{values: make(map[string]string), get: errors.New("locked")}, "", true},
		{"off", newRing(), "keyring: off\n", true},
		{"on", newRing(), "keyring: on\n", false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			d, now := Open(t.TempDir()), time.Now()
			if c.ring != nil {
				d = d.WithKeyring(c.ring)
			}
			if err := os.WriteFile(d.Path(), []byte(c.config), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := d.SetToken(t.Context(), "a", Token{Server: "https://h", Value: "secret", Expires: now.Add(time.Hour)}); err != nil {
				t.Fatal(err)
			}
			if got := inFile(t, d); got != c.file || c.ring != nil && len(c.ring.values) > 0 && c.file {
				t.Errorf("in the file: %v, in the keyring: %d", got, len(c.ring.values))
			}
			tok, ok, err := d.Token(t.Context(), "a", "https://h", now)
			if err != nil || !ok || tok.RevealString() != "secret" {
				t.Errorf("got %v, %v", ok, err)
			}
			for name, at := range map[string]time.Time{"https://evil": now, "https://h": now.Add(time.Hour)} {
				if _, ok, err := d.Token(t.Context(), "a", name, at); ok || err != nil {
					t.Errorf("%s at %v gets it: %v", name, at, err)
				}
			}
			if err := d.SetToken(t.Context(), "a", Token{}); err != nil {
				t.Fatal(err)
			}
			if _, ok, _ := d.Token(t.Context(), "a", "https://h", now); ok || inFile(t, d) || c.ring != nil && len(c.ring.values) > 0 {
				t.Error("a token that was forgotten is there")
			}
		})
	}
}

// A session that stands in the file goes on when a keyring appears, and one in the keyring is not given to whoever changes the file.
func TestKeyringComesAndGoes(t *testing.T) {
	now, r := time.Now(), newRing()
	file := Open(t.TempDir())
	both := file.WithKeyring(r)
	put := func(d Folder, value string) {
		t.Helper()
		if err := d.SetToken(t.Context(), "a", Token{Server: "https://h", Value: value, Expires: now.Add(time.Hour)}); err != nil {
			t.Fatal(err)
		}
	}
	want := func(d Folder, value string) {
		t.Helper()
		tok, ok, err := d.Token(t.Context(), "a", "https://h", now)
		if err != nil || ok != (value != "") || tok.RevealString() != value {
			t.Errorf("got %v, %v, want %q", ok, err, value)
		}
	}
	put(file, "secret 1")
	want(both, "secret 1") // what the file has is not lost to a keyring
	put(both, "secret 2")
	want(both, "secret 2")
	want(file, "") // REDOUBT_KEYRING=off: signed in nowhere, and no error
	r.get = errors.New("locked")
	if _, _, err := both.Token(t.Context(), "a", "https://h", now); err == nil || !strings.Contains(err.Error(), "REDOUBT_KEYRING=off") {
		t.Errorf("got %v", err)
	}
	r.get = nil
	put(file, "secret 3") // signed in again without the keyring
	want(both, "secret 3")

	put(both, "secret 4")
	p := filepath.Join(file.dir, TokenFile)
	b, err := os.ReadFile(p)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(strings.ReplaceAll(string(b), "https://h", "https://evil")), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, ok, err := both.Token(t.Context(), "a", "https://evil", now); ok || err != nil {
		t.Errorf("the keyring's token goes to another address: %v", err)
	}
	r.set, r.deletes = errors.New("locked"), errors.New("locked")
	if err := both.SetToken(t.Context(), "a", Token{}); err == nil {
		t.Error("what the keyring still has is not told of")
	}
	r.set, r.deletes = nil, nil
	put(both, "secret 5")
	r.set, r.deletes = errors.New("locked"), errors.New("locked")
	put(both, "secret 6")
	want(both, "secret 6")
	if !inFile(t, both) {
		t.Error("a session that the keyring does not take is not in the file")
	}
}

func TestKeyringKeyIsStrict(t *testing.T) {
	d := Open(t.TempDir())
	if err := os.WriteFile(d.Path(), []byte("keyring: of\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Read(); err == nil || !strings.Contains(err.Error(), "on or off") {
		t.Errorf("got %v", err)
	}
}
