package cli

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

const (
	maxPassword = 1024
	maxSecret   = 64 << 10
)

// password asks for one at the terminal without echo, twice if confirm, or reads one line of standard input.
func (a *app) password(ctx context.Context, prompt string, stdin, confirm bool) (redact.Secret, error) {
	if stdin {
		return a.line(maxPassword)
	}
	f, ok := a.in.(*os.File)
	if !ok || !isTerminal(f) {
		return redact.Secret{}, usagef("there is no terminal to ask for a password at: give it on standard input with --password-stdin")
	}
	p, err := a.hidden(ctx, f, prompt)
	if err != nil || !confirm {
		return p, err
	}
	again, err := a.hidden(ctx, f, "once more: ")
	if err == nil && !p.Equal(again) {
		err = usagef("the two are not the same")
	}
	return p, err
}

func (a *app) hidden(ctx context.Context, f *os.File, prompt string) (redact.Secret, error) {
	_, _ = fmt.Fprint(a.err, prompt)
	b, err := readHidden(ctx, f)
	_, _ = fmt.Fprintln(a.err)
	if err == nil && len(b) == 0 {
		err = usagef("nothing was typed")
	}
	return redact.New(b), err
}

// line reads one line of standard input.
func (a *app) line(most int) (redact.Secret, error) {
	b, err := bufio.NewReader(io.LimitReader(a.in, int64(most)+3)).ReadBytes('\n')
	if err != nil && len(b) == 0 {
		return redact.Secret{}, usagef("standard input is empty")
	}
	b = bytes.TrimRight(b, "\r\n")
	if len(b) == 0 || len(b) > most {
		return redact.Secret{}, usagef("standard input has to begin with a line of 1 to %d bytes", most)
	}
	return redact.New(b), nil
}

// value is a secret's: all of standard input, or of a file, or what is typed.
func (a *app) value(ctx context.Context, prompt string, stdin bool, file string) (redact.Secret, error) {
	var src io.Reader
	switch {
	case stdin && file != "":
		return redact.Secret{}, usagef("--value-stdin and --value-file are two ways of saying it; give one")
	case stdin:
		src = a.in
	case file != "":
		f, err := os.Open(file)
		if err != nil {
			return redact.Secret{}, usagef("the value cannot be read: %v", err)
		}
		defer func() { _ = f.Close() }()
		src = f
	default:
		f, ok := a.in.(*os.File)
		if !ok || !isTerminal(f) {
			return redact.Secret{}, usagef("there is no terminal to ask for the value at: give it with --value-stdin or --value-file")
		}
		return a.hidden(ctx, f, prompt)
	}
	b, err := io.ReadAll(io.LimitReader(src, maxSecret+1))
	switch {
	case err != nil:
		return redact.Secret{}, usagef("the value cannot be read: %v", err)
	case len(b) == 0 || len(b) > maxSecret:
		return redact.Secret{}, usagef("the value has 1 to %d bytes", maxSecret)
	}
	return redact.New(b), nil
}

// sure asks before something is done that cannot be undone.
func (a *app) sure(what string) error {
	if a.yes {
		return nil
	}
	f, ok := a.in.(*os.File)
	if !ok || !isTerminal(f) {
		return usagef("%s cannot be undone: say --yes", what)
	}
	_, _ = fmt.Fprintf(a.err, "%s cannot be undone. Type yes to go on: ", what)
	answer, err := a.line(16)
	if err != nil {
		return err
	}
	if !strings.EqualFold(strings.TrimSpace(answer.RevealString()), "yes") {
		return fault.FailedPrecondition("nothing was done")
	}
	return nil
}
