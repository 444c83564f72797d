package driver

import (
	"bufio"
	"encoding/json"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/redoubt-ml/redoubt/pkg/resource"
)

// asAgent reports whether this process is a child that the local driver has started, and acts as an agent then: it writes down what
// it was given, and ends when the file "stop" of its folder is there or it is killed.
func asAgent() bool {
	if len(os.Args) != 2 || os.Args[1] != "stand-in-agent" {
		return false
	}
	doc, err := io.ReadAll(bufio.NewReader(os.NewFile(3, "placement")))
	if err != nil {
		os.Exit(3)
	}
	note, _ := json.Marshal(map[string]any{"doc": string(doc), "env": os.Environ(), "args": os.Args[1:]})
	if os.WriteFile("note.tmp", note, 0o600) != nil || os.Rename("note.tmp", "note") != nil {
		os.Exit(4)
	}
	for range 3000 {
		if _, err := os.Stat("stop"); err == nil {
			return true
		}
		time.Sleep(10 * time.Millisecond) // in a process that the test waits for
	}
	return true
}

func TestMain(m *testing.M) {
	if asAgent() {
		return
	}
	goleak.VerifyTestMain(m)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newDriver(t *testing.T, dir string) *Local {
	t.Helper()
	d, err := NewLocal(LocalConfig{Dir: dir, Command: []string{os.Args[0], "stand-in-agent"}, Logger: slog.New(slog.DiscardHandler)})
	must(t, err)
	return d
}

// eventually waits for what another process does.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); {
		if time.Now().After(end) {
			t.Fatal("not in time: ", what)
		}
		<-time.After(5 * time.Millisecond)
	}
}

func exists(path ...string) bool {
	_, err := os.Lstat(filepath.Join(path...))
	return err == nil
}

// H3: an agent is a process of its own, which gets its placement by a descriptor, is found again by another driver on the same
// folder, and of which nothing is left.
func TestLocalDriver(t *testing.T) {
	t.Setenv("REDOUBT_SECRET_CANARY", "x") // of this process, and not for its children
	dir := t.TempDir()
	d := newDriver(t, dir)
	uid := resource.NewUID("run")
	if d.alive(uid) || d.Gone(uid) {
		t.Error("a run that is not known is neither alive nor gone")
	}
	must(t, d.Start(t.Context(), Placement{Gateway: "g:1", Run: "r", RunUID: uid, JoinToken: "join-canary", HeartbeatMS: 5}))
	t.Cleanup(func() { d.Kill(uid) })
	if err := d.Start(t.Context(), Placement{RunUID: uid}); err == nil {
		t.Error("one run was started twice")
	}
	eventually(t, "the agent's note", func() bool { return exists(dir, uid, "note") })
	b, err := os.ReadFile(filepath.Join(dir, uid, "note"))
	must(t, err)
	var note struct {
		Doc  string
		Env  []string
		Args []string
	}
	must(t, json.Unmarshal(b, &note))
	var p Placement
	must(t, json.Unmarshal([]byte(note.Doc), &p))
	if p.JoinToken != "join-canary" || p.Run != "r" || p.RunUID != uid || p.Folder != filepath.Join(dir, uid) {
		t.Errorf("placement: %+v", p)
	}
	if len(note.Env) != 1 || !strings.HasPrefix(note.Env[0], "PATH=") {
		t.Errorf("A4: the agent's environment holds more than PATH: %q", note.Env)
	}
	if strings.Contains(strings.Join(note.Args, " "), "canary") {
		t.Errorf("A4: a secret in the arguments: %q", note.Args)
	}
	for _, name := range []string{"agent.pid", "agent.log"} {
		if b, err := os.ReadFile(filepath.Join(dir, uid, name)); err != nil || strings.Contains(string(b), "canary") {
			t.Errorf("A4: %s: %v", name, err)
		}
	}

	second := newDriver(t, dir) // as after a restart of the service
	for name, d := range map[string]*Local{"its own": d, "adopted": second} {
		if !d.alive(uid) || d.Gone(uid) {
			t.Errorf("%s: alive %v, gone %v", name, d.alive(uid), d.Gone(uid))
		}
	}
	must(t, os.Mkdir(filepath.Join(dir, "not-a-run"), 0o700))
	if got := second.Left(); len(got) != 1 || got[0] != uid {
		t.Errorf("left: %v", got)
	}
	second.Kill(uid)
	for name, d := range map[string]*Local{"its own": d, "adopted": second} {
		eventually(t, name, func() bool { return d.Gone(uid) && !d.alive(uid) })
	}
	d.Clean(uid)
	second.Clean(uid)
	second.Clean(uid) // one is on it
	eventually(t, "clean", func() bool { return !exists(dir, uid) && len(d.Left()) == 0 })
	if !exists(dir, "not-a-run") {
		t.Error("another folder was removed")
	}
	d.Kill(uid) // knows nothing, does nothing
}

// A pid that another process has by now is not the agent's.
func TestRecycledPid(t *testing.T) {
	dir := t.TempDir()
	d := newDriver(t, dir)
	for name, content := range map[string]string{
		"another start": "%d 12345\n", "no start": "%d\n", "init": "1 1\n", "everyone": "-1 1\n", "group": "0 1\n", "no number": "x y\n", "empty": "",
	} {
		uid := resource.NewUID("run")
		must(t, os.Mkdir(filepath.Join(dir, uid), 0o700))
		content = strings.ReplaceAll(content, "%d", strconv.Itoa(os.Getpid()))
		must(t, os.WriteFile(filepath.Join(dir, uid, "agent.pid"), []byte(content), 0o600))
		if d.alive(uid) || !d.Gone(uid) {
			t.Errorf("%s: alive %v, gone %v", name, d.alive(uid), d.Gone(uid))
		}
		d.Kill(uid) // or this test ends here
	}
	for _, uid := range []string{"", "..", "../x", "run_short"} {
		if d.alive(uid) || d.Gone(uid) || d.Start(t.Context(), Placement{RunUID: uid}) == nil {
			t.Errorf("%q is taken for a uid", uid)
		}
		d.Clean(uid)
	}
	d.cfg.Command = []string{filepath.Join(dir, "absent")}
	uid := resource.NewUID("run")
	if err := d.Start(t.Context(), Placement{RunUID: uid}); err == nil || exists(dir, uid) {
		t.Errorf("a program that is not there: %v", err)
	}
}
