package agent_test

import (
	"context"
	"crypto/ecdsa"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	"github.com/redoubt-ml/redoubt/internal/agent"
)

// A5, D10: a replica from its start to its stop, with what the entry script finds.
func TestReplica(t *testing.T) {
	t.Parallel()
	r := newReplica(t, `
import json, os
def init():
    global model
    with open(os.path.join(os.environ["AZUREML_MODEL_DIR"], "model.json")) as f:
        model = json.load(f)
    print("loaded", flush=True)
def run(data):
    names = sorted(k for k in os.environ if k.startswith(("REDOUBT_", "MLFLOW_", "AZUREML_")))
    deep = open("azureml-models/iris/3/deep/down.txt").read()
    try:
        open("/redoubt/host.py", "a")
        host = "open"
    except OSError:
        host = "closed"
    return [data, model, os.environ["AZUREML_MODEL_DIR"], os.environ["MODEL_DIR"], os.environ["COLOR"], os.getcwd(), deep, host, names]
`, func(r *replica) {
		r.task.Environment = map[string]string{"COLOR": "red", "AZUREML_MODEL_DIR": "/elsewhere"}
		r.task.Serve.Workers = 2
	})
	r.start()
	a, b := r.in.worker(), r.in.worker()
	if a.number+b.number != 1 || a.number*b.number != 0 {
		t.Errorf("workers %d and %d", a.number, b.number)
	}
	want := `["x",{"w":1},"/work/azureml-models/iris/3","/work/azureml-models/iris/3","red","/work","deep","closed",` +
		`["AZUREML_ENTRY_SCRIPT","AZUREML_MODEL_DIR","REDOUBT_MAX_BODY_BYTES","REDOUBT_REQUEST_TIMEOUT_MS","REDOUBT_RUN","REDOUBT_SERVE_ADDRESS","REDOUBT_START_TIMEOUT_MS","REDOUBT_WORKERS"]]`
	for _, w := range []*worker{a, b, a} {
		if status, body := w.ask(t, "x"); status != 200 || body != want {
			t.Errorf("%d %s", status, body)
		}
	}
	r.set(func() {
		if r.beats == 0 {
			t.Error("no heartbeat")
		}
	})
	out := r.stop()
	if out.GetState() != computev1.Run_STATE_CANCELED || out.GetExitCode() != 0 || !strings.Contains(out.GetMessage(), "ended when it was asked") {
		t.Errorf("reported %v", out)
	}
	for _, w := range []*worker{a, b} {
		if status, _ := w.answer(); status != 0 {
			t.Errorf("after the stop: %d", status)
		}
	}
	if log := r.logged(); strings.Count(log, "loaded") != 2 || // two workers may write into each other's lines
		strings.Contains(log, "redoubt:") {
		t.Errorf("log %q", log)
	}
}

// With several models the scripts find the folder of them all.
func TestReplicaOfSeveralModels(t *testing.T) {
	t.Parallel()
	r := newReplica(t, `
import os
def run(data):
    dir = os.environ["AZUREML_MODEL_DIR"]
    return [dir, sorted(os.path.join(d, f)[len(dir):] for d, _, files in os.walk(dir) for f in files)]
`, func(r *replica) {
		r.models[workspace+"/models/rose_2.x/versions/11"] = map[string][]byte{"m": []byte("abc")}
		r.task.Serve.Models = append(r.task.Serve.Models, workspace+"/models/rose_2.x/versions/11")
	})
	r.start()
	if _, body := r.in.worker().ask(t, ""); body != `["/work/azureml-models",["/iris/3/deep/down.txt","/iris/3/model.json","/rose_2.x/11/m"]]` {
		t.Errorf("%s", body)
	}
}

// What keeps a replica from serving is its failure, in words.
func TestReplicaFails(t *testing.T) {
	t.Parallel()
	good := "def run(data):\n    return data\n"
	for name, c := range map[string]struct {
		script       string
		change       func(*replica)
		says, reason string
	}{
		"init raises":            {"def init():\n    raise ValueError('no weights')\n" + good, nil, "in 3 tries: init() failed: ValueError: no weights", ""},
		"no script":              {good, func(r *replica) { r.task.Serve.EntryScript = "other.py" }, "no entry script other.py", ""},
		"a damaged model":        {good, func(r *replica) { r.damaged = true; delete(r.files, "src/score.py") }, `"deep/down.txt" of the model`, "DIGEST_MISMATCH"},
		"a path out of a model":  {good, func(r *replica) { r.models[r.task.Serve.Models[0]] = map[string][]byte{"../../../x": []byte("a")} }, "path", "PATH_INVALID"},
		"a model that is gone":   {good, func(r *replica) { r.models = nil }, "is gone", "PRECONDITION_FAILED"},
		"no certificate":         {good, func(r *replica) { r.ca = nil }, "no certificate", "INTERNAL_FAULT"},
		"a model that is no one": {good, func(r *replica) { r.task.Serve.Models[0] = workspace + "/runs/r" }, "not a version of a model", "REQUEST_INVALID"},
		"more than fits": {good, func(r *replica) { r.models[r.task.Serve.Models[0]] = map[string][]byte{"big": make([]byte, 65<<20)} },
			"does not fit on the run's disk", "LIMIT_EXCEEDED"},
		"the host is killed": {"import os, signal\ndef init():\n    os.kill(os.getppid(), signal.SIGKILL)\n" + good, nil, "signal 9", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newReplica(t, c.script)
			if c.change != nil {
				c.change(r)
			}
			r.start()
			out := r.report()
			if out.GetState() != computev1.Run_STATE_FAILED || !strings.Contains(out.GetMessage(), c.says) || out.GetReason() != c.reason {
				t.Errorf("reported %v; log %q", out, r.logged())
			}
		})
	}
}

// A worker that dies or hangs costs its own request, and comes back; the other goes on.
func TestReplicasWorkersDie(t *testing.T) {
	t.Parallel()
	r := newReplica(t, `
import os, time
def run(data):
    if data == "die": os._exit(1)
    if data == "raise": raise ValueError("seven")
    while data == "hang": time.sleep(0.01)
    return os.getpid()
`, func(r *replica) { r.task.Serve.Workers = 2 })
	r.start()
	a, b := r.in.worker(), r.in.worker()
	_, other := b.ask(t, "")
	_, pid := a.ask(t, "")
	for _, how := range []string{"die", "hang"} {
		a.send(t, how, "X-Redoubt-Deadline-Ms: 200\r\n")
		if status, body := a.answer(); status != 0 {
			t.Errorf("%s: %d %s", how, status, body)
		}
		number := a.number
		if a = r.in.worker(); a.number != number {
			t.Errorf("%s: worker %d comes back as %d", how, number, a.number)
		}
		_, again := a.ask(t, "")
		if again == pid {
			t.Errorf("%s: the same process answers", how)
		}
		pid = again
	}
	if status, body := a.ask(t, "raise"); status != 500 || !strings.Contains(body, "seven") {
		t.Errorf("raised: %d %s", status, body)
	}
	if _, still := b.ask(t, ""); still != other {
		t.Error("the other worker was touched")
	}
	// Inference goes, and comes back.
	_ = a.Close()
	_ = b.Close()
	r.in.worker()
	r.in.worker()
}

// What a replica prints is dropped rather than waited for, and bounded; answers do not wait for it.
func TestReplicaPrints(t *testing.T) {
	t.Parallel()
	r := newReplica(t, `
def run(data):
    for _ in range(int(data)): print("x" * (1 << 20))
    return "done"
`, func(r *replica) { r.slow, r.logLimit = 20*time.Millisecond, 1<<20 })
	r.start(func(c *agent.Config) { c.LogBuffer = 256 << 10 })
	w := r.in.worker()
	for _, megabytes := range []string{"50", "1"} {
		if status, body := w.ask(t, megabytes); status != 200 || body != "done" {
			t.Errorf("%d %s", status, body)
		}
	}
	out := r.stop()
	if out.GetState() != computev1.Run_STATE_CANCELED || len(r.logged()) > 1<<20 {
		t.Errorf("%d bytes of log; %v", len(r.logged()), out)
	}
	if !strings.Contains(r.logged(), "bytes of output were dropped") {
		t.Error("the log does not say that something is missing")
	}
}

// A busy worker has its time when the replica is stopped.
func TestReplicaDrains(t *testing.T) {
	t.Parallel()
	r := newReplica(t, `
import os, time
def run(data):
    print("busy", flush=True)
    time.sleep(0.5)
    return "done"
`)
	r.onLog = func(log []byte) { r.cancel = r.cancel || strings.Contains(string(log), "busy") }
	r.start(func(c *agent.Config) { c.StopGrace = time.Millisecond }) // the deployment's own timeout counts
	w := r.in.worker()
	if status, body := w.ask(t, ""); status != 200 || body != "done" {
		t.Errorf("%d %s", status, body)
	}
	if out := r.report(); out.GetState() != computev1.Run_STATE_CANCELED || out.GetExitCode() != 0 {
		t.Errorf("reported %v", out)
	}
}

// User code may speak to the endpoint as the host does. It has no other connection than its workers' own, and logs nothing.
func TestReplicaSpeaksForItself(t *testing.T) {
	t.Parallel()
	r := newReplica(t, `
import os, socket
address = os.environ["REDOUBT_SERVE_ADDRESS"]
def speak(request):
    host, _, port = address.rpartition(":")
    s = socket.create_connection((host, int(port)))
    s.sendall(request.replace("HOST", address).encode())
    return s, s.recv(64).decode().split("\r\n")[0]
held = []
def run(data):
    answers = []
    for _ in range(2):
        s, answer = speak("GET /redoubt/worker HTTP/1.1\r\nHost: HOST\r\nConnection: Upgrade\r\nUpgrade: redoubt-worker/1\r\nX-Redoubt-Worker: 0\r\n\r\n")
        held.append(s)
        answers.append(answer)
    for path in ("/api/2.0/mlflow/runs/log-metric", "/redoubt/host", "/redoubt/worker", "/redoubt/../x", "/"):
        answers.append(speak("POST %s HTTP/1.1\r\nHost: HOST\r\nContent-Length: 2\r\nConnection: close\r\n\r\nxx" % path)[1])
    answers.append(speak("POST /redoubt/host HTTP/1.1\r\nHost: elsewhere\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")[1])
    return answers
`, func(r *replica) { r.task.Serve.Workers = 2 })
	r.start()
	a, b := r.in.worker(), r.in.worker()
	_, body := a.ask(t, "")
	const full = "HTTP/1.1 503 Service Unavailable"
	var got []string
	must(t, json.Unmarshal([]byte(body), &got))
	want := []string{full, full, "HTTP/1.1 404 Not Found", "HTTP/1.1 400 Bad Request", "HTTP/1.1 426 Upgrade Required", "HTTP/1.1 307 Temporary Redirect", "HTTP/1.1 404 Not Found", "HTTP/1.1 403 Forbidden"}
	if !slices.Equal(got, want) {
		t.Errorf("%q\nwant %q", got, want)
	}
	if status, _ := b.ask(t, ""); status != 200 {
		t.Errorf("the other worker: %d", status)
	}
	r.set(func() {
		if len(r.metrics) != 0 {
			t.Error("a metric was logged")
		}
	})
}

// The certificate comes again with each token, and a new connection shows the new one.
func TestReplicaRenewsItsCertificate(t *testing.T) {
	t.Parallel()
	r := newReplica(t, "def run(data):\n    return data\n", func(r *replica) { r.tokenLife = 4 * time.Second })
	r.start()
	w := r.in.worker()
	first := w.peer
	for deadline := time.Now().Add(patience); ; {
		r.mu.Lock()
		n := r.renewals
		r.mu.Unlock()
		if n > 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("no renewal")
		}
		if status, _ := w.ask(t, "x"); status != 200 { // the connection goes on meanwhile
			t.Fatalf("%d", status)
		}
	}
	for again := first; again.Equal(first); { // the answer to the renewal may be on its way
		_ = w.Close()
		w = r.in.worker()
		again = w.peer
	}
	key, ok := w.peer.PublicKey.(*ecdsa.PublicKey)
	if !ok || !key.Equal(first.PublicKey) {
		t.Error("the new certificate is for another key")
	}
}

// The example's model, trained and served.
func TestReplicaOfTheExample(t *testing.T) {
	t.Parallel()
	needPython(t)
	dir := t.TempDir()
	train := exec.CommandContext(t.Context(), "python3", "train.py")
	train.Dir = example
	train.Env = append(os.Environ(), "REDOUBT_OUTPUTS="+dir, "EPOCHS=3", "MLFLOW_TRACKING_URI=")
	out, err := train.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	doc, err := os.ReadFile(filepath.Join(dir, "model.json"))
	must(t, err)
	script, err := os.ReadFile(filepath.Join(example, "score.py"))
	must(t, err)
	r := newReplica(t, string(script), func(r *replica) { r.models[r.task.Serve.Models[0]] = map[string][]byte{"model.json": doc} })
	r.start()
	w := r.in.worker()
	rows, labels := heldOut(t, doc)
	body, err := json.Marshal(map[string]any{"data": rows})
	must(t, err)
	status, answer := w.ask(t, string(body))
	var got struct {
		Predictions   []int
		Probabilities []float64
	}
	if err := json.Unmarshal([]byte(answer), &got); err != nil || status != 200 || len(got.Predictions) != len(rows) || len(got.Probabilities) != len(rows) {
		t.Fatalf("%d %s", status, answer)
	}
	right := 0
	for i, p := range got.Probabilities {
		if (p >= 0.5) != (got.Predictions[i] == 1) {
			t.Errorf("row %d: %d with a probability of %v", i, got.Predictions[i], p)
		}
		if got.Predictions[i] == labels[i] {
			right++
		}
	}
	if share := float64(right) / float64(len(rows)); share != heldOutAccuracy(t, doc) || share < 0.9 {
		t.Errorf("%v of the rows are told right, and should be %v", share, heldOutAccuracy(t, doc))
	}
	if status, answer := w.ask(t, `{"data":[[1,2]]}`); status != 500 || !strings.Contains(answer, "30 features") {
		t.Errorf("a short row: %d %s", status, answer)
	}
}

// asAgent carries a run in a process of its own, for tests that kill it.
func asAgent() (status int, ok bool) {
	if os.Getenv("TEST_AS_AGENT") == "" {
		return 0, false
	}
	return agent.Main(context.Background(), os.Stdin, os.Stderr), true
}

// marked are the processes of this machine that have the variable in their environment.
func marked(t *testing.T, variable string) (pids []string) {
	t.Helper()
	list, err := filepath.Glob("/proc/[0-9]*/environ")
	must(t, err)
	for _, file := range list {
		if env, err := os.ReadFile(file); err == nil && slices.Contains(strings.Split(string(env), "\x00"), variable) {
			pids = append(pids, strings.Split(file, "/")[2])
		}
	}
	return pids
}

// Host and workers end with their agent, however it ends, busy or not.
func TestReplicaEndsWithItsAgent(t *testing.T) {
	t.Parallel()
	const variable = "MARK=ends-with-its-agent"
	r := newReplica(t, `
import subprocess, time
def run(data):
    if data == "hang":
        subprocess.Popen(["sleep", "1000"], start_new_session=True)
        while True: time.sleep(0.01)
`, func(r *replica) {
		r.task.Environment = map[string]string{"MARK": "ends-with-its-agent"}
		r.task.Serve.Workers = 2
	})
	exe, err := os.Executable()
	must(t, err)
	doc, err := json.Marshal(map[string]any{"gateway": r.addr, "public_url": r.url, "ca_pem": string(r.caPEM), "run": runName, "run_uid": runUID, "join_token": joinToken, "heartbeat_ms": 100})
	must(t, err)
	cmd := exec.Command(exe)
	cmd.Env, cmd.Stdin = append(os.Environ(), "TEST_AS_AGENT=1"), strings.NewReader(string(doc))
	must(t, cmd.Start())
	killed := sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	defer killed()
	a, b := r.in.worker(), r.in.worker()
	a.send(t, "hang", "")
	for deadline := time.Now().Add(patience); len(marked(t, variable)) < 4; { // the host, two workers, and what one of them started
		if time.Now().After(deadline) {
			t.Fatalf("there are %d processes", len(marked(t, variable)))
		}
	}
	killed()
	for _, w := range []*worker{a, b} {
		if status, _ := w.answer(); status != 0 {
			t.Errorf("it answers after its end: %d", status)
		}
	}
	for deadline := time.Now().Add(patience); len(marked(t, variable)) > 0; {
		if time.Now().After(deadline) {
			t.Fatalf("%v have outlived their agent", marked(t, variable))
		}
	}
}
