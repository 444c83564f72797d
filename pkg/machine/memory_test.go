package machine

import (
	"os"
	"path/filepath"
	"testing"
)

func TestMemory(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, c := range []struct {
		text string
		want int64
	}{
		{"67108864\n", 64 << 20}, {"max\n", 0}, {"9223372036854771712\n", 0}, {"0\n", 0}, {"-1\n", 0}, {"", 0},
	} {
		if got := number(write("limit", c.text)); got != c.want {
			t.Errorf("%q is %d, wanted %d", c.text, got, c.want)
		}
	}
	if got := number(filepath.Join(dir, "none")); got != 0 {
		t.Errorf("no file is %d", got)
	}
	if got := total(write("meminfo", "MemTotal:       24680000 kB\nMemFree: 1 kB\n")); got != 24680000<<10 {
		t.Errorf("got %d", got)
	}
	before := limits
	defer func() { limits = before }()
	limits = []string{filepath.Join(dir, "none"), write("v1", "1048576\n")}
	if Limit() != 1<<20 || Memory() != 1<<20 {
		t.Errorf("got %d and %d", Limit(), Memory())
	}
	limits = nil
	if Limit() != 0 || Memory() <= 0 {
		t.Errorf("got %d and %d", Limit(), Memory())
	}
}
