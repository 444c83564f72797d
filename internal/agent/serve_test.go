package agent_test

import (
	"bufio"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	"github.com/redoubt-ml/redoubt/internal/agent"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/svid"
)

const (
	workspace = "subscriptions/s/resourceGroups/g/workspaces/w"
	patience  = 60 * time.Second // for what has to come, however slow the machine is
)

var mesh = spiffeid.RequireTrustDomainFromString("mesh.test")

// models serves the platform's models.
type models struct {
	inferencev1.UnimplementedModelServiceServer
	p *platform
}

// DownloadModelVersion implements inferencev1.ModelServiceServer.
func (m models) DownloadModelVersion(req *inferencev1.DownloadModelVersionRequest, s grpc.ServerStreamingServer[inferencev1.DownloadModelVersionResponse]) error {
	files, ok := m.p.models[req.GetName()]
	if !ok {
		return fault.NotFound("no such version")
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		data := files[name]
		sum := sha256.Sum256(data)
		if m.p.damaged {
			data = []byte(strings.ToUpper(string(data)))
		}
		msg := &inferencev1.DownloadModelVersionResponse{File: &inferencev1.ModelFile{Path: name, Size: int64(len(data)), Digest: sum[:]}}
		for piece := range slices.Chunk(data, max(1, min(len(data)/2, 1<<20))) {
			msg.Data = piece
			if err := s.Send(msg); err != nil {
				return err
			}
			msg = &inferencev1.DownloadModelVersionResponse{}
		}
	}
	return nil
}

// inference is the listener for replicas, over real mutual TLS.
type inference struct {
	t       *testing.T
	addr    string
	workers chan *worker
}

// worker is inference's end of a worker's connection.
type worker struct {
	*tls.Conn
	number int
	r      *bufio.Reader
	peer   *x509.Certificate
}

func newInference(t *testing.T, ca *svid.Authority) *inference {
	t.Helper()
	id, err := svid.ServiceID(mesh, "inference")
	must(t, err)
	key, err := svid.NewKey()
	must(t, err)
	chain, err := ca.Sign(key.Public(), id, time.Hour, time.Now())
	must(t, err)
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	l := tls.NewListener(inner, &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"redoubt-replica/1"}, ClientAuth: tls.RequireAnyClientCert,
		Certificates: []tls.Certificate{{Certificate: chain, PrivateKey: key}},
		VerifyConnection: func(cs tls.ConnectionState) error {
			id, err := svid.Verify(cs.PeerCertificates, mesh, x509bundle.FromX509Authorities(mesh, ca.Bundle()), x509.ExtKeyUsageClientAuth, time.Now())
			if err == nil && id.Path() != "/workspace/ws_1/run/"+runUID {
				err = errors.New("another run")
			}
			return err
		},
	})
	in := &inference{t: t, addr: inner.Addr().String(), workers: make(chan *worker, 64)}
	var taking sync.WaitGroup
	taking.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			taking.Go(func() { in.take(c.(*tls.Conn)) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		taking.Wait()
	})
	return in
}

func (in *inference) take(c *tls.Conn) {
	w := &worker{Conn: c, r: bufio.NewReader(c)}
	line, err := w.r.ReadString('\n')
	var said struct{ Worker int }
	if err != nil || json.Unmarshal([]byte(line), &said) != nil {
		_ = c.Close()
		return
	}
	w.number, w.peer = said.Worker, c.ConnectionState().PeerCertificates[0]
	if _, err := io.WriteString(c, "ok\n"); err == nil {
		in.workers <- w
	}
}

// worker waits for the next connection.
func (in *inference) worker() *worker {
	in.t.Helper()
	select {
	case w := <-in.workers:
		must(in.t, w.SetDeadline(time.Now().Add(patience)))
		in.t.Cleanup(func() { _ = w.Close() })
		return w
	case <-time.After(patience):
		in.t.Fatal("no worker has connected")
		return nil
	}
}

// send sends one request.
func (w *worker) send(t *testing.T, body, headers string) {
	t.Helper()
	_, err := fmt.Fprintf(w, "POST /score HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%s\r\n%s", len(body), headers, body)
	must(t, err)
}

// answer reads one answer; 0 says that the connection broke.
func (w *worker) answer() (int, string) {
	res, err := http.ReadResponse(w.r, &http.Request{Method: http.MethodPost})
	if err != nil {
		return 0, err.Error()
	}
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return 0, err.Error()
	}
	return res.StatusCode, string(body)
}

func (w *worker) ask(t *testing.T, body string) (int, string) {
	t.Helper()
	w.send(t, body, "")
	return w.answer()
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// replica is a platform whose run serves.
type replica struct {
	*platform
	in   *inference
	done chan *computev1.ReportRunRequest
}

func newReplica(t *testing.T, script string, change ...func(*replica)) *replica {
	t.Helper()
	needSandbox(t)
	needPython(t)
	ca, err := svid.NewAuthority(mesh, time.Now(), time.Hour)
	must(t, err)
	p := newPlatform(t)
	p.models = map[string]map[string][]byte{workspace + "/models/iris/versions/3": {"model.json": []byte(`{"w":1}`), "deep/down.txt": []byte("deep")}}
	p.ca = ca
	r := &replica{platform: p, in: newInference(t, ca), done: make(chan *computev1.ReportRunRequest, 1)}
	p.files["src/score.py"] = []byte(script)
	p.task.WorkspaceUid = "ws_1"
	p.task.Serve = &computev1.ServeSpec{
		Models: []string{workspace + "/models/iris/versions/3"}, EntryScript: "src/score.py", Workers: 1, Address: r.in.addr, MaxBodyBytes: 1 << 20,
		RequestTimeout: durationpb.New(patience), StartTimeout: durationpb.New(patience),
	}
	for _, c := range change {
		c(r)
	}
	return r
}

// start carries the replica in the background.
func (r *replica) start(change ...func(*agent.Config)) {
	cfg := r.config()
	for _, c := range change {
		c(&cfg)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*patience)
	over := make(chan struct{})
	go func() {
		defer close(over)
		if err := r.try(ctx, cfg); err != nil {
			r.t.Errorf("the agent gave up: %v", err)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		if len(r.reports) == 1 {
			r.done <- r.reports[0]
		}
		close(r.done)
	}()
	r.t.Cleanup(func() {
		r.set(func() { r.cancel = true })
		<-over
		cancel()
	})
}

// report waits for the end.
func (r *replica) report() *computev1.ReportRunRequest {
	r.t.Helper()
	report, ok := <-r.done
	if !ok {
		r.t.Fatal("there is no report")
	}
	return report
}

// stop asks the replica to end.
func (r *replica) stop() *computev1.ReportRunRequest {
	r.t.Helper()
	r.set(func() { r.cancel = true })
	return r.report()
}

func (r *replica) logged() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return string(r.log)
}
