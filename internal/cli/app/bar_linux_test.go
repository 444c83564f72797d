package app

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// terminal is a pseudo-terminal of the kernel's: the end that a program has, and what was written to it so far.
func terminal(t *testing.T) (program *os.File, written func() string) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skip("there are no pseudo-terminals here:", err)
	}
	t.Cleanup(func() { _ = master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Skip("there are no pseudo-terminals here:", err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	program, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip("there are no pseudo-terminals here:", err)
	}
	t.Cleanup(func() { _ = program.Close() })
	return program, func() string {
		// A mark, so that reading ends.
		if _, err := program.WriteString("\x04mark"); err != nil {
			t.Fatal(err)
		}
		var all []byte
		for b := make([]byte, 4096); !bytes.HasSuffix(all, []byte("\x04mark")); {
			n, err := master.Read(b)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, b[:n]...)
		}
		return strings.TrimSuffix(string(all), "\x04mark")
	}
}

func TestBarIsForTerminalsAlone(t *testing.T) {
	tty, written := terminal(t)
	pipe, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	draw := func(a *App) {
		b := a.Bar("mo\x1b]0;owned\x07del")
		b.Set(1, 2)
		b.Set(2, 2) // too soon after the one before
		b.End()
		b.End()
	}
	now := func() time.Time { return time.Unix(1, 0) }
	for _, output := range []string{outputJSON, outputYAML, outputNone} {
		draw(&App{Err: tty, Now: now, Output: output})
	}
	draw(&App{Err: pipe, Now: now})
	var buffer bytes.Buffer
	draw(&App{Err: &buffer, Now: now})
	if got := written(); got != "" {
		t.Errorf("a program reads %q", got)
	}
	if info, err := pipe.Stat(); err != nil || info.Size() > 0 || buffer.Len() > 0 {
		t.Errorf("nobody sits there: %v, %v", info, err)
	}
	draw(&App{Err: tty, Now: now, Output: outputTable})
	got := written()
	if !strings.Contains(got, " 50%") || strings.Contains(got, "100%") || strings.Contains(got, "owned\x07") || !strings.HasSuffix(got, "\r\x1b[K") {
		t.Errorf("got %q", got)
	}
}
