package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/internal/cli/settings"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
)

// The exit codes.
const (
	exitOK = iota
	exitLocal
	exitRefused
	exitDenied
	exitTimeout
)

// Main runs one command. It returns when the command has ended, or soon after ctx has.
func Main(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	return run(ctx, &app{env: os.Getenv, environ: os.Environ(), in: stdin, out: stdout, err: stderr, now: time.Now}, args)
}

// app is one invocation.
type app struct {
	env     func(string) string
	environ []string
	in      io.Reader
	out     io.Writer
	err     io.Writer
	now     func() time.Time

	output    string
	workspace string
	group     string
	context   string
	server    string
	ca        string
	yes       bool
	debug     bool
	timeout   time.Duration
}

func run(ctx context.Context, a *app, args []string) int {
	root := a.root()
	root.SetArgs(args)
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	var cancel context.CancelFunc
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error {
		if err := a.complete(); err != nil {
			return err
		}
		if a.timeout > 0 {
			var timed context.Context
			timed, cancel = context.WithTimeout(cmd.Context(), a.timeout) //nolint:gosec // called when the command has ended
			cmd.SetContext(timed)
		}
		return nil
	}
	cmd, err := root.ExecuteContextC(ctx)
	if cancel != nil {
		cancel()
	}
	if err == nil {
		return exitOK
	}
	var e *exit
	if errors.As(err, &e) {
		if e.message != "" {
			_, _ = fmt.Fprintln(a.err, "redoubt: "+e.message)
		}
		return e.code
	}
	p := client.Describe(err)
	text := p.String()
	if isUsage(err) {
		text += "\n  → " + cmd.CommandPath() + " --help"
	}
	_, _ = fmt.Fprintln(a.err, "redoubt: "+text)
	return exitCode(err, p)
}

// exit ends the command with a code and, where it is not empty, a message that says it all.
type exit struct {
	code    int
	message string
}

// Error implements error.
func (e *exit) Error() string { return e.message }

// exitCode is how the command ends for an error.
func exitCode(err error, p client.Problem) int {
	switch {
	case errors.Is(err, context.DeadlineExceeded), p.Code == codes.DeadlineExceeded:
		return exitTimeout
	case !p.Remote:
		return exitLocal
	case p.Code == codes.PermissionDenied, p.Code == codes.Unauthenticated:
		return exitDenied
	}
	return exitRefused
}

// usage is wrong use: of flags, arguments, names.
type usage struct{ error }

func usagef(format string, args ...any) error { return usage{fmt.Errorf(format, args...)} }

// isUsage reports wrong use, cobra's own errors included.
func isUsage(err error) bool {
	var u usage
	return errors.As(err, &u) || strings.HasPrefix(err.Error(), "unknown command")
}

// complete takes from the environment what no flag said.
func (a *app) complete() error {
	for _, v := range []struct {
		p    *string
		name string
	}{{&a.output, "FORMAT"}, {&a.workspace, "WORKSPACE"}, {&a.group, "RESOURCE_GROUP"}, {&a.context, "CONTEXT"}, {&a.server, "ADDR"}, {&a.ca, "CACERT"}} {
		if *v.p == "" {
			*v.p = a.env("REDOUBT_" + v.name)
		}
	}
	if a.output == "" {
		a.output = "table"
	}
	if a.output != "table" && a.output != "json" && a.output != "markdown" {
		return usagef("the output is table or json, and not %q", a.output)
	}
	if a.timeout < 0 {
		return usagef("--timeout is not less than 0")
	}
	return nil
}

func (a *app) json() bool { return a.output == "json" }

// say tells the user something beside the answer.
func (a *app) say(format string, args ...any) {
	_, _ = fmt.Fprintf(a.err, format+"\n", args...)
}

func (a *app) folder() (settings.Folder, error) { return settings.Default(a.env) }

// chosen is the context that the command is about: by flag, environment, or the current one; with the server of the flag over it.
func (a *app) chosen() (settings.Context, error) {
	d, err := a.folder()
	if err != nil && a.server == "" {
		return settings.Context{}, err
	}
	f := &settings.File{}
	if err == nil {
		if f, err = d.Read(); err != nil {
			return settings.Context{}, err
		}
	}
	name := a.context
	if name == "" {
		name = f.CurrentContext
	}
	c, ok := f.Find(name)
	switch {
	case !ok && a.context != "" && a.server == "":
		return c, usagef("there is no context %q in %s; `redoubt login --server https://host:port --context %s` makes it", a.context, d.Path(), a.context)
	case !ok && a.server == "":
		return c, fault.FailedPrecondition("no installation is chosen: start one with `redoubt up`, or sign in with `redoubt login --server https://host:port --ca FILE`")
	}
	if a.server != "" && a.server != c.Server {
		// What was known of another address does not hold for this one.
		c = settings.Context{Name: a.context, Server: strings.TrimSuffix(a.server, "/")}
	}
	if a.ca != "" {
		c.CA, c.CAFile = "", a.ca
	}
	return c, nil
}

// connect dials the chosen installation with the token that there is.
func (a *app) connect(context.Context) (*client.Client, error) {
	c, err := a.chosen()
	if err != nil {
		return nil, err
	}
	token, err := a.token(c)
	if err != nil {
		return nil, err
	}
	if token.Empty() {
		return nil, &exit{exitDenied, "not signed in at " + c.Server + ", or no longer\n  → sign in: redoubt login"}
	}
	return client.Dial(c.Client(), token, a.dialOptions()...)
}

func (a *app) token(c settings.Context) (redact.Secret, error) {
	if t := a.env("REDOUBT_TOKEN"); t != "" {
		return redact.FromString(t), nil
	}
	d, err := a.folder()
	if err != nil || c.Name == "" {
		return redact.Secret{}, err
	}
	t, _, err := d.Token(c.Name, c.Server, a.now())
	return t, err
}

func (a *app) dialOptions() []grpc.DialOption {
	if !a.debug {
		return nil
	}
	told := func(method string, begin time.Time, err error) {
		id := fault.RequestID(err)
		if id != "" {
			id = " request " + id
		}
		a.say("debug: %s %s %s%s", method, status.Code(err), time.Since(begin).Round(time.Millisecond), id)
	}
	return []grpc.DialOption{
		grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			begin := time.Now()
			err := invoke(ctx, method, req, reply, cc, opts...)
			told(method, begin, err)
			return err
		}),
		grpc.WithChainStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, stream grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			begin := time.Now()
			s, err := stream(ctx, desc, cc, method, opts...)
			told(method+" opened", begin, err)
			return s, err
		}),
	}
}

// with runs f with a client for the chosen installation.
func (a *app) with(f func(ctx context.Context, c *client.Client, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		c, err := a.connect(cmd.Context())
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		return f(cmd.Context(), c, args)
	}
}
