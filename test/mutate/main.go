package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// mutant replaces old by with in file, a path from the root of the module. The tests of the file's package that match run have to notice, or
// those of the package that follows run's @.
type mutant struct {
	what, file, old, with, run string
}

// all are the mutants of every table.
func all() []mutant { return slices.Concat(mutants, leaders, factors, securityKeys, programs, minters) }

// limit is how long one mutant's tests may take: one that makes them hang is caught too.
const limit = 3 * time.Minute

func main() {
	only := flag.String("only", "", "only mutants whose description matches this regular expression")
	part := flag.String("part", "0/1", "of N parts the one with this number, I/N: every Nth mutant")
	flag.Parse()
	var number, parts int
	if n, err := fmt.Sscanf(*part, "%d/%d", &number, &parts); n != 2 || err != nil || number < 0 || number >= parts {
		fmt.Fprintln(os.Stderr, "mutate: -part is I/N, with I below N")
		os.Exit(2)
	}
	pattern, err := regexp.Compile(*only)
	if err != nil {
		fmt.Fprintln(os.Stderr, "mutate:", err)
		os.Exit(2)
	}
	dir, err := os.MkdirTemp("", "redoubt-mutate-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "mutate:", err)
		os.Exit(2)
	}
	var (
		mu                    sync.Mutex
		wg                    sync.WaitGroup
		tried, caught, broken int
		free                  = make(chan struct{}, runtime.GOMAXPROCS(0))
	)
	for i, m := range all() {
		if i%parts != number || !pattern.MatchString(m.what) {
			continue
		}
		free <- struct{}{}
		tried++
		wg.Go(func() {
			red, err := m.try(filepath.Join(dir, strconv.Itoa(i)))
			<-free
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err != nil:
				broken++
				fmt.Printf("mutate: ERROR   %s: %v\n", m.what, err)
			case red == "":
				fmt.Printf("mutate: MISSED  %s (%s)\n", m.what, m.file)
			default:
				caught++
				fmt.Printf("mutate: caught  %s: %s\n", m.what, red)
			}
		})
	}
	wg.Wait()
	_ = os.RemoveAll(dir)
	fmt.Printf("mutate: %d tried, %d caught, %d could not be tried\n", tried, caught, broken)
	if tried == 0 || caught != tried {
		os.Exit(1)
	}
}

// failed finds the first test that went red.
var failed = regexp.MustCompile(`(?m)^\s*--- FAIL: (\S+)`)

// try gives the first test that noticed, or "". It makes the folder dir.
func (m mutant) try(dir string) (red string, err error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", err
	}
	path, err := filepath.Abs(m.file)
	if err != nil {
		return "", err
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	if n := strings.Count(string(text), m.old); n != 1 {
		return "", fmt.Errorf("%q stands in it %d times", m.old, n)
	}
	changed := filepath.Join(dir, filepath.Base(m.file))
	if err := os.WriteFile(changed, []byte(strings.Replace(string(text), m.old, m.with, 1)), 0o600); err != nil { //nolint:gosec // the name is one of the table
		return "", err
	}
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{path: changed}})
	if err != nil {
		return "", err
	}
	list := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(list, overlay, 0o600); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	run, pkg, ok := strings.Cut(m.run, "@")
	if !ok {
		pkg = filepath.Dir(m.file)
	}
	cmd := exec.CommandContext(ctx, "go", "test", "-overlay", list, "-count=1", "-vet=off", "-run", run, "./"+pkg)
	out, err := cmd.CombinedOutput()
	switch found := failed.FindSubmatch(out); {
	case ctx.Err() != nil:
		return "its tests do not end", nil
	case err == nil:
		return "", nil
	case found != nil:
		return string(found[1]), nil
	default:
		return "", fmt.Errorf("the tests did not run: %w\n%s", err, out)
	}
}
