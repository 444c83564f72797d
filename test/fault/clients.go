//go:build linux

package main

import (
	"context"
	"crypto/tls"
	"net"
	"time"

	"github.com/redoubt-ml/redoubt/test/fault/internal/mesh"
)

// crowd is how many connections a stranger opens.
const crowd = 40

// halfOpen has a stranger open connections, some of them with a handshake, and vanish.
func halfOpen(ctx context.Context, r *round, _ *mesh.Process) error {
	limited, cancel := context.WithTimeout(ctx, backLimit)
	defer cancel()
	for i := range crowd {
		c, err := r.stranger.Dial(limited, "tcp", r.mesh.Address)
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		switch i % 3 {
		case 0:
			err = tls.Client(c, r.mesh.TLS()).HandshakeContext(limited)
		case 1:
			_, err = c.Write([]byte{22, 3, 1, 2, 0, 1}) // the begin of a hello
		}
		if err != nil {
			return err
		}
	}
	gateway := r.mesh.Of("gateway")[0].Host
	if err := r.mesh.Network().Cut(r.stranger, gateway); err != nil {
		return err
	}
	r.hold(time.Second, 4*time.Second)
	return r.mesh.Network().Heal()
}

// slowReader has a client ask for much and read none of it.
func slowReader(ctx context.Context, r *round, _ *mesh.Process) error {
	limited, cancel := context.WithTimeout(ctx, backLimit)
	defer cancel()
	stop, err := r.load.ReadNothing(limited, func(ctx context.Context, addr string) (net.Conn, error) { return r.stranger.Dial(ctx, "tcp", addr) }, crowd)
	if err != nil {
		return err
	}
	defer stop()
	r.hold(2*time.Second, 4*time.Second)
	return nil
}
