package app

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
)

// MaxPassword is how many bytes a password has at most.
const MaxPassword = 1024

const (
	maxSecret = 64 << 10
	maxCode   = 64
)

// Password asks for one at the terminal without echo, twice if confirm, or reads one line of standard input.
func (a *App) Password(ctx context.Context, prompt string, stdin, confirm bool) (redact.Secret, error) {
	if stdin {
		return a.FirstLine(MaxPassword)
	}
	f, ok := a.In.(*os.File)
	if !ok || !IsTerminal(f) {
		return redact.Secret{}, Usagef("there is no terminal to ask for a password at: give it on standard input with --password-stdin")
	}
	p, err := a.hidden(ctx, f, prompt)
	if err != nil || !confirm {
		return p, err
	}
	again, err := a.hidden(ctx, f, "once more: ")
	if err == nil && !p.Equal(again) {
		err = Usagef("the two are not the same")
	}
	return p, err
}

func (a *App) hidden(ctx context.Context, f *os.File, prompt string) (redact.Secret, error) {
	_, _ = fmt.Fprint(a.Err, prompt)
	b, err := readHidden(ctx, f)
	_, _ = fmt.Fprintln(a.Err)
	if err == nil && len(b) == 0 {
		err = Usagef("nothing was typed")
	}
	return redact.New(b), err
}

// FirstLine reads one line of standard input, and no byte of the next one.
func (a *App) FirstLine(most int) (redact.Secret, error) {
	var line []byte
	for b := make([]byte, 1); len(line) <= most+1; {
		n, err := a.In.Read(b)
		if n == 1 {
			if b[0] == '\n' {
				break
			}
			line = append(line, b[0])
		}
		if err != nil {
			if len(line) == 0 {
				return redact.Secret{}, Usagef("standard input is empty")
			}
			break
		}
	}
	line = bytes.TrimRight(line, "\r\n")
	if len(line) == 0 || len(line) > most {
		return redact.Secret{}, Usagef("standard input has to begin with a line of 1 to %d bytes", most)
	}
	return redact.New(line), nil
}

// Code asks for a one-time code at the terminal, or reads one line of standard input.
func (a *App) Code(ctx context.Context, prompt string, stdin bool) (redact.Secret, error) {
	if stdin {
		c, err := a.FirstLine(maxCode)
		if err != nil {
			err = Usagef("a code is asked for (%s): give it as the next line of standard input, or run this at a terminal", strings.TrimSuffix(prompt, ": "))
		}
		return c, err
	}
	f, ok := a.In.(*os.File)
	if !ok || !IsTerminal(f) {
		return redact.Secret{}, Usagef("a code is asked for (%s), and there is no terminal to ask at", strings.TrimSuffix(prompt, ": "))
	}
	return a.hidden(ctx, f, prompt)
}

// Lines reads the first n lines of standard input, each a secret of at most most bytes.
func (a *App) Lines(most, n int) ([]redact.Secret, error) {
	in := bufio.NewReader(io.LimitReader(a.In, int64(n)*int64(most+3)))
	var out []redact.Secret
	for range n {
		b, err := in.ReadBytes('\n')
		b = bytes.TrimRight(b, "\r\n")
		if err != nil && len(b) == 0 || len(b) == 0 || len(b) > most {
			return nil, Usagef("standard input has to begin with %d lines of 1 to %d bytes", n, most)
		}
		out = append(out, redact.New(b))
	}
	return out, nil
}

// Value is a secret's: all of standard input, or of a file, or what is typed.
func (a *App) Value(ctx context.Context, prompt string, stdin bool, file string) (redact.Secret, error) {
	var src io.Reader
	switch {
	case stdin && file != "":
		return redact.Secret{}, Usagef("--value-stdin and --value-file are two ways of saying it; give one")
	case stdin:
		src = a.In
	case file != "":
		f, err := os.Open(file)
		if err != nil {
			return redact.Secret{}, Usagef("the value cannot be read: %v", err)
		}
		defer func() { _ = f.Close() }()
		src = f
	default:
		f, ok := a.In.(*os.File)
		if !ok || !IsTerminal(f) {
			return redact.Secret{}, Usagef("there is no terminal to ask for the value at: give it with --value-stdin or --value-file")
		}
		return a.hidden(ctx, f, prompt)
	}
	b, err := io.ReadAll(io.LimitReader(src, maxSecret+1))
	switch {
	case err != nil:
		return redact.Secret{}, Usagef("the value cannot be read: %v", err)
	case len(b) == 0 || len(b) > maxSecret:
		return redact.Secret{}, Usagef("the value has 1 to %d bytes", maxSecret)
	}
	return redact.New(b), nil
}

// Sure asks before something is done that cannot be undone.
func (a *App) Sure(what string) error {
	if a.Yes {
		return nil
	}
	f, ok := a.In.(*os.File)
	if !ok || !IsTerminal(f) {
		return Usagef("%s cannot be undone: say --yes", what)
	}
	_, _ = fmt.Fprintf(a.Err, "%s cannot be undone. Type yes to go on: ", what)
	answer, err := a.FirstLine(16)
	if err != nil {
		return err
	}
	if !strings.EqualFold(strings.TrimSpace(answer.RevealString()), "yes") {
		return fault.FailedPrecondition("nothing was done")
	}
	return nil
}
