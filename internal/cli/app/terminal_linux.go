package app

import (
	"context"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// IsTerminal reports whether somebody can be asked, or shown something, there.
func IsTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// terminalWidth is how many cells a line of the terminal has; 80 where it does not say.
func terminalWidth(f *os.File) int {
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil || size.Col == 0 {
		return 80
	}
	return int(size.Col)
}

// readHidden reads a line that is not shown, and puts the terminal back as it was, also when ctx ends first.
func readHidden(ctx context.Context, f *os.File) ([]byte, error) {
	fd := int(f.Fd())
	was, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, err
	}
	quiet := *was
	quiet.Lflag &^= unix.ECHO
	quiet.Lflag |= unix.ICANON | unix.ISIG
	quiet.Iflag |= unix.ICRNL
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &quiet); err != nil {
		return nil, err
	}
	defer func() { _ = unix.IoctlSetTermios(fd, unix.TCSETS, was) }()
	type answer struct {
		line []byte
		err  error
	}
	got := make(chan answer, 1)
	go func() {
		var line []byte
		for b := make([]byte, 1); len(line) <= MaxPassword; {
			n, err := f.Read(b)
			if n == 1 && b[0] == '\n' || err == io.EOF {
				break
			}
			if err != nil {
				got <- answer{nil, err}
				return
			}
			line = append(line, b[:n]...)
		}
		got <- answer{line, nil}
	}()
	select {
	case a := <-got:
		return a.line, a.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
