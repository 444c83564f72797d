package agent_test

import (
	"os/exec"
	"strings"
	"testing"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	"github.com/redoubt-ml/redoubt/internal/agent/sandbox"
)

func needSandbox(t *testing.T) {
	t.Helper()
	if err := sandbox.Check(t.Context()); err != nil {
		t.Skip("this machine cannot isolate: ", err)
	}
}

func needPython(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("python3"); err != nil {
		t.Skip("there is no python3")
	}
}

// TestEnds carries commands that end in different ways (H3).
func TestEnds(t *testing.T) {
	needSandbox(t)
	cases := []struct {
		name    string
		command []string
		prepare func(*platform)
		state   computev1.Run_State
		code    int32
		reason  string
		message string
		log     string
		outputs map[string]string
	}{
		{
			name: "completed", command: []string{"sh", "-c", "cat hello.txt; cat in/deep.txt >&2; ./go.sh; pwd; echo kept >/outputs/a.txt; mkdir /outputs/sub; : >/outputs/sub/empty"},
			prepare: func(p *platform) {
				p.files["hello.txt"], p.files["in/deep.txt"], p.files["go.sh"] = []byte("hello\n"), []byte("deep\n"), []byte("#!/bin/sh\necho ran\n")
			},
			state: computev1.Run_STATE_COMPLETED, outputs: map[string]string{"a.txt": "kept\n", "sub/empty": ""},
		},
		{name: "exit code", command: []string{"sh", "-c", "echo bye; exit 3"}, state: computev1.Run_STATE_FAILED, code: 3, message: "exit code 3", log: "bye\n"},
		{name: "signal", command: []string{"sh", "-c", "kill -11 $$"}, state: computev1.Run_STATE_FAILED, code: 139, message: "signal 11"},
		{name: "no such program", command: []string{"no-such-program"}, state: computev1.Run_STATE_FAILED, reason: "RUN_COMMAND_MISSING", message: "no-such-program", log: "redoubt: the command could not be started"},
		{
			name: "damaged snapshot", command: []string{"true"}, prepare: func(p *platform) { p.files["a"], p.damaged = []byte("abc"), true },
			state: computev1.Run_STATE_FAILED, reason: "DIGEST_MISMATCH", message: `"a"`,
		},
		{
			name: "hostile path in the snapshot", command: []string{"true"}, prepare: func(p *platform) { p.files["../../etc/x"] = []byte("abc") },
			state: computev1.Run_STATE_FAILED, reason: "PATH_INVALID", message: "path",
		},
		{
			name: "environment", command: []string{"sh", "-c", `echo "$COLOR $MLFLOW_RUN_ID $REDOUBT_RUN $REDOUBT_OUTPUTS $MLFLOW_TRACKING_URI"; env | grep -ci join`},
			prepare: func(p *platform) { p.task.Environment = map[string]string{"COLOR": "red", "MLFLOW_RUN_ID": "another"} },
			state:   computev1.Run_STATE_FAILED, code: 1, message: "exit code 1",
			log: "red r1 " + runName + " /outputs http://127.0.0.1:7460\n0\n",
		},
		{
			name:    "hostile outputs",
			command: []string{"sh", "-c", `cd /outputs; ln -s /etc/passwd link; mkfifo pipe; echo x >'back\slash'; echo x >"$(printf 'new\nline')"; echo x >"$(printf '\377')"; echo good >good`},
			state:   computev1.Run_STATE_COMPLETED, log: `output "back\\slash" is left out`, outputs: map[string]string{"good": "good\n"},
		},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			p := newPlatform(t, c.command...)
			if c.prepare != nil {
				c.prepare(p)
			}
			r := p.carry(p.config())
			if r.GetState() != c.state || r.GetExitCode() != c.code || r.GetReason() != c.reason || !strings.Contains(r.GetMessage(), c.message) {
				t.Errorf("reported %v, code %d, reason %q, message %q", r.GetState(), r.GetExitCode(), r.GetReason(), r.GetMessage())
			}
			if !strings.Contains(string(p.log), c.log) || c.log == "" && strings.Contains(string(p.log), "left out") {
				t.Errorf("log %q", p.log)
			}
			if c.name == "completed" {
				for _, want := range []string{"hello\n", "deep\n", "ran\n", "/work\n"} {
					if !strings.Contains(string(p.log), want) {
						t.Errorf("log %q lacks %q", p.log, want)
					}
				}
			}
			if len(p.outputs) != len(c.outputs) {
				t.Errorf("%d outputs, want %d", len(p.outputs), len(c.outputs))
			}
			for name, want := range c.outputs {
				if got, ok := p.outputs[name]; !ok || string(got) != want {
					t.Errorf("output %q is %q", name, got)
				}
			}
		})
	}
}
