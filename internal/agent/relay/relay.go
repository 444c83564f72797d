package relay

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redoubt-ml/redoubt/pkg/svid"
)

const (
	// Path is where a worker asks.
	Path = "/redoubt/worker"
	// Upgrade is what a worker asks for.
	Upgrade = "redoubt-worker/1"
	// Protocol is what is spoken with inference's listener (ALPN).
	Protocol = "redoubt-replica/1"

	dialTimeout = 10 * time.Second // all that comes before a connection is a worker's
	slotTimeout = time.Second      // for the connection of a worker that has just died to be noticed
	bufferSize  = 32 << 10
	mostReply   = 256 // bytes of a line of inference's
)

// Config of a Relay. Address, Workers and Identity are required.
type Config struct {
	// Address is host:port of inference's listener for replicas.
	Address string
	// Workers is how many connections there may be at once; workers are numbered from 0.
	Workers int
	// Identity is the agent's SVID as it is now.
	Identity func() (*svid.SVID, error)
	// Changed is called when connecting has begun to fail, with why, and with "" when it works again. It may be nil.
	Changed func(problem string)
	// Now is the clock of certificates; nil means time.Now.
	Now    func() time.Time
	Logger *slog.Logger
}

// Relay is an http.Handler for Path, for an http.Server over plain TCP.
type Relay struct {
	cfg     Config
	dialer  tls.Dialer
	slots   chan struct{}
	buffers sync.Pool
	ctx     context.Context //nolint:containedctx // it is the life of the connections, which no call has
	end     context.CancelFunc

	mu      sync.Mutex
	failing bool
	closed  bool
	joined  sync.WaitGroup
}

// New makes a Relay. Close it.
func New(cfg Config) (*Relay, error) {
	if cfg.Address == "" || cfg.Workers < 1 || cfg.Identity == nil {
		return nil, errors.New("relay: Address, Workers and Identity are required")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Changed == nil {
		cfg.Changed = func(string) {}
	}
	r := &Relay{cfg: cfg, slots: make(chan struct{}, cfg.Workers), buffers: sync.Pool{New: func() any { return new([bufferSize]byte) }}}
	r.dialer.Config = svid.HeldClientTLS(cfg.Identity, "inference", cfg.Now)
	r.dialer.Config.NextProtos = []string{Protocol}
	r.dialer.Config.DynamicRecordSizingDisabled = true // an answer is one write
	r.ctx, r.end = context.WithCancel(context.Background())
	return r, nil
}

// Close ends all connections, and waits until they have ended.
func (r *Relay) Close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.end()
	r.joined.Wait()
}

// enter counts a connection that Close has to wait for.
func (r *Relay) enter() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.closed {
		r.joined.Add(1)
	}
	return !r.closed
}

func refuse(w http.ResponseWriter, status int, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"error": message}) // fails when the worker is gone
}

// ServeHTTP implements http.Handler. It returns when the connection has ended.
func (r *Relay) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	number, err := strconv.Atoi(req.Header.Get("X-Redoubt-Worker"))
	switch {
	case req.Method != http.MethodGet || !strings.EqualFold(req.Header.Get("Connection"), "upgrade") || req.Header.Get("Upgrade") != Upgrade:
		refuse(w, http.StatusUpgradeRequired, "this is for workers of the scoring host: GET with Connection: Upgrade and Upgrade: "+Upgrade)
		return
	case err != nil || number < 0 || number >= r.cfg.Workers:
		refuse(w, http.StatusBadRequest, fmt.Sprintf("X-Redoubt-Worker is 0 to %d", r.cfg.Workers-1))
		return
	case req.ContentLength != 0:
		refuse(w, http.StatusBadRequest, "a request for an upgrade has no body")
		return
	}
	if !r.enter() {
		refuse(w, http.StatusServiceUnavailable, "the replica is ending")
		return
	}
	defer r.joined.Done()
	ctx, cancel := context.WithCancel(r.ctx)
	defer cancel()
	defer context.AfterFunc(req.Context(), cancel)()
	if !r.slot(ctx) {
		refuse(w, http.StatusServiceUnavailable, "as many connections as the replica has workers are open")
		return
	}
	defer func() { <-r.slots }()
	up, err := r.dial(ctx, number)
	r.tell(ctx, err)
	if err != nil {
		refuse(w, http.StatusServiceUnavailable, "inference cannot be reached now")
		return
	}
	defer func() { _ = up.Close() }()
	down, err := hijack(w)
	if err != nil {
		r.cfg.Logger.Debug("a worker's connection could not be taken over", "error", err)
		return
	}
	defer func() { _ = down.Close() }()
	r.join(up, down)
}

// slot waits a little for room: a worker that was started again may ask before the end of the one before it is noticed.
func (r *Relay) slot(ctx context.Context) bool {
	late := time.NewTimer(slotTimeout)
	defer late.Stop()
	select {
	case r.slots <- struct{}{}:
		return true
	case <-late.C:
	case <-ctx.Done():
	}
	return false
}

// dial connects with inference as a worker, and returns when inference has taken it.
func (r *Relay) dial(ctx context.Context, number int) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	up, err := r.dialer.DialContext(ctx, "tcp", r.cfg.Address)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = up.Close() })
	err = greet(up, number)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		_ = up.Close()
		return nil, err
	}
	return up, nil
}

// greet names the worker and waits for inference's word. It reads byte by byte: what follows is for the worker.
func greet(up net.Conn, number int) error {
	if c, ok := up.(*tls.Conn); !ok || c.ConnectionState().NegotiatedProtocol != Protocol {
		return errors.New("the listener does not speak " + Protocol)
	}
	if _, err := fmt.Fprintf(up, "{\"worker\":%d}\n", number); err != nil {
		return err
	}
	var line []byte
	for one := make([]byte, 1); len(line) < mostReply; {
		if _, err := io.ReadFull(up, one); err != nil {
			return err
		}
		if one[0] != '\n' {
			line = append(line, one[0])
			continue
		}
		if string(line) != "ok" {
			return fmt.Errorf("inference refused the worker: %q", line)
		}
		return nil
	}
	return errors.New("inference answered a worker without end")
}

// tell says when connecting begins to fail, and when it works again.
func (r *Relay) tell(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if failing := err != nil; failing != r.failing {
		r.failing = failing
		if failing {
			r.cfg.Logger.Warn("workers cannot be connected with inference", "error", err)
			r.cfg.Changed("inference does not take the replica's connections yet; workers try again")
		} else {
			r.cfg.Changed("")
		}
	}
}

// worker is a worker's side: what the server had read already comes first.
type worker struct {
	net.Conn
	read *bufio.Reader // nil when it was empty
}

// Read implements net.Conn.
func (w *worker) Read(b []byte) (int, error) {
	if w.read != nil {
		if w.read.Buffered() > 0 {
			return w.read.Read(b)
		}
		w.read = nil
	}
	return w.Conn.Read(b)
}

// hijack answers 101 and takes the connection over from the server.
func hijack(w http.ResponseWriter) (net.Conn, error) {
	c, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, err
	}
	if err := c.SetDeadline(time.Time{}); err != nil {
		_ = c.Close()
		return nil, err
	}
	if _, err := io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+Upgrade+"\r\n\r\n"); err != nil {
		_ = c.Close()
		return nil, err
	}
	return &worker{Conn: c, read: rw.Reader}, nil
}

// join copies both ways until one side ends, or the relay does. Then both are closed.
func (r *Relay) join(up, down net.Conn) {
	ended := sync.OnceFunc(func() {
		_ = up.Close()
		_ = down.Close()
	})
	defer context.AfterFunc(r.ctx, ended)()
	var both sync.WaitGroup
	for _, way := range [][2]net.Conn{{up, down}, {down, up}} {
		both.Go(func() {
			defer ended()
			r.copy(way[0], way[1])
		})
	}
	both.Wait()
}

func (r *Relay) copy(to io.Writer, from io.Reader) {
	buffer, _ := r.buffers.Get().(*[bufferSize]byte)
	defer r.buffers.Put(buffer)
	// Without ReaderFrom and WriterTo, whose buffers are not ours.
	_, _ = io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, buffer[:])
}
