package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/internal/cli/openid"
	"github.com/redoubt-ml/redoubt/internal/cli/settings"
	"github.com/redoubt-ml/redoubt/pkg/config"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
)

// The exit codes: how a command ended, for scripts.
const (
	ExitOK      = iota
	ExitLocal   // wrong use, or a local problem
	ExitRefused // the installation refused or failed
	ExitDenied
	ExitTimeout
)

// App is one invocation: what surrounds the process, and what the flags that every command has say.
type App struct {
	Env     func(string) string
	Environ []string
	In      io.Reader
	Out     io.Writer
	Err     io.Writer
	Now     func() time.Time
	// Keyring takes the tokens, where there is one.
	Keyring settings.Keyring
	// Anew signs the user of a kept session in again, by a browser; nil where that is not possible.
	Anew func(ctx context.Context, c settings.Context) (credentials.PerRPCCredentials, error)
	// OfflineReset removes a user's factors on identity's host, with no service running: by its configuration's file, or the folder of an installation of one process.
	OfflineReset func(ctx context.Context, config, data, user string) (string, error)

	Output      string
	Workspace   string
	Group       string
	ContextName string
	Server      string
	CA          string
	Yes         bool
	Debug       bool
	Timeout     time.Duration
}

// Run runs one command of the tree below root, and returns how it ended.
func (a *App) Run(ctx context.Context, root *cobra.Command, args []string) int {
	root.SetArgs(args)
	root.SetIn(a.In)
	root.SetOut(a.Out)
	root.SetErr(a.Err)
	var cancel context.CancelFunc
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error {
		if err := a.Complete(); err != nil {
			return err
		}
		if a.Timeout > 0 {
			var timed context.Context
			timed, cancel = context.WithTimeout(cmd.Context(), a.Timeout) //nolint:gosec // called when the command has ended
			cmd.SetContext(timed)
		}
		return nil
	}
	cmd, err := root.ExecuteContextC(ctx)
	if cancel != nil {
		cancel()
	}
	if err == nil {
		return ExitOK
	}
	var e *Exit
	if errors.As(err, &e) {
		if e.Message != "" {
			_, _ = fmt.Fprintln(a.Err, "redoubt: "+e.Message)
		}
		return e.Code
	}
	p := client.Describe(err)
	var alone *needsTerminal
	if errors.As(err, &alone) {
		p.Next = "run it at a terminal, which asks for a code, or sign in first: redoubt login"
	}
	text := p.String()
	if isUsage(err) {
		text += "\n  → " + cmd.CommandPath() + " --help"
	}
	_, _ = fmt.Fprintln(a.Err, "redoubt: "+text)
	return exitCode(err, p)
}

// Exit ends the command with a code and, where it is not empty, a message that says it all.
type Exit struct {
	Code    int
	Message string
}

// Error implements error.
func (e *Exit) Error() string { return e.Message }

// exitCode is how the command ends for an error.
func exitCode(err error, p client.Problem) int {
	switch {
	case errors.Is(err, context.DeadlineExceeded), p.Code == codes.DeadlineExceeded:
		return ExitTimeout
	case !p.Remote:
		return ExitLocal
	case p.Code == codes.PermissionDenied, p.Code == codes.Unauthenticated:
		return ExitDenied
	}
	return ExitRefused
}

// usage is wrong use: of flags, arguments, names.
type usage struct{ error }

// Usagef is wrong use: the command's help is pointed to.
func Usagef(format string, args ...any) error { return usage{fmt.Errorf(format, args...)} }

// isUsage reports wrong use, cobra's own errors included.
func isUsage(err error) bool {
	var u usage
	return errors.As(err, &u) || strings.HasPrefix(err.Error(), "unknown command")
}

// Complete takes from the environment what no flag said.
func (a *App) Complete() error {
	for _, v := range []struct {
		p    *string
		name string
	}{{&a.Output, "FORMAT"}, {&a.Workspace, "WORKSPACE"}, {&a.Group, "RESOURCE_GROUP"}, {&a.ContextName, "CONTEXT"}, {&a.Server, "ADDR"}, {&a.CA, "CACERT"}} {
		if *v.p == "" {
			*v.p = a.Env("REDOUBT_" + v.name)
		}
	}
	switch a.Output {
	case "":
		a.Output = outputTable
	case outputTable, outputJSON, outputYAML, outputNone, outputMarkdown:
	default:
		return Usagef("the output is table, json, yaml or none, and not %q", a.Output)
	}
	if a.Timeout < 0 {
		return Usagef("--timeout is not less than 0")
	}
	return nil
}

// Say tells the user something beside the answer.
func (a *App) Say(format string, args ...any) {
	_, _ = fmt.Fprintf(a.Err, format+"\n", args...)
}

// Folder is where the settings are.
func (a *App) Folder() (settings.Folder, error) {
	d, err := settings.Default(a.Env)
	if err != nil {
		return d, err
	}
	switch v := a.Env("REDOUBT_KEYRING"); v {
	case "", "on":
		return d.WithKeyring(a.Keyring), nil
	case "off":
		return d, nil
	default:
		return d, Usagef("REDOUBT_KEYRING is on or off, and not %q", v)
	}
}

// Chosen is the context that the command is about: by flag, environment, or the current one; with the server of the flag over it.
func (a *App) Chosen() (settings.Context, error) {
	d, err := a.Folder()
	if err != nil && a.Server == "" {
		return settings.Context{}, err
	}
	f := &settings.File{}
	if err == nil {
		if f, err = d.Read(); err != nil {
			return settings.Context{}, err
		}
	}
	name := a.ContextName
	if name == "" {
		name = f.CurrentContext
	}
	c, ok := f.Find(name)
	switch {
	case !ok && a.ContextName != "" && a.Server == "":
		return c, Usagef("there is no context %q in %s; `redoubt login --server https://host:port --context %s` makes it", a.ContextName, d.Path(), a.ContextName)
	case !ok && a.Server == "":
		return c, fault.FailedPrecondition("no installation is chosen: start one with `redoubt up`, or sign in with `redoubt login --server https://host:port --ca FILE`")
	}
	if a.Server != "" && a.Server != c.Server {
		// What was known of another address does not hold for this one.
		c = settings.Context{Name: a.ContextName, Server: strings.TrimSuffix(a.Server, "/")}
	}
	if a.CA != "" {
		c.CA, c.CAFile = "", a.CA
	}
	return c, nil
}

// Connect dials the chosen installation with the token that there is.
func (a *App) Connect(ctx context.Context, opts ...grpc.DialOption) (*client.Client, error) {
	c, err := a.Chosen()
	if err != nil {
		return nil, err
	}
	by, err := a.Credentials(ctx, c)
	if err != nil {
		return nil, err
	}
	if by == nil {
		return nil, &Exit{Code: ExitDenied, Message: "not signed in at " + c.Server + ", or no longer\n  → sign in: redoubt login"}
	}
	p := &proof{by: by}
	// This one interceptor is outside those of the client: no deadline counts while somebody is asked.
	return a.DialBy(c, p, append(opts, grpc.WithUnaryInterceptor((&stepper{a: a, to: c, proof: p}).unary))...)
}

// DialBy dials an installation with what proves who calls.
func (a *App) DialBy(c settings.Context, by credentials.PerRPCCredentials, opts ...grpc.DialOption) (*client.Client, error) {
	return client.Dial(c.Client(), redact.Secret{}, slices.Concat([]grpc.DialOption{grpc.WithPerRPCCredentials(by)}, a.DialOptions(), opts)...)
}

// Credentials are what to call with: a token of the environment, or the kept session, which renews itself; nil where there is neither.
func (a *App) Credentials(ctx context.Context, c settings.Context) (credentials.PerRPCCredentials, error) {
	if a.Env("REDOUBT_TOKEN") == "" && c.Name != "" {
		d, err := a.Folder()
		if err != nil {
			return nil, err
		}
		t, ok, err := d.Session(ctx, c.Name, c.Server, a.Now())
		switch {
		case err != nil:
			return nil, err
		case ok && t.Bound():
			return openid.NewSession(openid.Config{Context: c, Folder: d, Now: a.Now}, t)
		}
	}
	token, err := a.Token(ctx, c)
	if err != nil || token.Empty() {
		return nil, err
	}
	return client.Bearer(token), nil
}

// ConnectAs dials the chosen installation, at an address of its own where that is not empty, as a service principal whose secret stands in a file. The client gets its tokens by itself, for
// as long as it lives.
func (a *App) ConnectAs(id, secretFile, address string, opts ...grpc.DialOption) (*client.Client, error) {
	c, err := a.Chosen()
	if err != nil {
		return nil, err
	}
	read := func() (redact.Secret, error) { return config.ReadSecret(secretFile) }
	s, err := read()
	if err != nil {
		return nil, Usagef("the service principal's secret cannot be read: %v", err)
	}
	s.Wipe()
	to := c.Client()
	to.Address = address
	return client.DialAs(to, client.ServicePrincipal{ID: id, Secret: read, Now: a.Now}, slices.Concat(a.DialOptions(), opts)...)
}

// Token is one that is good by itself, without a key: of the environment, or the kept one; empty where there is none.
func (a *App) Token(ctx context.Context, c settings.Context) (redact.Secret, error) {
	if t := a.Env("REDOUBT_TOKEN"); t != "" {
		return redact.FromString(t), nil
	}
	d, err := a.Folder()
	if err != nil || c.Name == "" {
		return redact.Secret{}, err
	}
	t, _, err := d.Token(ctx, c.Name, c.Server, a.Now())
	return t, err
}

// DialOptions tell of each call where that is wanted.
func (a *App) DialOptions() []grpc.DialOption {
	if !a.Debug {
		return nil
	}
	told := func(method string, begin time.Time, err error) {
		id := fault.RequestID(err)
		if id != "" {
			id = " request " + id
		}
		a.Say("debug: %s %s %s%s", method, status.Code(err), time.Since(begin).Round(time.Millisecond), id)
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

// With runs f with a client for the chosen installation.
func (a *App) With(f func(ctx context.Context, c *client.Client, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		c, err := a.Connect(cmd.Context())
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		return f(cmd.Context(), c, args)
	}
}
