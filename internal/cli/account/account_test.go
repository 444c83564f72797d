package account

import (
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/redoubt-ml/redoubt/internal/cli/app"
	"github.com/redoubt-ml/redoubt/internal/cli/settings"
)

func TestRootFileWithMoreThanCertificates(t *testing.T) {
	p := filepath.Join(t.TempDir(), "ca.pem")
	key := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("x")})
	if err := os.WriteFile(p, key, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := (verbs{&app.App{}}).kept(settings.Context{Server: "https://h", CAFile: p}, "ada"); err == nil || !strings.Contains(err.Error(), "PRIVATE KEY") {
		t.Errorf("got %v", err)
	}
}
