package blob_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/blob"
	"github.com/redoubt-ml/redoubt/pkg/blob/blobtest"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// address is host:port of the endpoint.
func address(c blob.Config) string {
	u, _ := url.Parse(c.URL)
	e, _ := url.Parse(u.Query().Get("endpoint"))
	return e.Host
}

// proxy carries connections, and cuts them.
type proxy struct {
	addr string
	down atomic.Int64 // bytes that a connection carries towards the client before it is cut; 0 is no bound
	cuts atomic.Int64 // how many connections are still to be cut; negative is all
	up   atomic.Int64 // the same towards the server

	mu    sync.Mutex
	conns []net.Conn
}

func newProxy(t *testing.T, listen, to string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", listen)
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{addr: l.Addr().String()}
	p.cuts.Store(-1)
	t.Cleanup(func() { _ = l.Close(); p.cut() })
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				_ = in.Close()
				continue
			}
			p.mu.Lock()
			p.conns = append(p.conns, in, out)
			p.mu.Unlock()
			pipe := func(to, from net.Conn, bound int64) {
				var r io.Reader = from
				if bound > 0 {
					r = io.LimitReader(from, bound)
				}
				_, _ = io.Copy(to, r)
				if bound > 0 {
					p.cuts.Add(-1)
				}
				_ = to.Close()
				_ = from.Close()
			}
			down, up := p.down.Load(), p.up.Load()
			if p.cuts.Load() == 0 {
				down, up = 0, 0
			}
			go pipe(in, out, down)
			go pipe(out, in, up)
		}
	}()
	return p
}

// cut ends every connection, so that what follows is made anew.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		_ = c.Close()
	}
	p.conns = nil
}

// through gives a Store behind a proxy, and one beside it.
func through(t *testing.T) (*proxy, *blob.Store, *blob.Store) {
	t.Helper()
	c := blobtest.S3(t)
	beside := blobtest.Open(t, c)
	p := newProxy(t, "127.0.0.1:0", address(c))
	c.URL = strings.Replace(c.URL, address(c), p.addr, 1)
	return p, blobtest.Open(t, c), beside
}

// A read that breaks off goes on where it was; one that always breaks off at the same place ends, and says so.
func TestTruncatedAnswers(t *testing.T) {
	const size = 4 << 20
	p, s, beside := through(t)
	if _, err := beside.Put(t.Context(), "a", stream(1, size)); err != nil {
		t.Fatal(err)
	}
	p.down.Store(1 << 20)
	p.cut()
	if sumOf(t, s, "a") != sum(t, stream(1, size)) {
		t.Error("what was read over several connections is not what was put")
	}
	p.down.Store(100) // not even the handshake
	p.cut()
	begun := time.Now()
	if _, err := s.Get(t.Context(), "a"); !fault.Is(err, codes.Unavailable) || strings.Contains(faultMessage(err), p.addr) {
		t.Errorf("got %v", err)
	}
	if _, err := s.Put(t.Context(), "b", strings.NewReader("x")); !fault.Is(err, codes.Unavailable) {
		t.Errorf("got %v", err)
	}
	if d := time.Since(begun); d > 20*time.Second {
		t.Errorf("two calls that could not end well took %v", d)
	}
	p.down.Store(0)
	p.cut()
	put(t, s, "b", "again") // by itself
}

func faultMessage(err error) string {
	var f *fault.Error
	if errors.As(err, &f) {
		return f.Message()
	}
	return err.Error()
}

// An upload whose connections break is whole or not there.
func TestBrokenUploads(t *testing.T) {
	p, s, beside := through(t)
	put(t, beside, "a", "old")
	p.up.Store(3 << 20) // no part fits
	p.cut()
	for _, n := range []int64{5 << 20, 2*blob.PartSize + 1} {
		if _, err := s.Put(t.Context(), "a", stream(1, n)); !fault.Is(err, codes.Unavailable) {
			t.Errorf("%d: %v", n, err)
		}
		if get(t, beside, "a") != "old" {
			t.Error("the old content is gone")
		}
	}
	p.cuts.Store(2) // then it goes better
	p.cut()
	if _, err := s.Put(t.Context(), "a", stream(2, blob.PartSize+1)); err != nil {
		t.Error(err)
	}
	if sumOf(t, beside, "a") != sum(t, stream(2, blob.PartSize+1)) {
		t.Error("what was acknowledged is not whole")
	}
}

// A read is of one version: where it was replaced before the read could be taken up again, the read ends.
func TestReplacedWhileItBrokeOff(t *testing.T) {
	p, s, beside := through(t)
	if _, err := beside.Put(t.Context(), "a", stream(1, 4<<20)); err != nil {
		t.Fatal(err)
	}
	p.down.Store(1 << 20)
	p.cut()
	r, err := s.Get(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	if _, err := io.CopyN(io.Discard, r, 1000); err != nil {
		t.Fatal(err)
	}
	if _, err := beside.Put(t.Context(), "a", stream(2, 4<<20)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, r); !fault.Is(err, codes.Unavailable) || !strings.Contains(faultMessage(err), "replaced") {
		t.Errorf("got %v", err)
	}
}

// server is a versitygw of the test's own, over a folder, on one port through its lives.
type server struct {
	t       *testing.T
	folder  string
	port    string
	cmd     *exec.Cmd
	id, key string
	root    string
}

func newServer(t *testing.T, folder string) (*server, blob.Config) {
	t.Helper()
	c := blobtest.S3(t) // it skips
	id, key := keys(t, c.CredentialsFile)
	s := &server{t: t, folder: folder, port: freePort(t), id: id, key: key, root: filepath.Dir(c.RootFile)}
	if err := os.MkdirAll(filepath.Join(folder, "redoubt"), 0o700); err != nil {
		t.Fatal(err)
	}
	s.start()
	t.Cleanup(s.kill)
	return s, blob.Config{URL: "s3://redoubt?region=us-east-1&endpoint=https://127.0.0.1:" + s.port, CredentialsFile: c.CredentialsFile, RootFile: c.RootFile}
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

func (s *server) start() {
	s.t.Helper()
	s.cmd = exec.Command(os.Getenv(blobtest.EnvServer), "--port", "127.0.0.1:"+s.port, "--cert", filepath.Join(s.root, "server.pem"), "--key", filepath.Join(s.root, "server.key"),
		"--region", "us-east-1", "--keep-alive", "--quiet", "posix", s.folder)
	s.cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY="+s.id, "ROOT_SECRET_KEY="+s.key)
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); ; {
		c, err := net.Dial("tcp", "127.0.0.1:"+s.port)
		if err == nil {
			_ = c.Close()
			return
		}
		if time.Now().After(end) {
			s.t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (s *server) kill() {
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
}

// The store dies in the middle of an upload, and comes back: nothing half is seen, what was acknowledged is there, and the Store goes on by itself.
func TestServerKilledInAnUpload(t *testing.T) {
	server, c := newServer(t, t.TempDir())
	s := blobtest.Open(t, c)
	acknowledged := map[string][32]byte{}
	for round, at := range []int64{1 << 20, 2*blob.PartSize + 1, 3 * blob.PartSize, blob.PartSize} {
		name := fmt.Sprintf("round/%d", round)
		if _, err := s.Put(t.Context(), name, stream(byte(round), blob.PartSize+3)); err != nil {
			t.Fatal(err)
		}
		acknowledged[name] = sum(t, stream(byte(round), blob.PartSize+3))
		// The old content of a name, and a new name.
		target := []string{name, "new/" + name}[round%2]
		r := io.MultiReader(stream(100, at), readerFunc(server.kill), stream(101, 3*blob.PartSize))
		if _, err := s.Put(t.Context(), target, r); !fault.Is(err, codes.Unavailable) {
			t.Errorf("%d: %v", round, err)
		}
		if _, err := s.Get(t.Context(), name); !fault.Is(err, codes.Unavailable) {
			t.Errorf("while it is away: %v", err)
		}
		server.start()
		for name, want := range acknowledged {
			if sumOf(t, s, name) != want {
				t.Errorf("%s was acknowledged and is not whole", name)
			}
		}
		if names := list(t, s, ""); len(names) != len(acknowledged) {
			t.Errorf("%v are seen, %d were acknowledged", names, len(acknowledged))
		}
	}
	put(t, s, "after", "x")
	later := c
	later.Now = func() time.Time { return time.Now().Add(25 * time.Hour) }
	blobtest.Open(t, later)
	if n, err := s.Uploads(t.Context()); n != 0 || err != nil {
		t.Errorf("%d uploads are left, %v", n, err)
	}
	t.Logf("%d uploads broken by a kill, %d acknowledged and whole", 4, len(acknowledged))
}

// The bucket goes while the Store is open: that is not the same as a blob that is not there.
func TestBucketGoes(t *testing.T) {
	server, c := newServer(t, t.TempDir())
	s := blobtest.Open(t, c)
	put(t, s, "a", "x")
	if err := os.Rename(filepath.Join(server.folder, "redoubt"), filepath.Join(server.folder, "away")); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"Get": second(s.Get(t.Context(), "a")), "Stat": second(s.Stat(t.Context(), "a")), "Exists": second(s.Exists(t.Context(), "a")),
		"Put": second(s.Put(t.Context(), "a", strings.NewReader("y"))), "Delete": s.Delete(t.Context(), "a"), "DeletePrefix": s.DeletePrefix(t.Context(), "a"),
	} {
		if !fault.Is(err, codes.Unavailable) || !strings.Contains(faultMessage(err), "bucket") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// The disk below the store fills up, and has room again.
func TestFullBucket(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can mount a small file system")
	}
	folder := t.TempDir()
	if err := unix.Mount("tmpfs", folder, "tmpfs", 0, "size=24m"); err != nil {
		t.Skipf("cannot mount: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(folder, 0); err != nil {
			t.Error(err)
		}
	})
	_, c := newServer(t, folder)
	s := blobtest.Open(t, c)
	put(t, s, "a", "old")
	for _, n := range []int64{64 << 20, 30 << 20} {
		for _, name := range []string{"a", "new/b"} {
			if _, err := s.Put(t.Context(), name, stream(1, n)); fault.ReasonOf(err) != faultv1.Reason_STORAGE_FULL {
				t.Errorf("%d: %v", n, err)
			}
		}
	}
	if get(t, s, "a") != "old" {
		t.Error("the old content is gone")
	}
	if names := list(t, s, ""); len(names) != 1 {
		t.Errorf("half written: %v", names)
	}
	if n, err := s.Uploads(t.Context()); n != 0 || err != nil {
		t.Errorf("%d uploads take space, %v", n, err)
	}
	if _, err := s.Put(t.Context(), "new/b", stream(1, 5<<20)); err != nil {
		t.Errorf("with room again: %v", err)
	}
}

// The answer to the last request of an upload is lost: what stands there decides.
func TestLostAnswerToTheLastRequest(t *testing.T) {
	c := blobtest.S3(t)
	target, _ := url.Parse("https://" + address(c))
	pem, err := os.ReadFile(c.RootFile)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	var lost atomic.Int64
	var drop atomic.Bool // before it is carried out, not after
	forward := httputil.NewSingleHostReverseProxy(target)
	forward.Transport = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}
	front := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost && r.URL.Query().Get("uploadId") != "" {
			if !drop.Load() {
				answer := httptest.NewRecorder()
				forward.ServeHTTP(answer, r)
			}
			lost.Add(1)
			panic(http.ErrAbortHandler)
		}
		forward.ServeHTTP(w, r)
	}))
	pair, err := tls.LoadX509KeyPair(filepath.Join(filepath.Dir(c.RootFile), "server.pem"), filepath.Join(filepath.Dir(c.RootFile), "server.key"))
	if err != nil {
		t.Fatal(err)
	}
	front.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	front.StartTLS()
	defer front.Close()
	beside := blobtest.Open(t, c)
	c.URL = strings.Replace(c.URL, address(c), front.Listener.Addr().String(), 1)
	s := blobtest.Open(t, c)
	if _, err := s.Put(t.Context(), "a", stream(1, blob.PartSize+1)); err != nil || lost.Load() == 0 {
		t.Errorf("%d answers lost: %v", lost.Load(), err)
	}
	want := sum(t, stream(1, blob.PartSize+1))
	if sumOf(t, beside, "a") != want {
		t.Error("not what was put")
	}
	drop.Store(true)
	if _, err := s.Put(t.Context(), "a", stream(2, blob.PartSize+1)); !fault.Is(err, codes.Unavailable) {
		t.Errorf("never carried out, and yet: %v", err)
	}
	if sumOf(t, beside, "a") != want {
		t.Error("the old content is gone")
	}
	if n, err := beside.Uploads(t.Context()); n != 0 || err != nil {
		t.Errorf("%d uploads are left, %v", n, err)
	}
	if _, err := s.Put(t.Context(), "b", bytes.NewReader(make([]byte, 10))); err != nil {
		t.Errorf("one request: %v", err)
	}
}
