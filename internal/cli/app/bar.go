package app

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/internal/cli/show"
)

const (
	// barEvery is how often a bar is drawn anew.
	barEvery = 100 * time.Millisecond
	// barCells is how long it is at most, and barLeast how little room it is drawn in.
	barCells = 24
	barLeast = 8
	// barStart is how long a transfer goes on before its time left is guessed at.
	barStart = time.Second
)

// Bar shows at a terminal how far a transfer is. Where nobody sits there, and where a program reads the answer, it shows nothing.
// It is not safe for concurrent use. The zero Bar shows nothing.
type Bar struct {
	out         io.Writer
	now         func() time.Time
	width       func() int
	label       string
	begin, last time.Time
	drawn       bool
}

// Bar begins one. The label is what is being moved; it may be a stranger's.
func (a *App) Bar(label string) *Bar {
	f, ok := a.Err.(*os.File)
	if !ok || a.Structured() || !IsTerminal(f) {
		return &Bar{}
	}
	return &Bar{out: f, now: a.Now, width: func() int { return terminalWidth(f) }, label: show.Text(label), begin: a.Now()}
}

// Set says how much of how much was moved; a total of 0 is not known.
func (b *Bar) Set(done, total int64) {
	if b.out == nil {
		return
	}
	now := b.now()
	if b.drawn && now.Sub(b.last) < barEvery {
		return
	}
	b.drawn, b.last = true, now
	// One write, so that nothing comes between clearing the line and drawing it.
	_, _ = io.WriteString(b.out, "\r\x1b[K"+barLine(b.label, done, total, now.Sub(b.begin), b.width()-1))
}

// End takes the bar away; what is said next has the line to itself. It may be called twice.
func (b *Bar) End() {
	if b.drawn {
		_, _ = io.WriteString(b.out, "\r\x1b[K")
	}
	b.drawn = false
}

// Receiving draws a download into a folder, and tells of each file that is whole.
func (a *App) Receiving(b *Bar, dir string) func(client.Received) {
	return func(r client.Received) {
		if r.Path == "" {
			b.Set(r.Bytes, r.Total)
			return
		}
		b.End()
		a.Say("%s  %s", show.Text(filepath.Join(dir, r.Path)), show.Bytes(r.Size))
	}
}

// barLine is at most width cells long, so that the terminal does not break it.
func barLine(label string, done, total int64, since time.Duration, width int) string {
	var text string
	if total > 0 {
		text = fmt.Sprintf("%3d%%  %s of %s", min(100, done*100/total), show.Bytes(done), show.Bytes(total))
	} else {
		text = show.Bytes(done)
	}
	if since >= barStart && done > 0 {
		rate := float64(done) / since.Seconds()
		text += "  " + show.Bytes(int64(rate)) + "/s"
		if total > done {
			text += "  " + show.Duration(time.Duration(float64(total-done)/rate*float64(time.Second))) + " left"
		}
	}
	if room := width - utf8.RuneCountInString(label) - utf8.RuneCountInString(text) - 6; total > 0 && room >= barLeast {
		cells := min(room, barCells)
		full := int(min(done, total) * int64(cells) / total)
		text = "[" + strings.Repeat("=", full) + strings.Repeat(" ", cells-full) + "]  " + text
	}
	line := []rune(label + "  " + text)
	return string(line[:max(0, min(len(line), width))])
}
