package oracle

import (
	"errors"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
)

const method = "/redoubt.keyvault.v1.SecretService/SetSecret"

// try is a write and what came of it.
type try struct {
	value  string
	remove bool
	err    error
}

var (
	refused = status.Error(codes.AlreadyExists, "no")
	lost    = status.Error(codes.Unavailable, "gone")
)

// What is found is judged by what was acknowledged; and an effect of unknown fate by its event too.
func TestJudge(t *testing.T) {
	for _, tc := range []struct {
		name   string
		tries  []try
		found  []string
		events []int // successes in the log, by number of the try
		want   string
	}{
		{"as acknowledged", []try{{value: "a"}, {value: "b"}}, []string{"a", "b"}, []int{0, 1}, ""},
		{"lost", []try{{value: "a"}, {value: "b"}}, []string{"a"}, []int{0, 1}, "acknowledged is"},
		{"lost, the first", []try{{value: "a"}, {value: "b"}}, []string{"b"}, []int{0, 1}, "acknowledged is"},
		{"doubled", []try{{value: "a"}}, []string{"a", "a"}, []int{0}, "acknowledged is"},
		{"another value", []try{{value: "a"}}, []string{"x"}, []int{0}, "acknowledged is"},
		{"deleted", []try{{value: "a"}, {remove: true}}, nil, []int{0, 1}, ""},
		{"back after its deletion", []try{{value: "a"}, {remove: true}}, []string{"a"}, []int{0, 1}, "acknowledged is"},
		{"refused", []try{{value: "a", err: refused}}, nil, nil, ""},
		{"refused, and there", []try{{value: "a", err: refused}}, []string{"a"}, nil, "it was refused"},
		{"unknown, and not there", []try{{value: "a", err: lost}}, nil, nil, ""},
		{"unknown, and there", []try{{value: "a", err: lost}}, []string{"a"}, []int{0}, ""},
		{"unknown, there twice", []try{{value: "a", err: lost}}, []string{"a", "a"}, []int{0}, "perhaps"},
		{"unknown, there, not in the log", []try{{value: "a", err: lost}}, []string{"a"}, nil, "does not stand in the log"},
		{"unknown, not there, in the log", []try{{value: "a", err: lost}}, nil, []int{0}, "refused"},
		{"unknown deletion", []try{{value: "a"}, {remove: true, err: lost}}, nil, []int{0, 1}, ""},
		{"acknowledged, not in the log", []try{{value: "a"}}, []string{"a"}, nil, "does not stand in the log"},
		{"acknowledged, twice in the log", []try{{value: "a"}}, []string{"a"}, []int{0, 0}, "stands in the log 2 times"},
		{"refused, a success in the log", []try{{value: "a", err: refused}}, nil, []int{0}, "the log says that it succeeded"},
		{"written on after an unknown fate", []try{{value: "a", err: lost}, {value: "b", err: lost}}, nil, nil, "wrote secret"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := NewBook("t")
			b.Know("usr_1")
			o := b.Object("secret", "s", nil)
			var calls []*Call
			for _, w := range tc.tries {
				c := b.Begin(method, "usr_1", true)
				b.End(c, w.err)
				b.Wrote(o, Write{Call: c, Value: w.value, Delete: w.remove})
				calls = append(calls, c)
			}
			b.Judge(o, tc.found)
			for i, n := range tc.events {
				b.Event(event(calls[n].ID, string(rune('a'+i)), "usr_1", method))
			}
			b.GiveUp()
			told(t, b, tc.want)
		})
	}
}

func event(id, uid, principal, method string) *telemetryv1.ActivityEvent {
	return &telemetryv1.ActivityEvent{Uid: uid, Method: method, RequestId: id, Principal: principal, Code: codes.OK.String(), Count: 1, Service: "keyvault"}
}

func told(t *testing.T, b *Book, want string) {
	t.Helper()
	got := strings.Join(b.Violations(), "; ")
	if want == "" && got != "" || !strings.Contains(got, want) {
		t.Errorf("told %q, want %q", got, want)
	}
}

// The log says nothing of known clients but what they did.
func TestEvents(t *testing.T) {
	for _, tc := range []struct {
		name  string
		event func(id string) *telemetryv1.ActivityEvent
		want  string
	}{
		{"what was done", func(id string) *telemetryv1.ActivityEvent { return event(id, "a", "usr_1", method) }, ""},
		{"another request", func(string) *telemetryv1.ActivityEvent { return event("x", "a", "usr_1", method) }, "belongs to no call"},
		{"another method", func(id string) *telemetryv1.ActivityEvent { return event(id, "a", "usr_1", method+"X") }, "belongs to no call"},
		{"another method on behalf", func(id string) *telemetryv1.ActivityEvent {
			e := event(id, "a", "usr_1", method+"X")
			e.Actors = []string{"compute"}
			return e
		}, ""},
		{"another service's, refused", func(string) *telemetryv1.ActivityEvent {
			e := event("x", "a", "usr_1", method)
			e.Code, e.Peer = codes.Unauthenticated.String(), "spiffe://fault.test/service/compute"
			return e
		}, ""},
		{"another service's", func(string) *telemetryv1.ActivityEvent {
			e := event("x", "a", "usr_1", method)
			e.Peer = "spiffe://fault.test/service/compute"
			return e
		}, "belongs to no call"},
		{"another request, refused", func(string) *telemetryv1.ActivityEvent {
			e := event("x", "a", "usr_1", method)
			e.Code, e.Peer = codes.Unauthenticated.String(), "spiffe://fault.test/service/gateway"
			return e
		}, "belongs to no call"},
		{"by another one", func(id string) *telemetryv1.ActivityEvent { return event(id, "a", "usr_2", method) }, "the log says by usr_2"},
		{"somebody else's", func(string) *telemetryv1.ActivityEvent { return event("x", "a", "usr_2", method) }, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := NewBook("t")
			b.Know("usr_1")
			c := b.Begin(method, "usr_1", true)
			b.End(c, nil)
			b.Event(tc.event(c.ID))
			told(t, b, tc.want)
		})
	}
	b := NewBook("t")
	b.Event(event("x", "a", "", method))
	b.Event(event("x", "a", "", method))
	told(t, b, "stands in the log twice")
}

// Numbers of a service go on without a gap, over several looks.
func TestNumbers(t *testing.T) {
	for _, tc := range []struct {
		name  string
		looks [][]int64
		want  string
	}{
		{"whole", [][]int64{{2, 1, 3}, {5, 4}}, ""},
		{"a gap", [][]int64{{1, 2}, {4}}, "3 to 3 are missing"},
		{"twice", [][]int64{{1, 2}, {2, 3}}, "2 stands in the log twice"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := NewBook("t")
			for _, l := range tc.looks {
				b.Numbers("keyvault", l)
			}
			told(t, b, tc.want)
		})
	}
}

// What an answer says of a change.
func TestFateOf(t *testing.T) {
	for err, want := range map[error]Fate{nil: Acknowledged, refused: Refused, lost: Unknown, errors.New("x"): Unknown, status.Error(codes.ResourceExhausted, ""): Refused, status.Error(codes.DeadlineExceeded, ""): Unknown, status.Error(codes.Internal, ""): Unknown} {
		if got := FateOf(err); got != want {
			t.Errorf("%v is %d, want %d", err, got, want)
		}
	}
}
