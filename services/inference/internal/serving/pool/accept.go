package pool

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/redoubt-ml/redoubt/pkg/svid"
)

// Protocol is what agents and this listener agree on in the handshake (ALPN).
const Protocol = "redoubt-replica/1"

const (
	// mostHandshakes is how many connections may be on their way to being a worker's.
	mostHandshakes = 512
	// maxHello bounds the line in which a connection says whose it is.
	maxHello = 64
	// maxWorker bounds the number of a worker.
	maxWorker = 255
)

var (
	errNotExpected = errors.New("this run is not expected here, or not in this workspace")
	errTooMany     = errors.New("this run has as many connections as a replica may have")
	errProtocol    = errors.New("the peer does not speak " + Protocol)
)

// Serve takes workers' connections from l until ctx ends, and closes l and all of them then.
func (p *Pool) Serve(ctx context.Context, l net.Listener) error {
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(ctx)
	defer wg.Wait()
	defer cancel()
	defer p.close()
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	wg.Go(func() { p.sweepUntil(ctx) })
	slots := make(chan struct{}, mostHandshakes)
	for {
		raw, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
				continue
			}
			return err
		}
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			_ = raw.Close()
			return nil
		}
		wg.Go(func() {
			defer func() { <-slots }()
			if err := p.welcome(ctx, raw); err != nil {
				_ = raw.Close()
				p.cfg.Logger.Debug("a replica's connection was refused", "from", raw.RemoteAddr().String(), "error", err.Error())
			}
		})
	}
}

func (p *Pool) sweepUntil(ctx context.Context) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	var found []*Conn
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			found = p.sweep(found)
		}
	}
}

// welcome finishes the handshake of a connection and takes it into the pool.
func (p *Pool) welcome(ctx context.Context, raw net.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, p.cfg.HandshakeTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = raw.Close() })
	defer stop()
	var peer svid.ID
	cfg := p.cfg.TLS(func(id spiffeid.ID) error {
		var ok bool
		if peer, ok = svid.ParseID(id.String()); !ok || peer.Kind != svid.KindRun || peer.TrustDomain != p.cfg.TrustDomain || !p.expected(peer.Name, peer.Workspace) {
			return errNotExpected
		}
		return nil
	})
	cfg.NextProtos = []string{Protocol}
	cfg.DynamicRecordSizingDisabled = true // a request is one write
	counted := &counting{Conn: raw}
	conn := tls.Server(counted, cfg)
	if err := conn.HandshakeContext(ctx); err != nil {
		return err
	}
	if conn.ConnectionState().NegotiatedProtocol != Protocol {
		return errProtocol
	}
	c, err := newConn(p, conn, counted, raw)
	if err != nil {
		return err
	}
	if err := c.hello(); err != nil {
		return err
	}
	if !stop() { // its time is over, and it is closed
		return ctx.Err()
	}
	if err := p.add(c, peer.Name, peer.Workspace); err != nil {
		return err
	}
	return nil
}

// hello reads which worker the connection is and says that it is taken.
func (c *Conn) hello() error {
	line, err := c.r.ReadSlice('\n')
	if err != nil {
		return err
	}
	if len(line) > maxHello {
		return errProtocol
	}
	var said struct {
		Worker *int `json:"worker"`
	}
	if err := json.Unmarshal(line, &said); err != nil || said.Worker == nil || *said.Worker < 0 || *said.Worker > maxWorker || c.r.Buffered() > 0 {
		return errProtocol
	}
	if _, err := io.WriteString(c.tls, "ok\n"); err != nil {
		return err
	}
	return nil
}
