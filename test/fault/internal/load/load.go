//go:build linux

// Package load is what clients do with an installation while it is hurt: several of them, each with an identity of its own, change and
// read everything that it keeps, and note in an oracle's book what they were told.
//
// It owns the clients' connections and their workspaces.
//
// Trust boundary: the same as any client's. It speaks to the gateway alone, with generated clients.
//
// Invariants: each attempt has a request id of its own. A change is tried once, unless its request has an id by which the installation
// knows it again; then it is repeated under that. Reads are repeated on UNAVAILABLE, up to four times, and when the gateway asks this address to
// wait. An object has one writer.
//
// Failure: what the load cannot set up is an error of New; everything later is noted, and judged by the book.
package load

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	rulev1 "github.com/redoubt-ml/redoubt/gen/redoubt/rule/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/test/fault/internal/oracle"
)

const (
	// Group is where the workspaces are.
	Group = "subscriptions/default/resourceGroups/default"
	// Target is the compute that runs are for.
	Target = "worker"

	clients = 3
	// each bounds one attempt, pause lies between the steps of one loop.
	each, pause = 4 * time.Second, 100 * time.Millisecond
	// Repeats of reads, and of changes that are known again.
	tries, firstWait = 4, 100 * time.Millisecond
)

// Config of a Load.
type Config struct {
	// Gateway is host:port, TLS what is believed there, Dial how it is reached.
	Gateway string
	TLS     *tls.Config
	Dial    func(ctx context.Context, addr string) (net.Conn, error)
	// Admin and Password are the first administrator's.
	Admin, Password string
	Book            *oracle.Book
	// Tag tells the runs of this load from others on the machine.
	Tag string
	// Runs has runs submitted, for a target that somebody serves.
	Runs bool
}

// Load is some clients.
type Load struct {
	cfg     Config
	Admin   *Client
	clients []*Client
	files   string // snapshot of the workspace of runs
	// contents of snapshots by name, as path and text: what was read once.
	contents map[string][2]string

	gate   sync.RWMutex // held for reading while an operation is under way
	stop   chan struct{}
	wg     sync.WaitGroup
	number atomic.Int64
}

// Client is one identity and its connection.
type Client struct {
	Conn      *grpc.ClientConn
	Workspace string

	load           *Load
	user, password string
	uid            string

	mu    sync.Mutex
	token string
}

// New makes the clients and what they need.
func New(ctx context.Context, cfg Config) (*Load, error) {
	l := &Load{cfg: cfg, stop: make(chan struct{}), contents: make(map[string][2]string)}
	var err error
	if l.Admin, err = l.client(cfg.Admin, cfg.Password); err != nil {
		return nil, err
	}
	if err := l.Admin.SignIn(ctx); err != nil {
		return nil, fmt.Errorf("sign in: %w", err)
	}
	for i := range clients {
		c, err := l.client(fmt.Sprintf("client-%d", i), fmt.Sprintf("correct horse battery %d", i))
		if err != nil {
			return nil, err
		}
		l.clients = append(l.clients, c)
		if err := l.prepare(ctx, c, i); err != nil {
			return nil, fmt.Errorf("%s: %w", c.user, err)
		}
	}
	return l, nil
}

func (l *Load) client(user, password string) (*Client, error) {
	c := &Client{load: l, user: user, password: password}
	var err error
	c.Conn, err = grpc.NewClient("passthrough:///"+l.cfg.Gateway, grpc.WithTransportCredentials(credentials.NewTLS(l.cfg.TLS)), grpc.WithPerRPCCredentials(bearer{c}),
		grpc.WithContextDialer(l.cfg.Dial), grpc.WithNoProxy(), grpc.WithDisableRetry(), grpc.WithDisableServiceConfig(),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 300 * time.Millisecond}, MinConnectTimeout: time.Second}))
	return c, err
}

// prepare makes the user, his workspace and his roles.
func (l *Load) prepare(ctx context.Context, c *Client, i int) error {
	a := l.Admin
	u, err := identityv1.NewDirectoryServiceClient(a.Conn).CreateUser(ctx, &identityv1.CreateUserRequest{UserId: c.user, Password: c.password})
	if err != nil {
		return err
	}
	c.uid = u.GetUid()
	l.cfg.Book.Know(c.uid)
	ws, err := workspacev1.NewResourceServiceClient(a.Conn).CreateWorkspace(ctx, &workspacev1.CreateWorkspaceRequest{Parent: Group, WorkspaceId: fmt.Sprintf("w%d", i)})
	if err != nil {
		return err
	}
	c.Workspace = ws.GetName()
	for _, scope := range []string{c.Workspace, "/"}[:1+(clients-i)/clients] { // the first one is an administrator too
		if _, err := workspacev1.NewAccessServiceClient(a.Conn).CreateRoleAssignment(ctx, &workspacev1.CreateRoleAssignmentRequest{Scope: scope, Role: "roleDefinitions/owner", Principal: c.uid}); err != nil {
			return err
		}
	}
	if err := c.SignIn(ctx); err != nil {
		return err
	}
	if !l.cfg.Runs || i > 0 {
		return nil
	}
	if _, err := computev1.NewComputeServiceClient(a.Conn).CreateCompute(ctx, &computev1.CreateComputeRequest{Parent: c.Workspace, ComputeId: Target, Kind: computev1.Compute_KIND_SELF_HOSTED, MaxRuns: 3}); err != nil {
		return err
	}
	s, err := c.snapshot(ctx, "run.txt", "nothing")
	l.files = s.GetName()
	return err
}

// Workspace is that of the runs.
func (l *Load) Workspace() string { return l.clients[0].Workspace }

// SignIn gets a new token.
func (c *Client) SignIn(ctx context.Context) error {
	var token string
	_, err := c.change(ctx, identityv1.SignInService_SignIn_FullMethodName, func(ctx context.Context) error {
		r, err := identityv1.NewSignInServiceClient(c.Conn).SignIn(ctx, &identityv1.SignInRequest{User: c.user, Password: c.password})
		token = r.GetSession().GetAccessToken()
		return err
	})
	if err == nil {
		c.mu.Lock()
		c.token = token
		c.mu.Unlock()
	}
	return err
}

// Token is the one to call with.
func (c *Client) Token() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.token
}

// SignIn gives every client a new token.
func (l *Load) SignIn(ctx context.Context) error {
	failed := []error{l.Admin.SignIn(ctx)}
	for _, c := range l.clients {
		failed = append(failed, c.SignIn(ctx))
	}
	return errors.Join(failed...)
}

// Start has the clients work until Close.
func (l *Load) Start() {
	for i, c := range l.clients {
		loops := []func(context.Context){c.secrets, c.keys, c.models, c.snapshots, c.metrics()}
		if i == 0 {
			loops = append(loops, c.groups)
			if l.cfg.Runs {
				loops = append(loops, c.runs)
			}
		}
		for _, f := range loops {
			l.wg.Go(func() {
				for {
					select {
					case <-l.stop:
						return
					case <-time.After(pause):
					}
					l.gate.RLock()
					ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
					f(ctx)
					cancel()
					l.gate.RUnlock()
				}
			})
		}
	}
}

// Pause waits for what is under way and keeps further work back, until Resume.
func (l *Load) Pause() { l.gate.Lock() }

// Resume lets the clients work on.
func (l *Load) Resume() { l.gate.Unlock() }

// Close ends the clients. It must not be called while they are paused.
func (l *Load) Close() {
	close(l.stop)
	l.wg.Wait()
	for _, c := range append(l.clients, l.Admin) {
		_ = c.Conn.Close()
	}
}

// next is a number that nobody else has.
func (l *Load) next() int64 { return l.number.Add(1) }

// change makes one attempt under a request id of its own.
func (c *Client) change(ctx context.Context, method string, f func(context.Context) error) (*oracle.Call, error) {
	call := c.load.cfg.Book.Begin(method, c.uid, recorded(method))
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(ctx, "x-request-id", call.ID), each)
	defer cancel()
	err := f(ctx)
	c.load.cfg.Book.End(call, err)
	return call, err
}

// read repeats what changes nothing. Whoever looks at everything at the end asks for more than an address may: it waits as it is told to.
func (c *Client) read(ctx context.Context, method string, f func(context.Context) error) error {
	wait, n := firstWait, 1
	for {
		_, err := c.change(ctx, method, f)
		if err == nil {
			return nil
		}
		pause := fault.Describe(err).RetryAfter()
		switch {
		case status.Code(err) == codes.ResourceExhausted && pause > 0:
		case status.Code(err) == codes.Unavailable && n < tries:
			pause = wait
			wait, n = wait*2, n+1
		default:
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pause):
		}
	}
}

// again repeats a change that the installation knows again by an id in its request, until its fate is known or limit has passed. A refusal tells
// of its own attempt alone: what an earlier one has done, whose answer was lost, nobody knows then.
func (c *Client) again(ctx context.Context, method string, limit time.Duration, f func(context.Context) error) (*oracle.Call, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var lost *oracle.Call
	for {
		call, err := c.change(ctx, method, f)
		switch {
		case call.Fate == oracle.Refused && lost != nil:
			return lost, err
		case call.Fate != oracle.Unknown:
			return call, err
		}
		lost = call
		select {
		case <-ctx.Done():
			return call, err
		case <-time.After(firstWait):
		}
	}
}

// wrote makes an attempt to change an object, once.
func (c *Client) wrote(ctx context.Context, o *oracle.Object, value string, remove bool, method string, f func(context.Context) error) bool {
	call, err := c.change(ctx, method, f)
	c.load.cfg.Book.Wrote(o, oracle.Write{Call: call, Value: value, Delete: remove})
	return err == nil
}

// recorded reports whether each success of a method stands in the activity log.
func recorded(method string) bool {
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(strings.ReplaceAll(strings.TrimPrefix(method, "/"), "/", ".")))
	if err != nil {
		return false
	}
	r, ok := proto.GetExtension(d.Options(), rulev1.E_Rule).(*rulev1.Rule)
	return ok && r.GetAudit() == rulev1.Audit_AUDIT_ALWAYS
}

type bearer struct{ c *Client }

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	if t := b.c.Token(); t != "" {
		return map[string]string{"authorization": "Bearer " + t}, nil
	}
	return nil, nil //nolint:nilnil // no metadata
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (bearer) RequireTransportSecurity() bool { return true }
