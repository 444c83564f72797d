//go:build linux

package main

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// The judge can tell: rounds that are as they should be pass, and each way to go wrong is found, by the histories, by the counts, or by both.
func TestRoundsAreJudged(t *testing.T) {
	begin := time.Now()
	at := func(ms int) time.Time { return begin.Add(time.Duration(ms) * time.Millisecond) }
	ask := func(sent, got int, o outcome) request {
		return request{service: "s", sent: at(sent), got: at(got), outcome: o}
	}
	for name, tc := range map[string]struct {
		requests         []request
		heard            []message
		committed        [2]int64
		fault            string
		counted, ordered bool // no violation, and an order
	}{
		"as it should be":          {requests: []request{ask(11, 15, honoured), ask(101, 108, honoured), ask(102, 109, refused), ask(121, 130, refused)}, counted: true, ordered: true},
		"no answer":                {requests: []request{ask(121, 130, unknown)}, counted: true, ordered: true},
		"begun before the call":    {requests: []request{ask(99, 125, honoured)}, counted: true, ordered: true},
		"honoured after":           {requests: []request{ask(121, 130, honoured)}},
		"honoured again":           {requests: []request{ask(101, 105, refused), ask(106, 109, honoured)}, counted: true},
		"refused though given":     {requests: []request{ask(11, 15, refused), ask(20, 25, honoured)}},
		"refused while given":      {requests: []request{ask(1, 15, refused), ask(16, 25, honoured)}, counted: true, ordered: true},
		"late":                     {requests: []request{ask(99, 5000, honoured)}, ordered: true},
		"a message":                {requests: []request{ask(11, 15, honoured)}, heard: []message{{at(121), at(130)}}, ordered: true},
		"a message of before":      {requests: []request{ask(11, 15, honoured)}, heard: []message{{at(119), at(130)}}, counted: true, ordered: true},
		"a commit":                 {requests: []request{ask(11, 15, honoured)}, committed: [2]int64{3, 4}, ordered: true},
		"nobody saw what is there": {requests: []request{ask(11, 15, honoured)}, committed: [2]int64{3, -1}, counted: true, ordered: true},
	} {
		r := &round{kind: "k", given: span{at(0), at(10)}, taken: span{at(100), at(120)}, requests: tc.requests, heard: tc.heard, committed: tc.committed}
		if got := r.violations(time.Second); (len(got) == 0) != tc.counted {
			t.Errorf("%s: %v", name, got)
		}
		if ok, known := r.ordered("s"); !known || ok != tc.ordered {
			t.Errorf("%s: in order %v, known %v", name, ok, known)
		}
	}
}

// What narrowest leaves out changes nothing: random rounds can be put in order with it if they can without.
func TestNarrowest(t *testing.T) {
	begin := time.Now()
	at := func(ms int) time.Time { return begin.Add(time.Duration(ms) * time.Millisecond) }
	count := [2]int{}
	for seed := range uint64(400) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		r := &round{given: span{at(0), at(10)}, taken: span{at(40), at(60)}}
		all := r.history("s")
		for range 9 {
			sent := rnd.IntN(80)
			got := sent + 1 + rnd.IntN(25)
			o := refused
			if sent+rnd.IntN(30) < 55 {
				o = honoured
			}
			r.requests = append(r.requests, request{service: "s", sent: at(sent), got: at(got), outcome: o})
			all = append(all, porcupine.Operation{ClientId: 2, Input: input{}, Call: at(sent).Sub(begin).Nanoseconds(), Output: o == honoured, Return: at(got).Sub(begin).Nanoseconds()})
		}
		want := porcupine.CheckOperations(register, all)
		if got, known := r.ordered("s"); !known || got != want {
			t.Fatalf("seed %d: %v with what is left, %v with all", seed, got, want)
		}
		if want {
			count[1]++
		} else {
			count[0]++
		}
	}
	if min(count[0], count[1]) < 20 {
		t.Errorf("%d rounds without an order and %d with one: that tells nothing", count[0], count[1])
	}
}
