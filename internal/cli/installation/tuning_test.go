package installation

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/redoubt-ml/redoubt/internal/cli/app"
)

func TestServerTuning(t *testing.T) {
	for _, c := range []struct {
		limit   int64
		percent int
		most    int64
	}{
		{0, serverGC, serverMemory}, {8 << 30, serverGC, serverMemory}, {100 << 20, containerGC, 80 << 20}, {1 << 30, containerGC, 1 << 30 / 5 * 4},
	} {
		if p, m := serverTuning(c.limit); p != c.percent || m != c.most {
			t.Errorf("with %d: %d %%, %d bytes", c.limit, p, m)
		}
	}
}

func TestBeatHealth(t *testing.T) {
	path := filepath.Join(t.TempDir(), "beat")
	now := time.Now()
	a := verbs{&app.App{Now: func() time.Time { return now }}}
	if err := a.beatHealth(path); err == nil {
		t.Error("a host that has heard nothing is well")
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	a.Out = &nothing{}
	if err := a.beatHealth(path); err != nil {
		t.Error(err)
	}
	now = now.Add(beatLimit + time.Minute)
	if err := a.beatHealth(path); err == nil {
		t.Error("a host that has heard nothing for long is well")
	}
}

type nothing struct{}

func (nothing) Write(p []byte) (int, error) { return len(p), nil }
