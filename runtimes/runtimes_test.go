package runtimes

import (
	"bytes"
	"os/exec"
	"testing"
)

// The host's own tests, in Python.
func TestHost(t *testing.T) {
	t.Parallel()
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("there is no python3 on this machine")
	}
	cmd := exec.CommandContext(t.Context(), python, "-B", "python/test_host.py")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// What one caller does with the file is not seen by another.
func TestHostIsCopied(t *testing.T) {
	t.Parallel()
	clear(Host())
	if !bytes.HasPrefix(Host(), []byte(`"""The scoring host`)) {
		t.Errorf("it begins with %q", Host()[:20])
	}
}
