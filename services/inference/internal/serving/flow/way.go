package flow

import (
	"compress/gzip"
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redoubt-ml/redoubt/pkg/observe"
	"github.com/redoubt-ml/redoubt/services/inference/internal/serving/pool"
)

// Config of a Way. All of it is required.
type Config struct {
	Pool *pool.Pool
	Log  Log
	// OnUnknown is told of each request to what is no endpoint.
	OnUnknown func()
	Tracing   *observe.Tracing
	// MaxInFlightBytes bounds the bodies that are in memory at a time.
	MaxInFlightBytes int64
	// MaxMirrored is how many copies for mirrors may be under way; others are not made.
	MaxMirrored int
	// BodyGrace is how long a body may take besides a second for each 256 KiB of it.
	BodyGrace time.Duration
	// IntN gives a number from 0 to n-1. Safe for concurrent use.
	IntN   func(n int) int
	Now    func() time.Time
	Logger *slog.Logger
}

// Way is what all requests share: the endpoints, the workers, and what is bounded over all. It is safe for concurrent use.
type Way struct {
	cfg Config

	setting sync.Mutex // of Set and Remove, one at a time
	byUID   sync.Map   // string → *State
	byName  sync.Map   // full name → uid

	inFlight atomic.Int64 // bytes
	mirrored chan struct{}
	mirrors  sync.WaitGroup
	unknown  atomic.Int64
	bodies   sync.Pool // *pool.Body
	records  sync.Pool // *Record
	unzips   sync.Pool // *gzip.Reader
	copies   sync.Pool // *[]byte
}

// New makes a Way.
func New(cfg Config) *Way {
	s := &Way{cfg: cfg, mirrored: make(chan struct{}, cfg.MaxMirrored)}
	s.bodies.New = func() any { return pool.NewBody(smallBody) }
	s.records.New = func() any { return newRecord() }
	s.unzips.New = func() any { return new(gzip.Reader) }
	s.copies.New = func() any { b := make([]byte, CopySize); return &b }
	return s
}

// Set makes e what the listener knows of the endpoint. When it returns, no request that begins later sees the earlier state, and none
// that is still on its way to a worker gets there by a credential that e does not have.
func (s *Way) Set(e *Endpoint) {
	s.setting.Lock()
	defer s.setting.Unlock()
	fresh := newState(e)
	for _, d := range e.Deployments {
		s.cfg.Pool.Configure(d.UID, d.Replicas, d.QueueLength)
	}
	old, _ := s.Endpoint(e.UID)
	s.byUID.Store(e.UID, fresh)
	if old != nil && old.Name != e.Name {
		s.byName.CompareAndDelete(old.Name, e.UID)
	}
	s.byName.Store(e.Name, e.UID)
	s.retire(old, fresh)
}

// Remove forgets an endpoint. When it returns, a request that begins later finds none.
func (s *Way) Remove(endpointUID string) {
	s.setting.Lock()
	defer s.setting.Unlock()
	old, ok := s.Endpoint(endpointUID)
	if !ok {
		return
	}
	s.byUID.Delete(endpointUID)
	s.byName.CompareAndDelete(old.Name, endpointUID)
	s.retire(old, nil)
}

// retire ends the queues of deployments that are no longer there. It comes after the new state stands, so that who waited in one finds
// where to go.
func (s *Way) retire(old, fresh *State) {
	if old == nil {
		return
	}
	for _, d := range old.Deployments {
		if fresh == nil || fresh.Deployments[d.ID] == nil || fresh.Deployments[d.ID].UID != d.UID {
			s.cfg.Pool.Retire(d.UID)
		}
	}
}

// Endpoint is what is known of an endpoint by its uid.
func (s *Way) Endpoint(uid string) (*State, bool) {
	v, ok := s.byUID.Load(uid)
	if !ok {
		return nil, false
	}
	e, ok := v.(*State)
	return e, ok
}

// EndpointNamed is what is known of an endpoint by its full name.
func (s *Way) EndpointNamed(name string) (*State, bool) {
	uid, ok := s.byName.Load(name)
	if !ok {
		return nil, false
	}
	u, _ := uid.(string)
	return s.Endpoint(u)
}

// Expect lets the workers of a replica connect from now on.
func (s *Way) Expect(runUID, workspaceUID, deploymentUID string) {
	s.cfg.Pool.Expect(runUID, workspaceUID, deploymentUID)
}

// Forget closes the connections of a replica and takes no more. What it was answering is cut.
func (s *Way) Forget(runUID string) { s.cfg.Pool.Forget(runUID) }

// Ready is how many workers of a replica are connected.
func (s *Way) Ready(runUID string) int { return s.cfg.Pool.Ready(runUID) }

// Changed has a token after workers came or went.
func (s *Way) Changed() <-chan struct{} { return s.cfg.Pool.Changed() }

// Drain returns when no request is on a replica's connections any more. Take it out of its deployment by Set first.
func (s *Way) Drain(ctx context.Context, runUID string) error { return s.cfg.Pool.Drain(ctx, runUID) }

// Unknown is how many requests named an endpoint that is none. They have no workspace, and so no record.
func (s *Way) Unknown() int64 { return s.unknown.Load() }

// CountUnknown counts one of those.
func (s *Way) CountUnknown() {
	s.unknown.Add(1)
	s.cfg.OnUnknown()
}

// Workers is how many workers are connected of the replicas of a deployment that take requests.
func (s *Way) Workers(deploymentUID string) int { return s.cfg.Pool.Workers(deploymentUID) }

// Waiting is how many requests wait for a worker of a deployment.
func (s *Way) Waiting(deploymentUID string) int { return s.cfg.Pool.Waiting(deploymentUID) }

// Hold counts n bytes of memory, if there are any left. Free has to follow.
func (s *Way) Hold(n int64) bool {
	if s.inFlight.Add(n) > s.cfg.MaxInFlightBytes {
		s.inFlight.Add(-n)
		return false
	}
	return true
}

// Free gives bytes back that Hold has counted.
func (s *Way) Free(n int64) { s.inFlight.Add(-n) }

// InFlight is how many bytes are held.
func (s *Way) InFlight() int64 { return s.inFlight.Load() }

// BodyTime is when a body of n bytes has to have come that began to come at begin.
func (s *Way) BodyTime(begin time.Time, n int64) time.Time {
	return begin.Add(s.cfg.BodyGrace + time.Duration(n)*time.Second/BodyRate)
}

// Mirroring is how many copies for mirrors are under way.
func (s *Way) Mirroring() int { return len(s.mirrored) }

// Wait returns when none is any more.
func (s *Way) Wait() { s.mirrors.Wait() }

// Buffer gives a buffer of CopySize bytes. Return has to follow.
func (s *Way) Buffer() *[]byte {
	b, _ := s.copies.Get().(*[]byte)
	return b
}

// Return takes a buffer back.
func (s *Way) Return(b *[]byte) { s.copies.Put(b) }
