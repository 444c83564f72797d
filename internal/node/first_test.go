package node

import (
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/redoubt-ml/redoubt/pkg/authn/password"
)

// A first start that is cut off after the administrator was made gives his password at the next one, and once.
func TestFirstPasswordSurvives(t *testing.T) {
	cfg := UpConfig{Data: t.TempDir(), Listen: "127.0.0.1:0", TrustDomain: "redoubt.local", Admin: "admin", EtcdUnsafe: true}
	cfg.Options.Password = password.Config{Passes: 1, MemoryKiB: 8 << 10, Lanes: 1}
	cfg.Options.LogWriter = io.Discard
	cut := &Installation{}
	mesh := Mesh{TrustDomain: "redoubt.local", PublicURL: "https://127.0.0.1:1", Etcd: []string{"https://127.0.0.1:2"}, EnrolAddress: "127.0.0.1:3"}
	ids, err := Found(t.Context(), cut.config(cfg, mesh, "identity"), cfg.Options)
	if err != nil {
		t.Fatal(err)
	}
	admin, err := ids.FirstAdmin(t.Context(), cfg.Data, cfg.Admin)
	if err != nil {
		t.Fatal(err)
	}
	first := admin.Password.RevealString()
	ids.Close() // cut off here
	for start, want := range []string{first, ""} {
		in, err := Up(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		if got := in.FirstPassword.RevealString(); got != want {
			t.Errorf("start %d gives %q, not %q", start+1, got, want)
		}
		in.Stop()
		if _, err := os.Stat(filepath.Join(cfg.Data, unseen)); !os.IsNotExist(err) {
			t.Errorf("start %d leaves the file: %v", start+1, err)
		}
	}
}
