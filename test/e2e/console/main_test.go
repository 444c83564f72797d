// Package console drives the web console of a whole installation: by an HTTP client that plays the browser's enemies, and by a real
// browser, headless Chromium, where there is one (part I).
//
// It owns nothing but the runs that it makes. Its trust boundary is the browser's: TLS to the gateway, one cookie. The browser's part is
// skipped, saying why, where neither chromium nor google-chrome is on the PATH; with REDOUBT_SCREENSHOTS=FOLDER it leaves pictures there.
package console

import (
	"fmt"
	"os"
	"testing"

	"github.com/redoubt-ml/redoubt/internal/testmesh"
)

var mesh *testmesh.Mesh

func TestMain(m *testing.M) {
	testmesh.Child()
	var err error
	if mesh, err = testmesh.Start(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	mesh.Close()
	os.Exit(code)
}
