package oracle

import (
	"slices"
	"strings"

	"google.golang.org/grpc/codes"

	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
)

// Judge compares an object with what was found of it: its values, one for each that is there.
func (b *Book) Judge(o *Object, found []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if o.broken {
		return
	}
	for _, w := range o.Writes[o.judged:] {
		o.judged++
		switch w.Call.Fate {
		case Acknowledged:
			o.values = apply(o.values, w)
		case Refused:
		case Unknown, UnderWay:
			if o.open != nil {
				b.violate("the load wrote %s %s on after a write of unknown fate", o.Kind, o.Name)
			}
			o.open = &w
		}
	}
	delete(b.touched, o)
	without := o.values
	if o.open == nil {
		if !slices.Equal(found, without) {
			o.broken = true
			b.violate("%s %s: acknowledged is %q, there is %q%s", o.Kind, o.Name, without, found, refusedAmong(o, found))
		}
		return
	}
	with := apply(without, *o.open)
	switch {
	case slices.Equal(with, without): // it cannot be told, and makes no difference
	case slices.Equal(found, with):
		o.values = with
		// What has happened stands in the log.
		if c := o.open.Call; c.Recorded && c.seen == 0 {
			b.fresh = append(b.fresh, c)
		}
		o.open.Call.Fate = Acknowledged
	case slices.Equal(found, without):
		if c := o.open.Call; c.seen > 0 && c.Recorded {
			b.violate("%s %s: the activity log says that %s succeeded, and it has had no effect", o.Kind, o.Name, c.ID)
		}
		o.open.Call.Fate = Refused
	default:
		o.broken = true
		b.violate("%s %s: acknowledged is %q, perhaps %q, there is %q", o.Kind, o.Name, without, with, found)
	}
	o.open = nil
}

func apply(values []string, w Write) []string {
	if w.Delete {
		return nil
	}
	return append(slices.Clone(values), w.Value)
}

// refusedAmong says so where what was found comes from a write that was refused.
func refusedAmong(o *Object, found []string) string {
	for _, w := range o.Writes {
		if w.Call.Fate == Refused && !w.Delete && slices.Contains(found, w.Value) {
			return "; one of it was refused: " + w.Call.Err
		}
	}
	return ""
}

// Seen reports whether an event was taken before.
func (b *Book) Seen(uid string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	_, ok := b.events[uid]
	return ok
}

// Event takes an event of the activity log, each once, in any order.
func (b *Book) Event(e *telemetryv1.ActivityEvent) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.events[e.GetUid()]; ok {
		b.violate("the event %s stands in the log twice", e.GetUid())
		return
	}
	b.events[e.GetUid()] = e.GetService()
	succeeded := e.GetCode() == codes.OK.String() || e.GetResult() == telemetryv1.ActivityEvent_RESULT_SUCCEEDED
	if strings.HasSuffix(e.GetMethod(), "/compute/runs/start") {
		if b.starts[e.GetScope()]++; b.starts[e.GetScope()] > 1 {
			b.violate("the log says that %s was started twice", e.GetScope())
		}
	}
	if !strings.Contains(e.GetMethod(), ".v") || strings.Contains(e.GetMethod(), ".AgentService/") { // the platform's own doing, and that of agents
		return
	}
	c, ours := b.calls[e.GetRequestId()]
	if !ours || c.Method != e.GetMethod() {
		// What a call has services do carries its request id too, under other methods, and so does what agents have them do for a principal, with
		// an id of the agent's. Where that is refused for a clock that is off nobody acts, and only the peer tells.
		onward := ours && len(e.GetActors()) > 0 || !succeeded && !strings.HasSuffix(e.GetPeer(), "/service/gateway")
		if b.known[e.GetPrincipal()] && e.GetRunUid() == "" && e.GetCount() <= 1 && !onward {
			b.violate("event %s: %s of %s, %s, belongs to no call that was made: request %q", e.GetUid(), e.GetMethod(), e.GetPrincipal(), e.GetCode(), e.GetRequestId())
		}
		return
	}
	if !succeeded {
		return
	}
	c.seen++
	switch {
	case c.Recorded && c.seen > 1:
		b.violate("%s %s stands in the log %d times", c.Method, c.ID, c.seen)
	case c.Recorded && c.Fate == Refused:
		b.violate("%s %s was refused (%s), and the log says that it succeeded", c.Method, c.ID, c.Err)
	case c.Principal != "" && e.GetPrincipal() != c.Principal:
		b.violate("%s %s was made by %s, and the log says by %s", c.Method, c.ID, c.Principal, e.GetPrincipal())
	}
}

// Missing are the acknowledged calls whose event was not seen yet.
func (b *Book) Missing() []*Call {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fresh = slices.DeleteFunc(b.fresh, func(c *Call) bool { return c.seen > 0 })
	return slices.Clone(b.fresh)
}

// GiveUp makes violations of what is missing.
func (b *Book) GiveUp() {
	for _, c := range b.Missing() {
		b.Violate("%s %s was carried out, and does not stand in the log", c.Method, c.ID)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fresh = nil
}

// Numbers takes the numbers of a service's events that were seen anew, and wants them to go on from where they ended, without a gap.
func (b *Book) Numbers(service string, fresh []int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	slices.Sort(fresh)
	next := b.numbers[service] + 1
	for _, n := range fresh {
		switch {
		case n == next:
			next++
		case n < next:
			b.violate("%s: the number %d stands in the log twice", service, n)
		default:
			b.violate("%s: numbers %d to %d are missing in the log", service, next, n-1)
			next = n + 1
		}
	}
	b.numbers[service] = next - 1
}

// Started are the events that say that a run was started.
func (b *Book) Started(run string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.starts[run]
}
