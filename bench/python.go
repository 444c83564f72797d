package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	"github.com/redoubt-ml/redoubt/runtimes"
)

// scorePy does next to nothing with a row, as JSON.
const scorePy = `import json

def run(raw):
    return {"predictions": [len(row) for row in json.loads(raw)["data"]]}
`

const pythonWorkers = 2

// scorePython is the whole way to a scoring host in Python, beside the same host without anything in front of it: its workers'
// connections are answered here, without TLS and without a sandbox.
func scorePython(ctx context.Context, o options) error {
	in, err := newInstallation(ctx, o, computev1.Compute_KIND_LOCAL)
	if err != nil {
		return err
	}
	if err := in.deploy(ctx, scorePy, pythonWorkers, func() error { return nil }); err != nil {
		return err
	}
	direct, stop, err := startHost(ctx)
	if err != nil {
		return err
	}
	defer stop()
	ours := newHTTPLoad(in.scoring, in.key, in.roots, pythonWorkers, o.each)
	theirs := &workerLoad{workers: direct, each: o.each}
	v, r, err := o.paired(ctx, ours.round, theirs.round)
	if err != nil {
		return err
	}
	o.print("score-python", v, "requests/s", r, fmt.Sprintf("the same Python host asked directly, without TLS and sandbox; %d workers, as many callers", pythonWorkers))
	for _, p := range []float64{0.5, 0.99} {
		a, b := ours.percentile(p), theirs.percentile(p)
		o.print(fmt.Sprintf("score-python-p%.0f", 100*p), a-b, "us added", a/b, fmt.Sprintf("the same host, whose p%.0f is %.0f us", 100*p, b))
	}
	return in.takeDown(ctx)
}

// worker is one connection of a worker that waits for requests.
type worker struct {
	conn net.Conn
	in   *bufio.Reader
}

// startHost runs the scoring host with this process in the agent's place.
func startHost(ctx context.Context) ([]*worker, func(), error) {
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		return nil, nil, err
	}
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "host.py"), runtimes.Host(), 0o600), os.WriteFile(filepath.Join(dir, "score.py"), []byte(scorePy), 0o600)); err != nil {
		return nil, nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	defer l.Close()
	cmd := exec.CommandContext(ctx, "python3", "host.py")
	cmd.Dir = dir
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "AZUREML_MODEL_DIR=" + dir, "AZUREML_ENTRY_SCRIPT=score.py", fmt.Sprintf("REDOUBT_WORKERS=%d", pythonWorkers),
		"REDOUBT_SERVE_ADDRESS=" + l.Addr().String(), "REDOUBT_REQUEST_TIMEOUT_MS=30000", "REDOUBT_START_TIMEOUT_MS=30000", "REDOUBT_MAX_BODY_BYTES=10485760",
	}
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	var list []*worker
	stop := func() {
		_ = cmd.Process.Signal(os.Interrupt)
		for _, w := range list {
			_ = w.conn.Close()
		}
		_ = cmd.Wait()
		_ = os.RemoveAll(dir)
	}
	if err := l.(*net.TCPListener).SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return nil, nil, err
	}
	for range pythonWorkers {
		conn, err := l.Accept()
		if err != nil {
			stop()
			return nil, nil, fmt.Errorf("the host did not come: %w\n%s", err, said.String())
		}
		w := &worker{conn, bufio.NewReader(conn)}
		req, err := http.ReadRequest(w.in)
		if err != nil || req.Header.Get("Upgrade") != "redoubt-worker/1" {
			stop()
			return nil, nil, fmt.Errorf("the host asked otherwise than expected: %w", err)
		}
		if _, err := io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: redoubt-worker/1\r\n\r\n"); err != nil {
			stop()
			return nil, nil, err
		}
		list = append(list, w)
	}
	return list, stop, nil
}

// workerLoad asks each worker by its own connection.
type workerLoad struct {
	workers []*worker
	each    time.Duration
	mu      sync.Mutex
	took    []time.Duration
}

func (l *workerLoad) round(context.Context) (float64, error) {
	var calls atomic.Int64
	var failed atomic.Pointer[error]
	var wg sync.WaitGroup
	begin := time.Now()
	for _, w := range l.workers {
		wg.Go(func() {
			var took []time.Duration
			for time.Since(begin) < l.each {
				at := time.Now()
				if err := w.call(); err != nil {
					failed.CompareAndSwap(nil, &err)
					return
				}
				took = append(took, time.Since(at))
			}
			calls.Add(int64(len(took)))
			l.mu.Lock()
			l.took = append(l.took, took...)
			l.mu.Unlock()
		})
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		return 0, *err
	}
	return float64(calls.Load()) / time.Since(begin).Seconds(), nil
}

func (w *worker) call() error {
	if _, err := fmt.Fprintf(w.conn, "POST /score HTTP/1.1\r\nHost: worker\r\nContent-Type: application/json\r\nX-Request-Id: bench\r\nX-Redoubt-Deadline-Ms: 30000\r\nContent-Length: %d\r\n\r\n%s", len(oneRow), oneRow); err != nil {
		return err
	}
	res, err := http.ReadResponse(w.in, nil)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if _, err := io.Copy(io.Discard, res.Body); err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("the host answered %s", res.Status)
	}
	return nil
}

func (l *workerLoad) percentile(p float64) float64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	slices.Sort(l.took)
	if len(l.took) == 0 {
		return 0
	}
	return float64(l.took[int(p*float64(len(l.took)-1))]) / float64(time.Microsecond)
}
