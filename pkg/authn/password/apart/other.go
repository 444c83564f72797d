//go:build !linux

package apart

import (
	"errors"
	"time"
)

// Supported says whether this system can have workers.
const Supported = false

var errSystem = errors.New("apart: only Linux can have hashes computed apart")

func possible() error { return errSystem }

// Maybe does nothing: only Linux has workers.
func Maybe() {}

// worker is never made here.
type worker struct {
	timer *time.Timer
}

func start(uint8, time.Duration) (*worker, error) { return nil, errSystem }

func (*worker) do(Job, time.Duration) ([]byte, error) { return nil, errSystem }

func (*worker) gone() bool { return true }

func (*worker) end() {}
