package driver

import (
	"context"
	"errors"
	"reflect"
	"testing"
	"time"
)

func TestPythons(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	asked, answer, problem := 0, Interpreter{Path: "/p/bin/python3", Roots: []string{"/p"}}, error(nil)
	p := &pythons{now: func() time.Time { return now }, find: func(context.Context) (Interpreter, error) {
		asked++
		return answer, problem
	}}
	is := func(name string, want *Interpreter, times int) {
		t.Helper()
		if got := p.hint(); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
		p.wait()
		if asked != times {
			t.Errorf("%s: asked %d times, want %d", name, asked, times)
		}
	}
	first := answer
	is("at first", nil, 1) // nobody waits for the answer
	is("then", &first, 1)
	answer = Interpreter{Path: "/q/bin/python3"}
	second := answer
	now = now.Add(interpreterFresh)
	is("after a while", &first, 2)
	is("and then", &second, 2)
	problem = errors.New("gone")
	now = now.Add(interpreterFresh)
	is("before it is known to be gone", &second, 3)
	is("after it is gone", nil, 3)
	p = &pythons{now: time.Now}
	is("with nobody to ask", nil, 3)
}
