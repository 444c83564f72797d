package svid

import (
	"context"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

// handshakeTimeout bounds a handshake, and on a server all that comes before the first request: who connects and says
// nothing costs a socket for no longer than this.
const handshakeTimeout = 10 * time.Second

// PeerInfo is what a handshake of Source's credentials proved. PeerID is made once per connection.
type PeerInfo struct {
	credentials.TLSInfo
	PeerID string // spiffe://…
}

// PeerFrom is the SPIFFE ID that the other side of the current call proved; false on a connection that proves none. It
// does not allocate.
func PeerFrom(ctx context.Context) (id string, ok bool) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return "", false
	}
	info, ok := p.AuthInfo.(*PeerInfo)
	if !ok || info.PeerID == "" {
		return "", false
	}
	return info.PeerID, true
}

// peerOf runs after the handshake, in which VerifyConnection has accepted the leaf.
func peerOf(info credentials.TLSInfo) (credentials.AuthInfo, error) {
	certs := info.State.PeerCertificates
	if len(certs) == 0 || len(certs[0].URIs) != 1 {
		return nil, untrusted(nil, "the peer has shown no SVID")
	}
	return &PeerInfo{TLSInfo: info, PeerID: certs[0].URIs[0].String()}, nil
}

// creds is gRPC's TLS with a bound on handshakes, a count of those that failed, and an AuthInfo of ours.
type creds struct {
	credentials.TransportCredentials
	timeout time.Duration
	onError func(error)
	wrap    func(credentials.TLSInfo) (credentials.AuthInfo, error)
	stand   *conns // that are closed when their root goes; nil keeps none
	judge   func(chain []*x509.Certificate) error
}

func (c *creds) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	// The deadline is not lifted here: it also covers the HTTP/2 preface, after which grpc.Server lifts it.
	if err := raw.SetDeadline(time.Now().Add(c.timeout)); err != nil {
		return nil, nil, c.failed(err)
	}
	raw, kept := c.keep(raw)
	conn, info, err := c.TransportCredentials.ServerHandshake(raw)
	return c.finish(kept, conn, info, err)
}

func (c *creds) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	raw, kept := c.keep(raw)
	conn, info, err := c.TransportCredentials.ClientHandshake(ctx, authority, raw)
	return c.finish(kept, conn, info, err)
}

func (c *creds) keep(raw net.Conn) (net.Conn, *conn) {
	if c.stand == nil {
		return raw, nil
	}
	kept := c.stand.add(raw)
	return kept, kept
}

func (c *creds) finish(kept *conn, conn net.Conn, info credentials.AuthInfo, err error) (net.Conn, credentials.AuthInfo, error) {
	if err != nil {
		if kept != nil {
			_ = kept.Close()
		}
		return nil, nil, c.failed(err)
	}
	t, ok := info.(credentials.TLSInfo)
	if !ok {
		_ = conn.Close()
		return nil, nil, c.failed(fmt.Errorf("svid: unexpected %T from the TLS credentials", info))
	}
	own, err := c.wrap(t)
	if err == nil && kept != nil {
		// Noted first and judged again then: a root that goes in between is seen by one of the two.
		c.stand.shown(kept, t.State.PeerCertificates)
		err = c.judge(t.State.PeerCertificates)
	}
	if err != nil {
		_ = conn.Close()
		return nil, nil, c.failed(err)
	}
	return conn, own, nil
}

func (c *creds) failed(err error) error {
	if c.onError != nil {
		c.onError(err)
	}
	return err
}

func (c *creds) Clone() credentials.TransportCredentials {
	d := *c
	d.TransportCredentials = c.TransportCredentials.Clone()
	return &d
}

// spiffeLog sends go-spiffe's messages to slog. Its errors are retries, so they are warnings here.
type spiffeLog struct{ log *slog.Logger }

func (l spiffeLog) Debugf(f string, a ...any) { l.log.Debug(fmt.Sprintf(f, a...)) }
func (l spiffeLog) Infof(f string, a ...any)  { l.log.Debug(fmt.Sprintf(f, a...)) }
func (l spiffeLog) Warnf(f string, a ...any)  { l.log.Warn(fmt.Sprintf(f, a...)) }
func (l spiffeLog) Errorf(f string, a ...any) { l.log.Warn(fmt.Sprintf(f, a...)) }
