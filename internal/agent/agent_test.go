package agent_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/internal/agent"
	"github.com/redoubt-ml/redoubt/internal/agent/sandbox"
	"github.com/redoubt-ml/redoubt/pkg/fault"
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
	t.Parallel()
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
			t.Parallel()
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

// TestCancel cancels a command that listens and one that does not.
func TestCancel(t *testing.T) {
	needSandbox(t)
	t.Parallel()
	cases := []struct {
		name, script, log, message string
		code                       int32
	}{
		{"listens", `trap 'echo ending; exit 0' TERM; echo ready; while :; do sleep 0.05; done`, "ready\nending\n", "ended when it was asked to", 0},
		{"does not listen", `trap '' TERM; echo ready; while :; do sleep 0.05; done`, "ready\n", "was killed", 137},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := newPlatform(t, "sh", "-c", c.script)
			p.onLog = func(log []byte) { p.cancel = p.cancel || strings.Contains(string(log), "ready") }
			cfg := p.config()
			cfg.StopGrace = 400 * time.Millisecond
			r := p.carry(cfg)
			if r.GetState() != computev1.Run_STATE_CANCELED || r.GetExitCode() != c.code || !strings.Contains(r.GetMessage(), c.message) || string(p.log) != c.log {
				t.Errorf("reported %v, code %d, %q; log %q", r.GetState(), r.GetExitCode(), r.GetMessage(), p.log)
			}
		})
	}
	t.Run("before the start", func(t *testing.T) {
		p := newPlatform(t, "sleep", "60")
		p.cancel = true
		p.task.Heartbeat = durationpb.New(time.Millisecond)
		if r := p.carry(p.config()); r.GetState() != computev1.Run_STATE_CANCELED {
			t.Errorf("reported %v %q", r.GetState(), r.GetMessage())
		}
	})
}

// TestStopped stops the agent itself.
func TestStopped(t *testing.T) {
	needSandbox(t)
	t.Parallel()
	p := newPlatform(t, "sh", "-c", "echo ready; exec sleep 60")
	ctx, stop := context.WithCancel(t.Context())
	p.onLog = func([]byte) { stop() }
	if err := p.try(ctx, p.config()); err != nil {
		t.Fatal(err)
	}
	if len(p.reports) != 1 || p.reports[0].GetState() != computev1.Run_STATE_FAILED || p.reports[0].GetMessage() != "the agent was stopped on its target" {
		t.Errorf("reports %v", p.reports)
	}
}

// TestEndedElsewhere takes the run from under its agent: the command is killed, and nothing is reported.
func TestEndedElsewhere(t *testing.T) {
	needSandbox(t)
	t.Parallel()
	p := newPlatform(t, "sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done")
	p.onLog = func([]byte) { p.ended = true }
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	err := p.try(ctx, p.config())
	if fault.ReasonOf(err) != faultv1.Reason_TOKEN_REVOKED || ctx.Err() != nil || len(p.reports) != 0 {
		t.Errorf("error %v, reports %v", err, p.reports)
	}
}

// TestOnlyDelivers has the platform give a run up, or cancel it, under its agent: nothing but what delivers is open any more, no other token is to be
// had, and the agent ends the command in good order and delivers what it has (A4, H3).
func TestOnlyDelivers(t *testing.T) {
	needSandbox(t)
	t.Parallel()
	const command = "trap 'echo bye; echo kept >/outputs/kept; exit 0' TERM; echo ready; while :; do sleep 0.05; done"
	for _, tc := range []struct {
		name    string
		prepare func(p *platform)
		log     string
		outputs int
	}{
		{"while the command goes", func(p *platform) {
			p.onLog = func([]byte) { p.narrowed, p.cancel = true, true }
		}, "ready\nbye\n", 1},
		{"and a renewal is refused before a heartbeat says why", func(p *platform) {
			p.tokenLife = 3 * time.Second
			p.task.Heartbeat = durationpb.New(2500 * time.Millisecond) // the token is renewed after half of its life
			p.onLog = func([]byte) { p.narrowed, p.cancel = true, true }
		}, "ready\nbye\n", 1},
		{"while it is prepared", func(p *platform) {
			p.task.Heartbeat = durationpb.New(300 * time.Millisecond)
			p.assigned = func() { p.narrowed, p.cancel = true, true }
		}, "", 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			p := newPlatform(t, "sh", "-c", command)
			tc.prepare(p)
			r := p.carry(p.config())
			if r.GetState() != computev1.Run_STATE_CANCELED || int(r.GetOutputs()) != tc.outputs || len(p.outputs) != tc.outputs || string(p.log) != tc.log || r.GetLogBytes() != int64(len(tc.log)) {
				t.Errorf("reported %v; log %q, outputs %v", r, p.log, p.outputs)
			}
		})
	}
}

// TestAnswerIsLost reports a run whose first report arrived although its answer did not.
func TestAnswerIsLost(t *testing.T) {
	needSandbox(t)
	t.Parallel()
	p := newPlatform(t, "true")
	p.loseFirst = true
	if r := p.carry(p.config()); r.GetState() != computev1.Run_STATE_COMPLETED {
		t.Errorf("reported %v", r)
	}
}

// TestJoinTokenIsUsed has a thief come first.
func TestJoinTokenIsUsed(t *testing.T) {
	p := newPlatform(t, "true")
	p.joined = "somebody else"
	if err := p.try(t.Context(), p.config()); fault.ReasonOf(fault.FromStatus(err)) != faultv1.Reason_JOIN_TOKEN_INVALID {
		t.Errorf("error %v", err)
	}
}

// TestStranger meets a gateway of other roots.
func TestStranger(t *testing.T) {
	t.Parallel()
	p := newPlatform(t, "true")
	cfg := p.config()
	cfg.Roots = newPlatform(t, "true").roots
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := p.try(ctx, cfg); err == nil || p.joined != "" {
		t.Errorf("error %v, joined %q", err, p.joined)
	}
}

// TestHundredMegabytes writes a log without a newline, in full.
func TestHundredMegabytes(t *testing.T) {
	needSandbox(t)
	t.Parallel()
	const size = 100 << 20
	p := newPlatform(t, "sh", "-c", "head -c 104857600 /dev/zero | tr '\\0' x; head -c 1000 /dev/zero | tr '\\0' y >&2")
	p.log = make([]byte, 0, size+2000)
	r := p.carry(p.config())
	if r.GetState() != computev1.Run_STATE_COMPLETED || r.GetLogBytes() != size+1000 || bytes.Count(p.log, []byte("x")) != size || bytes.Count(p.log, []byte("y")) != 1000 {
		t.Errorf("reported %v, %d bytes; %d are stored", r.GetState(), r.GetLogBytes(), len(p.log))
	}
}

// TestLogLimit writes past the limit: the rest is dropped, and the run ends as it would have.
func TestLogLimit(t *testing.T) {
	needSandbox(t)
	t.Parallel()
	p := newPlatform(t, "sh", "-c", "head -c 30000000 /dev/zero; exit 4")
	p.logLimit = 100_000
	if r := p.carry(p.config()); r.GetExitCode() != 4 || r.GetLogBytes() != p.logLimit || len(p.log) != int(p.logLimit) {
		t.Errorf("reported code %d, %d bytes; %d are stored", r.GetExitCode(), r.GetLogBytes(), len(p.log))
	}
}

// TestSmallWrites writes byte by byte: messages are fewer than bytes.
func TestSmallWrites(t *testing.T) {
	needSandbox(t)
	needPython(t)
	t.Parallel()
	p := newPlatform(t, "python3", "-c", "import os\nfor i in range(20000): os.write(1, b'z')")
	p.slow = 20 * time.Millisecond
	if r := p.carry(p.config()); r.GetLogBytes() != 20000 || p.logMsgs > 100 {
		t.Errorf("%d bytes in %d messages", r.GetLogBytes(), p.logMsgs)
	}
}

// TestRenewal lives longer than a token.
func TestRenewal(t *testing.T) {
	needSandbox(t)
	t.Parallel()
	p := newPlatform(t, "sh", "-c", "for i in 1 2 3 4 5 6 7 8; do echo $i; sleep 0.25; done")
	p.tokenLife = time.Second
	r := p.carry(p.config())
	if r.GetState() != computev1.Run_STATE_COMPLETED || string(p.log) != "1\n2\n3\n4\n5\n6\n7\n8\n" || p.renewals < 3 {
		t.Errorf("reported %v, %d renewals, log %q", r, p.renewals, p.log)
	}
}

// logger logs metrics as user code does, and says what was acknowledged. A refused connection is not expected.
const logger = `
import json, os, sys, urllib.request
uri, run = os.environ["MLFLOW_TRACKING_URI"], os.environ["MLFLOW_RUN_ID"]
def log(route, **fields):
    body = json.dumps({"run_id": run, **fields}).encode()
    with urllib.request.urlopen(urllib.request.Request(uri + "/api/2.0/mlflow/runs/" + route, body)) as r:
        assert r.status == 200 and r.read() == b"{}"
for step in range(200):
    log("log-metric", key="loss", value=1 / (step + 1), step=step, timestamp=1700000000000 + step)
    print("logged", step)
log("log-batch", metrics=[{"key": "odd", "value": "NaN", "timestamp": "5", "step": "7"}], params=[{"key": "p", "value": "1"}], tags=[{"key": "t", "value": "a"}])
for value in "bcb": log("set-tag", key="t", value=value)
open("/outputs/big", "wb").write(bytes(range(256)) * 4096)
`

// TestCuts breaks connections at random moments, before and after what was sent is stored: nothing is missing, nothing double
// (H5).
func TestCuts(t *testing.T) {
	needSandbox(t)
	needPython(t)
	t.Parallel()
	for seed := range uint64(3) {
		t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
			t.Parallel()
			p := newPlatform(t, "python3", "main.py")
			p.files["main.py"], p.files["b.txt"], p.files["c.sh"] = []byte(logger), []byte("b"), []byte("c")
			p.cuts, p.cutRate = rand.New(rand.NewPCG(seed, 1)), 0.05
			r := p.carry(p.config())
			if r.GetState() != computev1.Run_STATE_COMPLETED || r.GetOutputs() != 1 || len(p.outputs["big"]) != 1<<20 {
				t.Fatalf("reported %v; log %q", r, p.log)
			}
			var want strings.Builder
			for i := range 200 {
				fmt.Fprintln(&want, "logged", i)
			}
			if string(p.log) != want.String() {
				t.Errorf("log of %d bytes, want %d: %q", len(p.log), want.Len(), p.log)
			}
			if len(p.metrics) != 201 || p.params["p"] != "1" || p.tags["t"] != "b" {
				t.Fatalf("%d metrics, params %v, tags %v", len(p.metrics), p.params, p.tags)
			}
			for i, m := range p.metrics[:200] {
				if m.GetStep() != int64(i) || m.GetValue() != 1/float64(i+1) || m.GetTime().AsTime().UnixMilli() != 1700000000000+int64(i) {
					t.Errorf("metric %d is %v", i, m)
				}
			}
			if odd := p.metrics[200]; !math.IsNaN(odd.GetValue()) || odd.GetStep() != 7 || odd.GetTime().AsTime().UnixMilli() != 5 {
				t.Errorf("the last metric is %v", odd)
			}
		})
	}
}

// TestBootstrap carries a run from a bootstrap document, as a process of its own does, and leaves nothing.
func TestBootstrap(t *testing.T) {
	needSandbox(t)
	t.Parallel()
	p := newPlatform(t, "sh", "-c", "echo secret-line; echo x >/outputs/o")
	folder := t.TempDir()
	doc, err := json.Marshal(map[string]any{
		"gateway": p.addr, "public_url": p.url, "ca_pem": string(p.caPEM), "run": runName, "run_uid": runUID, "join_token": joinToken,
		"folder": folder, "heartbeat_ms": 2000,
	})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if code := agent.Main(t.Context(), bytes.NewReader(doc), &out); code != 0 || len(p.reports) != 1 || string(p.outputs["o"]) != "x\n" {
		t.Errorf("exit code %d, reports %v; %s", code, p.reports, out.String())
	}
	for token := range p.tokens {
		if strings.Contains(out.String(), token) || strings.Contains(out.String(), joinToken) || strings.Contains(out.String(), "secret-line") {
			t.Errorf("the agent's log tells secrets: %s", out.String())
		}
	}
	if left, err := os.ReadDir(folder); err != nil || len(left) > 0 {
		t.Errorf("left in the folder: %v %v", left, err)
	}
	for _, bad := range []string{"", "{", "[]", `{"gateway":"x"}`, strings.Repeat(" ", 2<<20)} {
		if code := agent.Main(t.Context(), strings.NewReader(bad), io.Discard); code != 1 {
			t.Errorf("exit code %d for a bad document", code)
		}
	}
}

// crowd logs from several threads at once; one of them a parameter that cannot be. Each says how it was answered.
const crowd = `
import json, os, threading, urllib.request, urllib.error
uri, run = os.environ["MLFLOW_TRACKING_URI"], os.environ["MLFLOW_RUN_ID"]
def log(route, **fields):
    body = json.dumps({"run_id": run, **fields}).encode()
    try:
        return urllib.request.urlopen(urllib.request.Request(uri + "/api/2.0/mlflow/runs/" + route, body)).status
    except urllib.error.HTTPError as e:
        return e.code
assert log("log-parameter", key="p", value="1") == 200
bad, good = [], []
def worker(n):
    for step in range(10):
        good.append(log("log-metric", key="m%d" % n, value=step, step=step, timestamp=1))
        bad.append(log("log-parameter", key="p", value="2"))
threads = [threading.Thread(target=worker, args=(n,)) for n in range(8)]
for t in threads: t.start()
for t in threads: t.join()
print(set(good), set(bad))
`

// TestRefusedBatch refuses one batch among many: only that one's sender hears of it.
func TestRefusedBatch(t *testing.T) {
	needSandbox(t)
	needPython(t)
	t.Parallel()
	p := newPlatform(t, "python3", "-c", crowd)
	p.slow = 2 * time.Millisecond // so that many are on their way
	if r := p.carry(p.config()); r.GetState() != computev1.Run_STATE_COMPLETED || string(p.log) != "{200} {400}\n" {
		t.Fatalf("reported %v, log %q", r, p.log)
	}
	if len(p.metrics) != 80 || p.params["p"] != "1" {
		t.Errorf("%d metrics, params %v", len(p.metrics), p.params)
	}
}

// TestPlatformIsAway takes the platform away under a command that writes more than the agent keeps.
func TestPlatformIsAway(t *testing.T) {
	needSandbox(t)
	t.Parallel()
	p := newPlatform(t, "sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' x")
	cfg := p.config()
	cfg.LogBuffer = 1 << 20
	p.onLog = func(log []byte) {
		if len(log) > 0 && p.cuts == nil {
			p.cuts, p.cutRate = rand.New(rand.NewPCG(1, 1)), 1
			time.AfterFunc(500*time.Millisecond, func() { p.set(func() { p.cutRate = 0 }) })
		}
	}
	if r := p.carry(cfg); r.GetState() != computev1.Run_STATE_COMPLETED || r.GetLogBytes() != 3000000 || bytes.Count(p.log, []byte("x")) != 3000000 {
		t.Errorf("reported %v, %d bytes stored", r, len(p.log))
	}
}

// What the agent is told of the target's Python it takes, if it is there.
func TestPythonThatItIsTold(t *testing.T) {
	needSandbox(t)
	needPython(t)
	t.Parallel()
	for name, c := range map[string]struct {
		told agent.Python
		log  string
	}{
		"there":             {agent.Python{Path: "/bin/sh"}, "a shell\n"}, // which is no Python, and so shows that it was taken
		"gone":              {agent.Python{Path: "/no/such/python3"}, "Python 3."},
		"what it needs not": {agent.Python{Path: "/bin/sh", Roots: []string{"/no/such"}}, "Python 3."},
		"nothing":           {agent.Python{}, "Python 3."},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			command := []string{"python3", "--version"}
			if name == "there" {
				command = []string{"python3", "-c", "echo a shell"}
			}
			p := newPlatform(t, command...)
			cfg := p.config()
			cfg.Python = c.told
			if r := p.carry(cfg); r.GetState() != computev1.Run_STATE_COMPLETED || !strings.Contains(string(p.log), c.log) {
				t.Errorf("reported %v; log %q", r, p.log)
			}
		})
	}
}
