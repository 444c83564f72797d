package oracle

import (
	"fmt"
	"slices"
	"strings"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Fate is what came of an attempt.
type Fate int

// An attempt is under way until it has one of the other fates.
const (
	UnderWay Fate = iota
	Acknowledged
	// Refused for sure: an answer says that nothing was changed.
	Refused
	// Unknown: whether it was carried out cannot be told from the answer.
	Unknown
)

// FateOf reads an answer. A full disk is an answer too: it says that nothing was changed.
func FateOf(err error) Fate {
	switch status.Code(err) {
	case codes.OK:
		return Acknowledged
	case codes.InvalidArgument, codes.NotFound, codes.AlreadyExists, codes.PermissionDenied, codes.Unauthenticated, codes.FailedPrecondition, codes.ResourceExhausted, codes.OutOfRange, codes.Unimplemented:
		return Refused
	default:
		return Unknown
	}
}

// Call is one attempt.
type Call struct {
	// ID is its request id, Method its full name, Principal the uid of who made it, "" before he was known.
	ID, Method, Principal string
	// Recorded says that each such call that succeeds stands in the activity log by itself.
	Recorded bool
	Fate     Fate
	// Err is the answer to one that was not acknowledged.
	Err string

	seen int // events that say that it succeeded
}

// Write is one attempt to change an object.
type Write struct {
	Call   *Call
	Value  string
	Delete bool
}

// Object is what writes are about: a secret, an assignment, a batch. Its value is the list of what was written and not deleted.
type Object struct {
	Kind, Name string
	Writes     []Write
	// At is where whoever looks finds it.
	At any

	// What the writes amount to so far, and the one that is open.
	values []string
	open   *Write
	judged int // writes that are in values
	broken bool
}

// Book is safe for concurrent use.
type Book struct {
	prefix string

	mu         sync.Mutex
	number     int
	calls      map[string]*Call
	fresh      []*Call // acknowledged and recorded, whose event was not seen yet
	objects    []*Object
	touched    map[*Object]bool
	violations []string
	told       map[string]bool
	reasons    map[string]int

	numbers map[string]int64  // by service: up to where every number was seen
	events  map[string]string // uid → service/number
	starts  map[string]int    // runs by name: events that say that they were started
	known   map[string]bool   // principals whose every event has to belong to a call
}

// NewBook makes a book whose request ids begin with prefix.
func NewBook(prefix string) *Book {
	return &Book{prefix: prefix, calls: make(map[string]*Call), touched: make(map[*Object]bool), told: make(map[string]bool), reasons: make(map[string]int),
		numbers: make(map[string]int64), events: make(map[string]string), starts: make(map[string]int), known: make(map[string]bool)}
}

// Know has every event of this principal belong to a call of this book.
func (b *Book) Know(principal string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.known[principal] = true
}

// Begin notes an attempt.
func (b *Book) Begin(method, principal string, recorded bool) *Call {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.number++
	c := &Call{ID: fmt.Sprintf("%s-%d", b.prefix, b.number), Method: method, Principal: principal, Recorded: recorded}
	b.calls[c.ID] = c
	return c
}

// End notes what came of it.
func (b *Book) End(c *Call, err error) Fate {
	b.mu.Lock()
	defer b.mu.Unlock()
	c.Fate = FateOf(err)
	if err != nil {
		c.Err = err.Error()
		b.reasons[fmt.Sprintf("%s %s", c.Method[strings.LastIndexByte(c.Method, '/')+1:], status.Code(err))]++
	}
	if c.Fate == Acknowledged && c.Recorded {
		b.fresh = append(b.fresh, c)
	}
	return c.Fate
}

// Object makes an object.
func (b *Book) Object(kind, name string, at any) *Object {
	b.mu.Lock()
	defer b.mu.Unlock()
	o := &Object{Kind: kind, Name: name, At: at}
	b.objects = append(b.objects, o)
	return o
}

// Wrote notes an attempt to change an object, after it has its fate.
func (b *Book) Wrote(o *Object, w Write) {
	b.mu.Lock()
	defer b.mu.Unlock()
	o.Writes = append(o.Writes, w)
	b.touched[o] = true
}

// Touch has an object looked at the next time too.
func (b *Book) Touch(o *Object) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.touched[o] = true
}

// Violate notes what contradicts the book. The same words count once.
func (b *Book) Violate(format string, args ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.violate(format, args...)
}

func (b *Book) violate(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if !b.told[text] {
		b.told[text] = true
		b.violations = append(b.violations, text)
	}
}

// Violations gives those since the last time.
func (b *Book) Violations() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	v := b.violations
	b.violations = nil
	return v
}

// Touched are the objects that were written since they were judged, and some others, chosen by pick, which gives a number below its
// argument. With all it is every object.
func (b *Book) Touched(all bool, others int, pick func(int) int) []*Object {
	b.mu.Lock()
	defer b.mu.Unlock()
	if all {
		return slices.Clone(b.objects)
	}
	var out []*Object
	seen := make(map[*Object]bool)
	for _, o := range b.objects { // in a fixed order
		if b.touched[o] {
			out, seen[o] = append(out, o), true
		}
	}
	for range min(others, len(b.objects)) {
		if o := b.objects[pick(len(b.objects))]; !seen[o] {
			out, seen[o] = append(out, o), true
		}
	}
	return out
}

// Counts are what was tried and what came of it.
type Counts struct {
	Calls, Acknowledged, Refused, Unknown, Objects, Events int
	// Reasons of what was not acknowledged, by method and code.
	Reasons map[string]int
}

// Counts so far.
func (b *Book) Counts() Counts {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := Counts{Calls: len(b.calls), Objects: len(b.objects), Events: len(b.events), Reasons: make(map[string]int)}
	for k, v := range b.reasons {
		n.Reasons[k] = v
	}
	for _, c := range b.calls {
		switch c.Fate {
		case Acknowledged:
			n.Acknowledged++
		case Refused:
			n.Refused++
		default:
			n.Unknown++
		}
	}
	return n
}
