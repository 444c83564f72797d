package driver

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
)

// LocalConfig of a local driver. All but Command and Python is required.
type LocalConfig struct {
	// Dir has a folder for each run.
	Dir string
	// Command starts an agent. Empty is this binary with "agent".
	Command []string
	// Python finds this machine's Python; nil lets each agent look.
	Python func(context.Context) (Interpreter, error)
	Now    func() time.Time
	Logger *slog.Logger
}

// Local starts agents on this machine, each in a session of its own, so that they outlive this process. An agent is found again by
// its pid and start time, which stand in its run's folder.
type Local struct {
	cfg      LocalConfig
	pythons  *pythons
	mu       sync.Mutex
	own      map[string]chan struct{} // agents that this process started; closed when they have ended
	cleaning map[string]bool
}

// NewLocal makes a driver that starts agents on this machine.
func NewLocal(cfg LocalConfig) (*Local, error) {
	if len(cfg.Command) == 0 {
		exe, err := os.Executable()
		if err != nil {
			return nil, err
		}
		cfg.Command = []string{exe, "agent"}
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("the folder for runs cannot be made: %w", err)
	}
	return &Local{cfg: cfg, own: make(map[string]chan struct{}), cleaning: make(map[string]bool), pythons: &pythons{find: cfg.Python, now: cfg.Now}}, nil
}

// folder of a run. A uid is made by us, and looked at all the same: it becomes a path.
func (l *Local) folder(runUID string) (string, error) {
	if !resource.IsUID(runUID) {
		return "", errors.New("not a uid")
	}
	return filepath.Join(l.cfg.Dir, runUID), nil
}

// Start implements Driver.
func (l *Local) Start(_ context.Context, p Placement) error {
	dir, err := l.folder(p.RunUID)
	if err != nil {
		return err
	}
	p.Folder, p.Python = dir, l.pythons.hint()
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fault.Wrap(err, codes.FailedPrecondition, faultv1.Reason_PRECONDITION_FAILED, "the run's folder cannot be made")
	}
	doc, err := json.Marshal(p)
	if err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	out, err := os.OpenFile(filepath.Join(dir, "agent.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		_ = w.Close()
		return err
	}
	defer func() { _ = out.Close() }()
	cmd := exec.Command(l.cfg.Command[0], l.cfg.Command[1:]...) //nolint:noctx // our own binary; it outlives this process
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = dir, []string{"PATH=" + os.Getenv("PATH")}, out, out
	cmd.ExtraFiles = []*os.File{r}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		_ = w.Close()
		_ = os.RemoveAll(dir)
		return fault.Wrap(err, codes.FailedPrecondition, faultv1.Reason_PRECONDITION_FAILED, "the agent's program cannot be started")
	}
	done := make(chan struct{})
	l.mu.Lock()
	l.own[p.RunUID] = done
	l.mu.Unlock()
	go func() {
		_ = cmd.Wait()
		close(done)
	}()
	start, _ := startTime(cmd.Process.Pid)
	if err := os.WriteFile(filepath.Join(dir, "agent.pid"), []byte(fmt.Sprintf("%d %s\n", cmd.Process.Pid, start)), 0o600); err != nil {
		_ = w.Close()
		_ = cmd.Process.Kill()
		return err
	}
	go func() { // the pipe holds 64 KiB, the document is smaller; an agent that dies must not block us all the same
		_, _ = w.Write(doc)
		_ = w.Close()
	}()
	return nil
}

// pid is the agent's process, if it is still the one that was started.
func (l *Local) pid(runUID string) (pid int, known bool) {
	dir, err := l.folder(runUID)
	if err != nil {
		return 0, false
	}
	b, err := os.ReadFile(filepath.Join(dir, "agent.pid"))
	if err != nil {
		return 0, false
	}
	number, start, ok := strings.Cut(strings.TrimSpace(string(b)), " ")
	if !ok {
		return 0, true
	}
	n, err := strconv.Atoi(number)
	if err != nil || n <= 1 {
		return 0, true
	}
	if now, err := startTime(n); err != nil || now != start {
		return 0, true
	}
	return n, true
}

// startTime of a process in clock ticks since boot: with the pid it names one process. A zombie has none.
func startTime(pid int) (string, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return "", err
	}
	i := bytes.LastIndexByte(b, ')')
	if i < 0 {
		return "", errors.New("not a stat file")
	}
	f := strings.Fields(string(b[i+1:]))
	if len(f) < 20 || f[0] == "Z" || f[0] == "X" {
		return "", errors.New("the process has ended")
	}
	return f[19], nil
}

// alive reports whether the run's agent is known to live.
func (l *Local) alive(runUID string) bool {
	l.mu.Lock()
	done, own := l.own[runUID]
	l.mu.Unlock()
	if own {
		select {
		case <-done: // and was waited for
		default:
			return true
		}
	}
	pid, _ := l.pid(runUID)
	return pid != 0
}

// Gone implements Driver.
func (l *Local) Gone(runUID string) bool {
	l.mu.Lock()
	done, own := l.own[runUID]
	l.mu.Unlock()
	if own {
		select {
		case <-done:
			return true
		default:
			return false
		}
	}
	pid, known := l.pid(runUID)
	return known && pid == 0
}

// Kill implements Driver.
func (l *Local) Kill(runUID string) {
	if pid, _ := l.pid(runUID); pid != 0 {
		_ = syscall.Kill(pid, syscall.SIGKILL) // the sandbox ends with its agent
	}
}

// cleanWait is how long the agent of a run that has ended may take to end by itself, in looks of a tenth of a second.
const cleanWait = 600

// Clean implements Driver. The agent gets a minute to end by itself.
func (l *Local) Clean(runUID string) {
	dir, err := l.folder(runUID)
	if err != nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cleaning[runUID] {
		return
	}
	l.cleaning[runUID] = true
	go func() {
		for i := 0; l.alive(runUID); i++ { // one from before this process: nobody can wait for it but by looking
			if i == cleanWait {
				l.Kill(runUID)
			}
			<-time.After(100 * time.Millisecond)
		}
		if err := os.RemoveAll(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			l.cfg.Logger.Warn("a run's folder could not be removed", "run_uid", runUID, "error", err)
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.own, runUID)
		delete(l.cleaning, runUID)
	}()
}

// Left implements Driver.
func (l *Local) Left() []string {
	entries, err := os.ReadDir(l.cfg.Dir)
	if err != nil {
		return nil
	}
	var uids []string
	for _, e := range entries {
		if resource.IsUID(e.Name()) {
			uids = append(uids, e.Name())
		}
	}
	return uids
}

// Close waits for what goes on beside the calls. Agents go on.
func (l *Local) Close() { l.pythons.wait() }
