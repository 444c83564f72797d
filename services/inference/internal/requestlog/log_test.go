package requestlog_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/services/inference/internal/requestlog"
)

// exactly checks that telemetry has the requests from..to, each once, in order.
func (p *spool) exactly(from, to int) {
	p.t.Helper()
	got := p.to.requests()
	for i, r := range got {
		if i > to-from || r != id(from+i) {
			p.t.Fatalf("request %d of %d is %s, want %s to %s", i, len(got), r, id(from), id(to))
		}
	}
	if len(got) != to-from+1 {
		p.t.Fatalf("telemetry has %d requests, want %s to %s", len(got), id(from), id(to))
	}
}

func appendAll(l *requestlog.Log, from, to int) {
	for n := from; n <= to; n++ {
		l.Append(record(n))
	}
}

// small makes segments of some twenty records.
func small(c *requestlog.Config) { c.SegmentBytes = 8 << 10 }

func TestDeliversInOrderAndRemoves(t *testing.T) {
	p := newSpool(t, small)
	l := p.open()
	appendAll(l, 1, 2500)
	if n := len(p.segments()); n < 50 {
		t.Fatalf("2,500 records are in %d segments", n)
	}
	p.relayUntil(l, func() bool { return len(p.to.requests()) >= 2500 && len(p.segments()) == 1 })
	p.exactly(1, 2500)
	appendAll(l, 2501, 2600)
	p.relay(l, 2600)
	p.exactly(1, 2600)
	if p.to.lost() != 0 || l.Dropped() != 0 {
		t.Errorf("%d are counted as dropped, and %d told", l.Dropped(), p.to.lost())
	}
}

func TestGoesOnAfterRestarts(t *testing.T) {
	p := newSpool(t, small)
	n := 0
	for round := range 6 {
		l := p.open()
		appendAll(l, n+1, n+300)
		n += 300
		if round%2 == 1 {
			p.relay(l, n)
		}
		must(t, l.Close())
	}
	p.exactly(1, n)
	if len(p.to.sources) != 1 {
		t.Errorf("there are %d sources, want one", len(p.to.sources))
	}
}

// TestSentAgainAfterLostAnswers: telemetry has stored what was answered to nobody.
func TestSentAgainAfterLostAnswers(t *testing.T) {
	p := newSpool(t, small)
	l := p.open()
	appendAll(l, 1, 500)
	before := make(map[string][]byte)
	for _, s := range p.segments() {
		b, err := os.ReadFile(s)
		must(t, err)
		before[s] = b
	}
	p.relayUntil(l, func() bool { return len(p.segments()) == 1 })
	must(t, l.Close())
	for path, b := range before { // as if the process had died before it removed them
		must(t, os.WriteFile(path, b, 0o600))
	}
	l = p.open()
	appendAll(l, 501, 600)
	p.relay(l, 600)
	p.exactly(1, 600)
}

func TestTornAndDamaged(t *testing.T) {
	flip := func(at int) func([]byte) []byte {
		return func(b []byte) []byte {
			b = bytes.Clone(b)
			if at < 0 {
				b[len(b)+at] ^= 1
			} else {
				b[at] ^= 1
			}
			return b
		}
	}
	frame := func(b []byte, n int) (start, end int) { // of record n of a segment
		end = 24
		for range n + 1 {
			start, end = end, end+4+int(binary.BigEndian.Uint32(b[end:]))
		}
		return start, end
	}
	cases := []struct {
		name    string
		segment int // of those there are, from the end if negative
		change  func([]byte) []byte
		lost    int64
		torn    int // records that were never whole
	}{
		{"nothing", -1, bytes.Clone, 0, 0},
		{"a record that was only begun", -1, func(b []byte) []byte { return append(bytes.Clone(b), 0, 0, 1) }, 0, 0},
		{"a record of which half was written", -1, func(b []byte) []byte { return append(append(bytes.Clone(b), 0, 0, 1, 0), make([]byte, 90)...) }, 0, 0},
		{"zeros behind the end, as after a power failure", -1, func(b []byte) []byte { return append(bytes.Clone(b), make([]byte, 4096)...) }, 0, 0},
		{"the last record is cut", -1, func(b []byte) []byte { return b[:len(b)-1] }, 0, 1},
		{"a byte of the last record", -1, flip(-1), 1, 0},
		{"a byte of the first record", 0, flip(40), 1, 0},
		{"the id of a segment", 1, flip(10), -1, 0},
		{"a length", 1, flip(24), -1, 0},
		{"the tail of a segment in the middle", 1, func(b []byte) []byte { return b[:len(b)-1] }, 1, 0},
		{"two records in each other's place", 1, func(b []byte) []byte {
			a0, a1 := frame(b, 0)
			b0, b1 := frame(b, 1)
			return slices.Concat(b[:a0], b[b0:b1], b[a0:a1], b[b1:])
		}, 2, 0},
		{"a record twice", 1, func(b []byte) []byte {
			a0, a1 := frame(b, 0)
			return slices.Concat(b[:a1], b[a0:a1], b[a1:])
		}, -1, 0},
		{"a record removed", 1, func(b []byte) []byte {
			a0, a1 := frame(b, 0)
			return slices.Concat(b[:a0], b[a1:])
		}, -1, 0},
		{"no segment at all", 1, func([]byte) []byte { return nil }, -1, 0},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			p := newSpool(t, small)
			l := p.open()
			appendAll(l, 1, 100)
			must(t, l.Close())
			segments := p.segments()
			at := segments[(c.segment+len(segments))%len(segments)]
			b, err := os.ReadFile(at)
			must(t, err)
			inside := int64(0) // how many records the segment has
			for off := 24; off < len(b); inside++ {
				off += 4 + int(binary.BigEndian.Uint32(b[off:]))
			}
			p.edit(at, c.change)
			l = p.open()
			appendAll(l, 101, 150)
			p.relayUntil(l, func() bool {
				got := p.to.requests()
				return len(got) > 0 && got[len(got)-1] == id(150) && (c.lost == 0 || p.to.lost() > 0)
			})
			lost := p.to.lost()
			if c.lost >= 0 && lost != c.lost || lost > inside {
				t.Errorf("%d are counted as lost, want %d of %d", lost, c.lost, inside)
			}
			// What was delivered is unchanged, once, in order; and nothing is missing without being counted.
			got := p.to.requests()
			if !slices.IsSorted(got) || len(slices.Compact(slices.Clone(got))) != len(got) {
				t.Errorf("not in order, or doubled: %v", got)
			}
			if len(got)+int(lost)+c.torn != 150 {
				t.Errorf("%d delivered, %d lost, %d torn of 150", len(got), lost, c.torn)
			}
		})
	}
}

// TestDamageWhileRunning: what is written after a damage is delivered.
func TestDamageWhileRunning(t *testing.T) {
	p := newSpool(t, nil)
	l := p.open()
	appendAll(l, 1, 100)
	p.edit(p.segments()[0], func(b []byte) []byte { b[24] = 0xff; return b })
	p.relayUntil(l, func() bool { return p.to.lost() == 100 })
	appendAll(l, 101, 200)
	p.relay(l, 100)
	p.exactly(101, 200)
}

func TestRemovedSegmentIsCounted(t *testing.T) {
	p := newSpool(t, small)
	l := p.open()
	appendAll(l, 1, 50)
	p.relay(l, 50)
	appendAll(l, 51, 150)
	must(t, l.Close())
	must(t, os.Remove(p.segments()[2]))
	l = p.open()
	p.relayUntil(l, func() bool { return p.to.lost() > 0 })
	if got := int64(len(p.to.requests())); got+p.to.lost() != 150 || l.Dropped() != p.to.lost() {
		t.Errorf("%d delivered, %d lost", got, p.to.lost())
	}
}

// TestOlderSpool: a folder that was put back to an earlier state does not make new records look like old ones.
func TestOlderSpool(t *testing.T) {
	for name, back := range map[string]func(p *spool, saved string){
		"put back from a copy": func(p *spool, saved string) {
			must(t, os.RemoveAll(p.dir))
			must(t, os.CopyFS(p.dir, os.DirFS(saved)))
		},
		"all segments removed": func(p *spool, _ string) {
			for _, s := range p.segments() {
				must(t, os.Remove(s))
			}
		},
		"the state removed": func(p *spool, _ string) { must(t, os.Remove(filepath.Join(p.dir, "source.json"))) },
		"the state damaged": func(p *spool, _ string) {
			must(t, os.WriteFile(filepath.Join(p.dir, "source.json"), []byte("{"), 0o600))
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newSpool(t, nil)
			l := p.open()
			appendAll(l, 1, 10)
			p.relay(l, 10)
			must(t, l.Close())
			saved := t.TempDir()
			must(t, os.CopyFS(saved, os.DirFS(p.dir)))
			l = p.open()
			appendAll(l, 11, 100)
			p.relay(l, 100)
			must(t, l.Close())
			back(p, saved)
			l = p.open()
			appendAll(l, 1001, 1050)
			has := func() bool { return slices.Contains(p.to.requests(), id(1050)) }
			p.relayUntil(l, has)
			for n := 1001; n <= 1050; n++ {
				if !slices.Contains(p.to.requests(), id(n)) {
					t.Errorf("%s was taken for one that was there", id(n))
				}
			}
		})
	}
}

func TestTelemetryAwayAndFull(t *testing.T) {
	p := newSpool(t, func(c *requestlog.Config) { c.SegmentBytes, c.MaxBytes = 8<<10, 64<<10 })
	told := int64(0)
	p.cfg.OnDropped = func(n int64) { told += n }
	l := p.open()
	p.to.away = fault.ToStatus(fault.Unavailable("away"), "redoubt.test", "").Err()
	appendAll(l, 1, 1000)
	dropped := l.Dropped()
	if dropped < 500 || dropped > 950 || told != dropped {
		t.Fatalf("%d of 1,000 were dropped, %d told", dropped, told)
	}
	p.relayUntil(l, func() bool { p.to.mu.Lock(); defer p.to.mu.Unlock(); return p.to.calls >= 3 })
	must(t, l.Close())
	l = p.open() // the count survives
	p.to.away = nil
	p.relay(l, int(1000-dropped))
	p.exactly(1, int(1000-dropped))
	if l.Dropped() != dropped || p.to.lost() != dropped {
		t.Errorf("%d dropped, %d told, want %d", l.Dropped(), p.to.lost(), dropped)
	}
	appendAll(l, int(1000-dropped)+1, int(1000-dropped)+50) // there is space again
	p.relay(l, int(1000-dropped)+50)
	p.exactly(1, int(1000-dropped)+50)
}

// TestCountSurvivesKill: what telemetry was told of, and a killed process had not written down.
func TestCountSurvivesKill(t *testing.T) {
	p := newSpool(t, func(c *requestlog.Config) { c.MaxBytes = 8 << 10 })
	l := p.open()
	state, err := os.ReadFile(filepath.Join(p.dir, "source.json"))
	must(t, err)
	appendAll(l, 1, 100)
	dropped := l.Dropped()
	p.relayUntil(l, func() bool { return p.to.lost() == dropped })
	must(t, l.Close())
	must(t, os.WriteFile(filepath.Join(p.dir, "source.json"), state, 0o600))
	l = p.open()
	p.relayUntil(l, func() bool { return l.Dropped() > 0 })
	if l.Dropped() != dropped || dropped < 50 {
		t.Errorf("%d are counted, want %d", l.Dropped(), dropped)
	}
}

// TestDiskFull: the folder takes no more, and nothing fails or waits. Afterwards it goes on.
func TestDiskFull(t *testing.T) {
	p := newSpool(t, small)
	l := p.open()
	appendAll(l, 1, 10)
	hidden := p.dir + ".away"
	must(t, os.Rename(p.dir, hidden)) // no new segment can be made
	appendAll(l, 11, 100)
	kept := 100 - int(l.Dropped())
	if kept < 11 || kept > 40 {
		t.Fatalf("%d of 100 were kept", kept)
	}
	must(t, os.Rename(hidden, p.dir))
	appendAll(l, kept+1, 200)
	p.relay(l, 200)
	p.exactly(1, 200)
}

func TestRefusedRecord(t *testing.T) {
	p := newSpool(t, nil)
	p.to.refuse = id(77)
	l := p.open()
	appendAll(l, 1, 200)
	p.relay(l, 199)
	got := p.to.requests()
	if len(got) != 199 || slices.Contains(got, id(77)) || !slices.IsSorted(got) || l.Dropped() != 1 {
		t.Errorf("%d delivered, %d dropped", len(got), l.Dropped())
	}
}

func TestWhatStrangersWrite(t *testing.T) {
	p := newSpool(t, nil)
	l := p.open()
	for i, agent := range []string{"a\xff\xfeb", strings.Repeat("x", 1<<20), strings.Repeat("é", 20_000), "\x00"} {
		r := record(i + 1)
		r.UserAgent, r.RequestUrl = agent, agent
		l.Append(r)
	}
	l.Append(nil)
	l.Append(&telemetryv1.ScoringRequest{})
	noEndpoint := record(9)
	noEndpoint.EndpointUid = ""
	l.Append(noEndpoint)
	noTime := record(5)
	noTime.Time = nil
	l.Append(noTime)
	p.relay(l, 5)
	p.exactly(1, 5)
	if l.Dropped() != 0 {
		t.Errorf("%d were dropped", l.Dropped())
	}
}

func TestAppendFromMany(t *testing.T) {
	p := newSpool(t, small)
	l := p.open()
	ctx, cancel := context.WithCancel(context.Background())
	var relay, wg sync.WaitGroup
	relay.Go(func() { _ = l.Relay(ctx) })
	const callers, each = 16, 200
	for c := range callers {
		wg.Go(func() { appendAll(l, c*each+1, c*each+each) })
	}
	wg.Wait()
	cancel()
	relay.Wait()
	total := callers*each - int(l.Dropped()) // on a slow machine a turn may not come
	p.relay(l, total)
	got := p.to.requests()
	slices.Sort(got)
	if n := len(slices.Compact(got)); n != total {
		t.Errorf("%d different requests, want %d", n, total)
	}
}

func TestOneProcess(t *testing.T) {
	p := newSpool(t, nil)
	l := p.open()
	if _, err := requestlog.Open(context.Background(), p.cfg); err == nil {
		t.Fatal("two have the spool")
	}
	must(t, l.Close())
	l.Append(record(1))
	if l.Dropped() != 1 {
		t.Error("a closed log has taken a record, and nobody knows")
	}
	must(t, l.Close())
	if _, err := requestlog.Open(context.Background(), requestlog.Config{}); err == nil {
		t.Error("a log without anything opens")
	}
}

// TestCanary: nothing of what is logged is in the files (D1).
func TestCanary(t *testing.T) {
	p := newSpool(t, nil)
	l := p.open()
	appendAll(l, 1, 50)
	must(t, l.Close())
	entries, err := os.ReadDir(p.dir)
	must(t, err)
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(p.dir, e.Name()))
		must(t, err)
		for _, canary := range []string{"canary", "request-", "/score", "192.0.2.7", "ws_1", "ep_1", "blue", "key-primary"} {
			if bytes.Contains(b, []byte(canary)) {
				t.Errorf("%s holds %q", e.Name(), canary)
			}
		}
		info, err := e.Info()
		must(t, err)
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has the mode %v", e.Name(), info.Mode())
		}
	}
	if _, err := os.Stat(p.segments()[0]); errors.Is(err, os.ErrNotExist) {
		t.Error("there is nothing to look at")
	}
}
