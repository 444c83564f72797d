//go:build linux

package main

import (
	"testing"
	"time"
)

func TestPace(t *testing.T) {
	p := newPace(500)
	start := time.Unix(1000, 0)
	p.begin(start)
	at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
	for i, c := range []struct{ now, due int }{{0, 0}, {0, 2}, {0, 4}, {100, 6}, {100, 8}} { // late ones are due at once, each in its place
		if got := p.next(at(c.now)); !got.Equal(at(c.due)) {
			t.Errorf("%d: due after %v", i, got.Sub(start))
		}
	}
	p.back()
	if got := p.next(at(100)); !got.Equal(at(8)) {
		t.Errorf("given back, and due after %v", got.Sub(start))
	}
	if p.lost() != 0 {
		t.Errorf("%d lost", p.lost())
	}
	if got := p.next(at(1010)); p.lost() != 376 || !got.Equal(at(762)) { // 10, 12, … 760 are lost
		t.Errorf("after a second: due after %v, %d lost", got.Sub(start), p.lost())
	}
}
