package jobs

import (
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/redoubt-ml/redoubt/internal/cli/app"
	"github.com/redoubt-ml/redoubt/pkg/svid"
)

// The roots that were kept take the place of those that the context was given, and what was kept is what is read (D10).
func TestRootsThatAreKept(t *testing.T) {
	root := func(td string) *x509.Certificate {
		a, err := svid.NewAuthority(spiffeid.RequireTrustDomainFromString(td), time.Now(), time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		return a.Root()
	}
	given, next, other := root("mesh.test"), root("mesh.test"), root("other.test")
	dir := t.TempDir()
	ca, kept := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "roots.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: given.Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	home := t.TempDir()
	a := verbs{&app.App{Server: "https://mesh.test:8443", CA: ca, Now: time.Now, Env: func(name string) string {
		if name == "HOME" || strings.HasPrefix(name, "XDG_") {
			return home
		}
		return ""
	}}}
	believes := func(file string) (bool, bool) {
		t.Helper()
		roots, host, err := a.followed(file)
		if err != nil {
			t.Fatal(err)
		}
		if host != "mesh.test" {
			t.Errorf("the certificate is to be for %q", host)
		}
		holds := func(c *x509.Certificate) bool {
			_, err := c.Verify(x509.VerifyOptions{Roots: roots.Pool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
			return err == nil
		}
		return holds(given), holds(next)
	}
	for name, file := range map[string]string{"no file": "", "a file that is not there yet": kept} {
		if g, n := believes(file); !g || n {
			t.Errorf("%s: the given root is believed: %v, the next one: %v", name, g, n)
		}
	}
	a.keep(kept)([][]byte{next.Raw})
	if g, n := believes(kept); g || !n {
		t.Errorf("kept: the given root is believed: %v, the next one: %v", g, n)
	}
	if info, err := os.Stat(kept); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	if a.keep("") != nil {
		t.Error("something is kept nowhere")
	}
	for name, text := range map[string][]byte{"no certificate": []byte("x"), "another mesh's": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: other.Raw})} {
		if err := os.WriteFile(kept, text, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, err := a.followed(kept); err == nil || !strings.Contains(err.Error(), "remove it") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
