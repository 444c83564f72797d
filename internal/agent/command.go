package agent

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"unicode/utf8"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/internal/agent/sandbox"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// pythonName is how a command asks for the target's Python, wherever that lives.
var pythonName = regexp.MustCompile(`^python(3(\.[0-9]{1,2})?)?$`)

// Python is where the target's interpreter lives, as the agent was told.
type Python struct {
	Path  string   `json:"path"`
	Roots []string `json:"roots"` // what a sandbox has to show for it
}

// exists reports whether all of it is there.
func (p Python) exists() bool {
	for _, path := range append([]string{p.Path}, p.Roots...) {
		if _, err := os.Stat(path); path == "" || err != nil {
			return false
		}
	}
	return true
}

// python is the target's interpreter, as runs see it.
type python struct {
	path  string
	roots []string
	err   error
}

// UsualPython is what nearly every run needs.
const UsualPython = "python3"

func findPython(ctx context.Context, name string) python {
	path, roots, err := sandbox.Interpreter(ctx, name)
	return python{path, roots, err}
}

// seekPython begins to look for the usual Python, unless what the agent was told of it still holds: shims of version managers take
// their time, and the agent has others to wait for meanwhile. The function that it gives waits for the answer.
func seekPython(ctx context.Context, told Python) func() python {
	if told.exists() {
		return func() python { return python{path: told.Path, roots: told.Roots} }
	}
	found := make(chan python, 1)
	go func() { found <- findPython(ctx, UsualPython) }()
	return sync.OnceValue(func() python { return <-found })
}

// sandbox says how the assignment is to be run. It asks Python where it lives.
func (c *carry) sandbox(ctx context.Context) (sandbox.Config, error) {
	t, limits := c.task, c.a.cfg.Limits
	command := slices.Clone(t.GetCommand())
	var files map[string][]byte
	if c.serve != nil {
		if err := c.a.link.certified(); err != nil {
			return sandbox.Config{}, err
		}
		command, files = c.serve.command(), c.serve.files()
	}
	if len(command) == 0 {
		return sandbox.Config{}, fault.InvalidArgument("the run has no command")
	}
	name := UsualPython
	wanted := pythonName.MatchString(command[0])
	if wanted {
		name = command[0]
	}
	// A script may call Python as well, so that every run gets it where there is one.
	var py python
	if name == UsualPython {
		py = c.python()
	} else {
		py = findPython(ctx, name)
	}
	if py.err != nil && wanted {
		return sandbox.Config{}, fault.Wrap(py.err, codes.FailedPrecondition, faultv1.Reason_RUN_COMMAND_MISSING, "no such program: %s (%s)", name, text(py.err))
	}
	var folders []string
	if py.err == nil {
		folders = append(folders, filepath.Dir(py.path))
		if wanted {
			command[0] = py.path
		}
	}
	if n := t.GetLimits().GetMemoryBytes(); n > 0 {
		limits.MemoryBytes = n
	}
	if n := t.GetLimits().GetProcesses(); n > 0 {
		limits.Processes = int(n)
	}
	if n := t.GetLimits().GetScratchBytes(); n > 0 {
		limits.DiskBytes = n
	}
	return sandbox.Config{
		Command: command, Env: c.environment(folders), ReadOnlyPaths: py.roots, Files: files, Populate: c.populate(ctx), Limits: limits,
		Port: sandbox.DefaultPort, Stdout: c.logs, Stderr: c.logs, RequireLandlock: c.a.cfg.RequireLandlock, Logger: c.a.cfg.Logger,
	}, nil
}

// environment is what the command finds: what programs expect, the run's own variables, and over both what the platform says.
func (c *carry) environment(folders []string) []string {
	env := map[string]string{"PYTHONUNBUFFERED": "1"} // so that lines are seen when they are printed
	for _, entry := range sandbox.BaseEnv(folders...) {
		name, value, _ := strings.Cut(entry, "=")
		env[name] = value
	}
	maps.Copy(env, c.task.GetEnvironment())
	env["REDOUBT_RUN"] = c.a.cfg.Run
	if c.serve != nil {
		c.serve.environment(env)
	} else {
		env["MLFLOW_TRACKING_URI"] = "http://" + sandbox.Address(sandbox.DefaultPort)
		env["MLFLOW_RUN_ID"] = c.a.name.ID()
		env["REDOUBT_OUTPUTS"] = sandbox.OutputDir
	}
	list := make([]string, 0, len(env))
	for _, name := range slices.Sorted(maps.Keys(env)) {
		list = append(list, name+"="+env[name])
	}
	return list
}

// text is what a person is told of an error: a fault's message without what caused it.
func text(err error) string {
	var f *fault.Error
	if errors.As(fault.FromStatus(err), &f) && f.Message() != "" {
		return f.Message()
	}
	return err.Error()
}

// clip cuts a text to at most so many bytes, between characters.
func clip(s string, most int) string {
	s = strings.ToValidUTF8(s, "�")
	if len(s) <= most {
		return s
	}
	for most > 0 && !utf8.RuneStart(s[most]) {
		most--
	}
	return s[:most]
}
