package compute

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

// Placement is what an agent is started with, as JSON on descriptor 3. The join token in it is good once.
type Placement struct {
	Gateway     string `json:"gateway"`
	PublicURL   string `json:"public_url"`
	CAPEM       string `json:"ca_pem"`
	Run         string `json:"run"`
	RunUID      string `json:"run_uid"`
	JoinToken   string `json:"join_token"`
	Folder      string `json:"folder"`
	HeartbeatMS int64  `json:"heartbeat_ms"`
	// Python is where the target's Python was found last; nil for the agent to look itself.
	Python *Interpreter `json:"python,omitempty"`
}

// Driver places agents on a target. All methods but Start are quick, and may name a run that the driver does not know.
type Driver interface {
	// Start places one agent for one run. It returns when the agent is on its way.
	Start(ctx context.Context, p Placement) error
	// Alive reports whether the run's agent is known to live.
	Alive(runUID string) bool
	// Gone reports whether the run's agent was placed here and is known to have ended.
	Gone(runUID string) bool
	// Kill ends the agent, and with it the user's command.
	Kill(runUID string)
	// Clean removes what is left of a run that has ended.
	Clean(runUID string)
	// Sweep removes what is left of all runs but these; called once, at start.
	Sweep(keep map[string]bool)
}

type localConfig struct {
	Dir     string // a folder for each run
	Command []string
	Python  func(context.Context) (Interpreter, error)
	Now     func() time.Time
	Logger  *slog.Logger
}

// local starts agents on this machine, each in a session of its own, so that they outlive this process. An agent is found again by
// its pid and start time, which stand in its run's folder.
type local struct {
	cfg     localConfig
	pythons *pythons
	mu      sync.Mutex
	own     map[string]chan struct{} // agents that this process started; closed when they have ended
}

func newLocal(cfg localConfig) (*local, error) {
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
	return &local{cfg: cfg, own: make(map[string]chan struct{}), pythons: &pythons{find: cfg.Python, now: cfg.Now}}, nil
}

// folder of a run. A uid is made by us, and looked at all the same: it becomes a path.
func (l *local) folder(runUID string) (string, error) {
	if !resource.IsUID(runUID) {
		return "", errors.New("not a uid")
	}
	return filepath.Join(l.cfg.Dir, runUID), nil
}

// Start implements Driver.
func (l *local) Start(_ context.Context, p Placement) error {
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
func (l *local) pid(runUID string) (pid int, known bool) {
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

// Alive implements Driver.
func (l *local) Alive(runUID string) bool {
	pid, _ := l.pid(runUID)
	return pid != 0
}

// Gone implements Driver.
func (l *local) Gone(runUID string) bool {
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
func (l *local) Kill(runUID string) {
	if pid, _ := l.pid(runUID); pid != 0 {
		_ = syscall.Kill(pid, syscall.SIGKILL) // the sandbox ends with its agent
	}
}

// Clean implements Driver. The agent gets a minute to end by itself; what remains then is removed by the next Sweep.
func (l *local) Clean(runUID string) {
	dir, err := l.folder(runUID)
	if err != nil {
		return
	}
	l.mu.Lock()
	done, own := l.own[runUID]
	l.mu.Unlock()
	remove := func() {
		if err := os.RemoveAll(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			l.cfg.Logger.Warn("a run's folder could not be removed", "run_uid", runUID, "error", err)
		}
		l.mu.Lock()
		delete(l.own, runUID)
		l.mu.Unlock()
	}
	go func() {
		if own {
			<-done
		}
		for i := 0; i < 600 && l.Alive(runUID); i++ { // one from before this process: nobody can wait for it but by looking
			<-time.After(100 * time.Millisecond)
		}
		if !l.Alive(runUID) {
			remove()
		}
	}()
}

// Sweep implements Driver.
func (l *local) Sweep(keep map[string]bool) {
	entries, err := os.ReadDir(l.cfg.Dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if keep[e.Name()] {
			continue
		}
		l.Kill(e.Name()) // its run has ended, or is gone
		if dir, err := l.folder(e.Name()); err == nil {
			_ = os.RemoveAll(dir)
		}
	}
}
