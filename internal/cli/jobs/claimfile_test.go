package jobs

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// H3: the claim of a host is there again after its end, and one process has it at a time.
func TestClaimFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "claim")
	open := func(want string) *claimFile {
		t.Helper()
		f, err := openClaim(path)
		if err != nil {
			t.Fatal(err)
		}
		if f.id != want {
			t.Errorf("it holds %q, want %q", f.id, want)
		}
		return f
	}
	f := open("")
	if err := f.keep("one"); err != nil {
		t.Fatal(err)
	}
	if _, err := openClaim(path); err == nil || !strings.Contains(err.Error(), "another process has it") {
		t.Errorf("a second process: %v", err)
	}
	if err := f.keep("two"); err != nil { // the file is another one now, and is locked all the same
		t.Fatal(err)
	}
	if _, err := openClaim(path); err == nil {
		t.Error("a second process, after a change")
	}
	f.close()
	open("two").close()
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info, err)
	}
	if err := os.WriteFile(path, []byte(strings.Repeat("x", 65)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openClaim(path); err == nil {
		t.Error("it takes what is no claim")
	}
	if _, err := openClaim(filepath.Join(path, "x")); err == nil {
		t.Error("it takes a file that cannot be made")
	}
	none, err := openClaim("")
	if err != nil || none.id != "" || none.keep("one") != nil {
		t.Errorf("without a file: %v", err)
	}
	none.close()
}
