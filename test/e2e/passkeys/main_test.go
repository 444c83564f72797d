// Package passkeys drives the sign-in pages of a whole installation by a real browser, headless Chromium, with a security key that the
// browser plays: what the one script of those pages and the browser make of each other, no test in Go can know (A2).
//
// It owns its users. Its trust boundary is the browser's. It is skipped, saying why, where neither chromium nor google-chrome is on the
// PATH. The installation's address has a name, for keys are bound to names.
package passkeys

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/internal/node"
	"github.com/redoubt-ml/redoubt/internal/testmesh"
)

var (
	mesh *testmesh.Mesh
	// behind is how far the installation's clock is behind the browser's, in nanoseconds: what was signed in then is old now.
	behind atomic.Int64
)

// catchUp sets the installation's clock right, and waits until its services have heard of each other at the new time.
func catchUp(t *testing.T) {
	t.Helper()
	behind.Store(0)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		_, err := identityv1.NewDirectoryServiceClient(mesh.Dial(t, mesh.Admin(t))).ListUsers(t.Context(), &identityv1.ListUsersRequest{})
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

func TestMain(m *testing.M) {
	testmesh.Child()
	if program() == "" { // no mesh for nothing
		fmt.Fprintln(os.Stderr, "no chromium on the PATH: the pages are not tried in a browser")
		os.Exit(0)
	}
	var err error
	behind.Store(int64(20 * time.Minute))
	if mesh, err = testmesh.Start(func(c *node.UpConfig) {
		c.Listen, c.Options.Now = "localhost:0", func() time.Time { return time.Now().Add(-time.Duration(behind.Load())) }
	}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	mesh.Close()
	os.Exit(code)
}

func program() string {
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if p, err := exec.LookPath(name); err == nil {
			return p
		}
	}
	return ""
}

// chromium gives a browser that believes this installation's certificate and no other.
func chromium(t *testing.T) context.Context {
	t.Helper()
	d := tls.Dialer{Config: &tls.Config{RootCAs: mesh.TLS().RootCAs, MinVersion: tls.VersionTLS13}}
	conn, err := d.DialContext(t.Context(), "tcp", strings.TrimPrefix(mesh.URL, "https://"))
	if err != nil {
		t.Fatal(err)
	}
	leaf := conn.(*tls.Conn).ConnectionState().PeerCertificates[0]
	_ = conn.Close()
	pin := sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
	opts := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(program()), chromedp.UserDataDir(t.TempDir()), chromedp.NoSandbox, // it runs as root in CI
		chromedp.Flag("ignore-certificate-errors-spki-list", base64.StdEncoding.EncodeToString(pin[:])),
	)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(cancel)
	ctx, stop := chromedp.NewExecAllocator(ctx, opts...)
	t.Cleanup(stop)
	ctx, leave := chromedp.NewContext(ctx)
	t.Cleanup(leave)
	return ctx
}
