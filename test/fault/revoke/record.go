//go:build linux

package main

import (
	"net/http"
	"sync"
	"time"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// outcome is what became of a request.
type outcome int

const (
	// unknown says nothing of the right: there was no answer, or one that is of the installation's state.
	unknown outcome = iota
	// honoured is every answer that only somebody with the right gets, also one that a request is wrong.
	honoured
	// refused is the answer that the right is not there.
	refused
)

// judge tells what an error says of the right.
func judge(err error) outcome {
	if err == nil {
		return honoured
	}
	f := fault.Describe(err)
	switch fault.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled, codes.ResourceExhausted, codes.Aborted, codes.Internal, codes.Unknown:
		return unknown
	case codes.Unauthenticated, codes.PermissionDenied, codes.NotFound:
		switch fault.ReasonOf(f) {
		case faultv1.Reason_TOKEN_EXPIRED, faultv1.Reason_TOKEN_INVALID, faultv1.Reason_TOKEN_PROOF_INVALID, faultv1.Reason_AUTHZ_STATE_STALE:
			return unknown // of a clock that is off: refused, and not for what is asked about here
		}
		return refused
	}
	return honoured
}

// request is one request of the one whose right it is, by this process's clock.
type request struct {
	service   string
	sent, got time.Time
	outcome   outcome
	why       string
}

// span is a call that gives or takes away. got is zero while it is not known to have returned.
type span struct{ sent, got time.Time }

// round is one right, from before it was given until well after it was taken away.
type round struct {
	lane, number int
	kind, fault  string
	writes       bool // versions of a secret
	given, taken span
	pending      []string // instances that the first call named
	first        time.Duration
	outcome      string // of the first call: "returned", "pending", "unknown"
	repeated     string // of the repetition, while a fault lasts

	mu       sync.Mutex
	requests []request
	shed     int

	heard     []message // on the open stream
	ended     time.Time // of the stream
	committed [2]int64  // versions of the secret at the return and at the end; -1 where nobody could tell
}

// message is one of the open stream, about something of which the time is known when it was begun.
type message struct{ begun, got time.Time }

func (r *round) add(q request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests = append(r.requests, q)
}

// scored is what a status of the scoring listener says: refused is 401 alone, and 503 comes from an endpoint without replicas.
func scored(status int) error {
	switch status {
	case http.StatusUnauthorized:
		return fault.New(codes.Unauthenticated, faultv1.Reason_TOKEN_REVOKED, "the key opens nothing")
	case http.StatusTooManyRequests:
		return fault.New(codes.ResourceExhausted, faultv1.Reason_RATE_LIMITED, "too many")
	}
	return nil
}
