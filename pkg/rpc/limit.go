package rpc

import "sync/atomic"

// counter picks one of n.
type counter struct{ n atomic.Uint64 }

func (c *counter) every(n uint64) bool { return c.n.Add(1)%n == 0 }
