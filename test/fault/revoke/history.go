//go:build linux

package main

import (
	"cmp"
	"math"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"
)

// input is an operation on the register that a right is: written by who gives and takes, read by every request.
type input struct {
	write bool
	value bool // of a write
}

// register is what a right has to be for everybody who asks one service: an atomic register, which is false before the round.
var register = porcupine.Model{
	Init: func() any { return false },
	Step: func(state, in, out any) (bool, any) {
		if i := in.(input); i.write {
			return true, i.value
		}
		return state == out, state
	},
}

// historyTime bounds the search for an order.
const historyTime = 20 * time.Second

// history is a round at one service as porcupine takes it. Reads that say nothing are left out; a call that has not returned may take effect at
// any time after it was sent.
func (r *round) history(service string) []porcupine.Operation {
	at := func(t time.Time) int64 {
		if t.IsZero() {
			return math.MaxInt64
		}
		return t.Sub(r.given.sent).Nanoseconds()
	}
	ops := []porcupine.Operation{{Input: input{true, true}, Call: 0, Return: at(r.given.got)}}
	if !r.taken.sent.IsZero() {
		ops = append(ops, porcupine.Operation{ClientId: 1, Input: input{true, false}, Call: at(r.taken.sent), Return: at(r.taken.got)})
	}
	for _, answer := range []outcome{honoured, refused} {
		var reads []request
		for _, q := range r.requests {
			if q.service == service && q.outcome == answer {
				reads = append(reads, q)
			}
		}
		for _, q := range narrowest(reads) {
			ops = append(ops, porcupine.Operation{ClientId: 2, Input: input{}, Call: at(q.sent), Output: answer == honoured, Return: at(q.got)})
		}
	}
	return ops
}

// narrowest leaves reads out that say nothing more: one that was under way during all of another one with the same answer can stand beside that one
// in every order, since reads change nothing. What is left can be put in order if and only if all can, and porcupine is done in no time.
func narrowest(reads []request) (out []request) {
	slices.SortFunc(reads, func(a, b request) int { return cmp.Or(b.sent.Compare(a.sent), a.got.Compare(b.got)) })
	for _, q := range reads { // from the one that was sent last
		if len(out) == 0 || q.got.Before(out[len(out)-1].got) {
			out = append(out, q)
		}
	}
	return out
}

// ordered reports whether the round can be put in an order in which every request saw the right as it was. known is false where that was not
// found out in time.
func (r *round) ordered(service string) (ok, known bool) {
	res := porcupine.CheckOperationsTimeout(register, r.history(service), historyTime)
	return res == porcupine.Ok, res != porcupine.Unknown
}
