//go:build linux

package main

import (
	"sync"
	"time"
)

// catchUp is how far a pace lags behind at most. What is missed by more than that is not made up for, and counted.
const catchUp = 250 * time.Millisecond

// pace says when the next request of all lanes is due: at equal distances, whoever makes it, so that the rate is kept while some lanes are
// given their next right. Who comes late makes his at once.
type pace struct {
	mu     sync.Mutex
	every  time.Duration
	due    time.Time
	missed int64 // requests that were never made
}

func newPace(rate float64) *pace { return &pace{every: time.Duration(float64(time.Second) / rate)} }

// begin starts a stretch of time: what was not made before it is nobody's.
func (p *pace) begin(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.due = now
}

// next takes the next place.
func (p *pace) next(now time.Time) time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	if late := now.Sub(p.due) - catchUp; late > 0 {
		n := int64(late/p.every) + 1
		p.missed += n
		p.due = p.due.Add(time.Duration(n) * p.every)
	}
	due := p.due
	p.due = due.Add(p.every)
	return due
}

// back gives a place back that was taken and not used.
func (p *pace) back() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.due = p.due.Add(-p.every)
}

// lost is how many requests were never made.
func (p *pace) lost() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.missed
}
