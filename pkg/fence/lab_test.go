package fence

import (
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/redoubt-ml/redoubt/internal/node/etcdnode"
)

var shared *etcdnode.Node

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "redoubt-fence-")
	if err != nil {
		panic(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	shared, err = etcdnode.Start(ctx, etcdnode.Config{Dir: dir, UnsafeNoFsync: true})
	cancel()
	if err != nil {
		panic(err)
	}
	code := m.Run()
	_ = shared.Close()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// proxy stands between one member and etcd.
type proxy struct {
	l        net.Listener
	up, down valve // requests, answers
	mu       sync.Mutex
	conns    []net.Conn
}

// valve lets bytes through, or holds them.
type valve struct {
	mu   sync.Mutex
	open chan struct{} // nil: open
}

func (v *valve) hold() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.open == nil {
		v.open = make(chan struct{})
	}
}

func (v *valve) release() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.open != nil {
		close(v.open)
		v.open = nil
	}
}

func (v *valve) pass() {
	v.mu.Lock()
	c := v.open
	v.mu.Unlock()
	if c != nil {
		<-c
	}
}

func newProxy(t *testing.T) *proxy {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{l: l}
	target := strings.TrimPrefix(shared.Endpoints()[0], "https://")
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s, err := net.Dial("tcp", target)
			if err != nil {
				_ = c.Close()
				continue
			}
			p.mu.Lock()
			p.conns = append(p.conns, c, s)
			p.mu.Unlock()
			go pump(s, c, &p.up)
			go pump(c, s, &p.down)
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		p.release()
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, c := range p.conns {
			_ = c.Close()
		}
	})
	return p
}

func pump(to, from net.Conn, v *valve) {
	defer to.Close()
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		v.pass()
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// cut holds everything; release lets it go on.
func (p *proxy) cut()     { p.up.hold(); p.down.hold() }
func (p *proxy) release() { p.up.release(); p.down.release() }

func client(t *testing.T, p *proxy, opts ...grpc.DialOption) *clientv3.Client {
	t.Helper()
	conf, err := shared.ClientTLS("test")
	if err != nil {
		t.Fatal(err)
	}
	endpoints := shared.Endpoints()
	if p != nil {
		endpoints = []string{"https://" + p.l.Addr().String()}
	}
	c, err := clientv3.New(clientv3.Config{Endpoints: endpoints, TLS: conf, DialTimeout: 5 * time.Second, Logger: zap.NewNop(), DialOptions: append(opts, grpc.WithNoProxy())})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// quick are short times for tests; New checks them.
func quick() Times {
	return Times{Lease: 2 * time.Second, Renew: 200 * time.Millisecond, Idle: 100 * time.Millisecond, Margin: 600 * time.Millisecond, Watch: time.Second, Wait: 30 * time.Second}
}

// person is a member in a test, with what happens to it.
type person struct {
	*Fence
	t     *testing.T
	stop  context.CancelFunc
	ended chan struct{}
}

func single(t *testing.T, instance string, c *clientv3.Client, change ...func(*Fence)) *person {
	t.Helper()
	f, err := New(Config{
		Client: c, Service: "svc", Instance: instance, Class: SQL, Owners: []string{"a"}, Prefix: "test/" + strings.ReplaceAll(t.Name(), "/", "."), Times: quick(),
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, ch := range change {
		ch(f)
	}
	return &person{Fence: f, t: t, ended: make(chan struct{})}
}

// run starts the member.
func (p *person) run() *person {
	ctx, cancel := context.WithCancel(context.Background())
	p.stop = cancel
	go func() { defer close(p.ended); _ = p.Run(ctx) }()
	p.t.Cleanup(func() {
		cancel()
		select {
		case <-p.ended:
		case <-time.After(20 * time.Second):
			p.t.Error("the member did not stop")
		}
	})
	return p
}

// serves waits for a view.
func (p *person) serves() *View {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for {
		if err := p.Ready(ctx); err != nil {
			p.t.Fatal(err)
		}
		if v, err := p.View(); err == nil {
			return v
		}
	}
}

// join is a member whose owner's state is as of 0.
func join(t *testing.T, instance string, c *clientv3.Client, change ...func(*Fence)) *person {
	t.Helper()
	p := single(t, instance, c, change...).run()
	p.Delivered("a", 0)
	p.serves()
	return p
}

// revoking is a change that is under way.
type revoking struct {
	done chan struct{}
	r    Result
	err  error
}

func revoke(f *Fence, seq uint64) *revoking {
	w := &revoking{done: make(chan struct{})}
	go func() {
		defer close(w.done)
		w.r, w.err = f.Change(context.Background(), "a", seq)
	}()
	return w
}

// returned reports whether it has returned nil by the end of d.
func (w *revoking) returned(d time.Duration) bool {
	select {
	case <-w.done:
		return w.err == nil
	case <-time.After(d):
		return false
	}
}

// revoker is a fence that is no member.
func revoker(t *testing.T, change ...func(*Fence)) *Fence {
	t.Helper()
	return single(t, "revoker", client(t, nil), change...).Fence
}

// both runs a scenario with a rule, where S must hold, and without it, where the scenario must find S broken. A scenario says whether it
// saw an effect, after the change had returned, that was decided before it.
func both(t *testing.T, without off, scenario func(t *testing.T, o off) (broken bool)) {
	if underRace {
		t.Skip("the switches of the rules are turned while the fence runs, which the race detector reports; the rules are shown without it")
	}
	t.Run("with the rule", func(t *testing.T) {
		t.Parallel()
		if scenario(t, off{}) {
			t.Error("an effect was decided before the change and took place after it had returned")
		}
	})
	t.Run("without it", func(t *testing.T) {
		t.Parallel()
		if !scenario(t, without) {
			t.Error("the rule is off and nothing was seen: this test does not test it")
		}
	})
}

func with(o off) func(*Fence) { return func(f *Fence) { f.off = o } }

var errEffect = errors.New("no effect")

// effect says whether something that was decided on v takes effect now.
func (p *person) effect(v *View) bool {
	done := false
	_ = p.Finish(v, func() error { done = true; return nil })
	return done
}
