package sandbox

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// interpreterTimeout bounds asking an interpreter where it lives. Shims of version managers take a good part of a second.
const interpreterTimeout = 15 * time.Second

// whereAmI has a Python say where it lives: past shims, links and virtual environments.
const whereAmI = `import json, sys; print(json.dumps([sys.executable, sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix]))`

// Interpreter finds a program along the agent's PATH: the path to call it by inside, and what must be among ReadOnlyPaths
// for that. A Python is asked itself, since what PATH names may be a shim or a virtual environment that lives elsewhere; other
// programs are taken as they are, links resolved. The program runs outside of a sandbox here: name only what is trusted.
//
// It fails with FAILED_PRECONDITION when there is no such program, when it does not answer, or when it is installed so that
// showing it would show a user's whole home.
func Interpreter(ctx context.Context, name string) (path string, roots []string, err error) {
	found, err := exec.LookPath(name)
	if err != nil {
		return "", nil, fault.FailedPrecondition("%s is not installed on this machine, or not on the agent's PATH", name)
	}
	if found, err = filepath.Abs(found); err != nil {
		return "", nil, fault.Internal(err, "the path of %s cannot be told", name)
	}
	var prefixes []string
	if strings.HasPrefix(filepath.Base(found), "python") {
		path, prefixes, err = askPython(ctx, found)
	} else if path, err = filepath.EvalSymlinks(found); err == nil {
		prefixes = []string{path}
	}
	if err != nil {
		return "", nil, fault.FailedPrecondition("%s does not say where it lives: %v", name, err)
	}
	home, _ := os.UserHomeDir()
	for _, prefix := range prefixes {
		if !filepath.IsAbs(prefix) || slices.Contains([]string{"/", "/home", "/root", "/opt", "/var", home}, prefix) {
			return "", nil, fault.FailedPrecondition("%s is installed right in %s: showing it to runs would show all of that; install it in a folder of its own", name, prefix)
		}
	}
	return path, outside(prefixes), nil
}

func askPython(ctx context.Context, found string) (string, []string, error) {
	ctx, cancel := context.WithTimeout(ctx, interpreterTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, found, "-I", "-c", whereAmI)
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if err != nil {
		return "", nil, err
	}
	var answer []string
	if err := json.Unmarshal(bytes.TrimSpace(out), &answer); err != nil {
		return "", nil, err
	}
	prefixes := make([]string, 0, len(answer))
	for _, path := range answer[1:] {
		prefixes = append(prefixes, filepath.Clean(path))
	}
	// A virtual environment's python is a link to the one it was made from, which may be a link itself.
	if real, err := filepath.EvalSymlinks(answer[0]); err == nil && !under(real, prefixes) {
		prefixes = append(prefixes, real)
	}
	return answer[0], prefixes, nil
}

// outside leaves out what every run sees anyway, and what another path covers.
func outside(paths []string) []string {
	var kept []string
	for _, path := range slices.Sorted(slices.Values(paths)) {
		if !under(path, []string{"/usr", "/bin", "/lib", "/lib64"}) && !under(path, kept) {
			kept = append(kept, path)
		}
	}
	return kept
}

func under(path string, tops []string) bool {
	return slices.ContainsFunc(tops, func(top string) bool { return path == top || strings.HasPrefix(path, top+"/") })
}
