package proc

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"

	"github.com/redoubt-ml/redoubt/internal/node"
	"github.com/redoubt-ml/redoubt/pkg/sqldb/sqldbtest"
)

// Doubled are the services that run twice in a Replicated.
var Doubled = []string{"identity", "workspace", "keyvault", "telemetry", "gateway"}

// Replicated is an installation on PostgreSQL, of a plan, in which the services of Doubled run twice.
type Replicated struct {
	*Installation
	// Twice are the processes of Doubled.
	Twice    []*Process
	gateways []string // host:port
	database string   // a superuser's URL
}

// NewReplicated makes the installation in a database of its own, and starts it. It needs the URL of a PostgreSQL in REDOUBT_TEST_POSTGRES
// (tools/with-postgres.sh), of a role that may do everything, on this machine, and a bucket (tools/with-s3.sh).
func NewReplicated(t testing.TB) *Replicated {
	t.Helper()
	server, err := url.Parse(os.Getenv(sqldbtest.Env))
	if err != nil || server.Host == "" {
		t.Skip(sqldbtest.Env + " is not set: make test-replicas")
	}
	if os.Getenv("REDOUBT_TEST_S3") == "" {
		t.Skip("REDOUBT_TEST_S3 is not set: make test-replicas")
	}
	in := &Installation{User: "admin"}
	in.make(t)
	name := fmt.Sprintf("replicated_%d", rand.Uint32())
	psql(t, server.String(), "CREATE DATABASE "+name+" ENCODING 'UTF8' TEMPLATE template0")
	r := &Replicated{Installation: in}
	own := *server
	own.Path = "/" + name
	r.database = own.String()

	network := fmt.Sprintf("127.%d.%d.", 1+rand.IntN(250), rand.IntN(250))
	_, base, err := splitPort(freePorts(t))
	if err != nil {
		t.Fatal(err)
	}
	host := func(service string, replica int) string {
		return fmt.Sprintf("%s%d", network, 10*(1+replica)+slices.Index(node.Services, service))
	}
	in.URL = fmt.Sprintf("https://%s:%d", host("gateway", 0), base)
	var plan strings.Builder
	fmt.Fprintf(&plan, "public_url: %s\nscoring_url: https://%s:%d\nbase_port: %d\nleaf_life: 1m\nlocal_targets: false\npostgres: {host: %s, port: %s, database: %s}\netcd:\n  - {name: etcd-1, host: %s41, client_port: %d, peer_port: %d}\ninstances:\n",
		in.URL, host("inference", 0), base+9, base, server.Hostname(), server.Port(), name, network, base, base+1)
	for _, s := range node.Services {
		fmt.Fprintf(&plan, "  - {service: %s, name: a, host: %s}\n", s, host(s, 0))
		if slices.Contains(Doubled, s) {
			fmt.Fprintf(&plan, "  - {service: %s, name: b, host: %s}\n", s, host(s, 1))
		}
	}
	// Two instances that keep blobs share them in a bucket.
	fmt.Fprintf(&plan, "blobs: {url: \"%s&prefix=%s\", credentials: %s, root: %s}\n", os.Getenv("REDOUBT_TEST_S3"), name, os.Getenv("REDOUBT_TEST_S3_CREDENTIALS"), os.Getenv("REDOUBT_TEST_S3_ROOT"))
	r.gateways = []string{fmt.Sprintf("%s:%d", host("gateway", 0), base), fmt.Sprintf("%s:%d", host("gateway", 1), base)}
	path := filepath.Join(in.base, "plan.yaml")
	if err := os.WriteFile(path, []byte(plan.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	bootstrap := []string{"bootstrap", "--plan", path, "--data", in.Data}
	if code, out := Run(t, Environment(in.base), append(bootstrap, "--sql")...); code != 0 {
		t.Fatalf("bootstrap --sql ends with %d: %s", code, out)
	}
	psqlFile(t, r.database, filepath.Join(in.Data, "postgres.sql"))
	code, out := Run(t, Environment(in.base), bootstrap...)
	if code != 0 {
		t.Fatalf("bootstrap ends with %d: %s", code, out)
	}
	for line := range strings.Lines(out) {
		where, args, ok := strings.Cut(strings.TrimSpace(line), ": redoubt ")
		name, _, process := strings.Cut(where, " at ")
		if !ok || !process {
			continue
		}
		p := in.process(name, strings.Fields(args)...)
		if strings.HasPrefix(name, "gateway") { // all callers are one address here, which may ask more than that of a fast machine
			p.Args = append(p.Args, "--set", "edge.calls_per_second=100000")
		}
		in.Processes = append(in.Processes, p)
		if service, _, _ := strings.Cut(name, "-"); slices.Contains(Doubled, service) {
			r.Twice = append(r.Twice, p)
		}
	}
	if len(r.Twice) != 2*len(Doubled) {
		t.Fatalf("bootstrap names %d processes that run twice:\n%s", len(r.Twice), out)
	}
	in.Start(t)
	in.WaitReady(t)
	for _, p := range in.Processes {
		r.WaitServing(t, p)
	}
	return r
}

// program finds one of PostgreSQL's programs.
func program(t testing.TB, name string) string {
	t.Helper()
	if p, err := exec.LookPath(name); err == nil {
		return p
	}
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/" + name)
	if len(found) == 0 {
		t.Skip("PostgreSQL's " + name + " is not here")
	}
	return found[len(found)-1]
}

func psql(t testing.TB, database, command string) string {
	t.Helper()
	return psqlWith(t, database, "-c", command)
}

func psqlFile(t testing.TB, database, file string) { psqlWith(t, database, "-f", file) }

func psqlWith(t testing.TB, database string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, program(t, "psql"), append([]string{"-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", database}, args...)...).CombinedOutput() //nolint:gosec // the system's own psql, on a database of the test's own
	if err != nil {
		t.Fatalf("psql %v: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// Leader is the process that claimed a role of a service last.
func (r *Replicated) Leader(t testing.TB, service, role string) (p *Process, term string) {
	t.Helper()
	holder, term, _ := strings.Cut(psql(t, r.database, "SELECT holder, term FROM "+service+".leader WHERE role = '"+role+"'"), "|")
	i := slices.IndexFunc(r.Processes, func(p *Process) bool { return p.Name == holder })
	if i < 0 {
		t.Fatalf("%s leads in %s of %s, and is no process", holder, role, service)
	}
	return r.Processes[i], term
}

// WaitServing waits until the process says that it serves.
func (r *Replicated) WaitServing(t testing.TB, p *Process) {
	t.Helper()
	i := slices.Index(p.Args, "--config")
	if i < 0 || p.Args[0] == "etcd" {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	if err := poll(ctx, func() error {
		if code, out := Run(t, Environment(r.base), "health", "--config", p.Args[i+1]); code != 0 {
			return fmt.Errorf("%s: %s", p.Name, out)
		}
		return nil
	}); err != nil {
		t.Fatalf("%v\n%s", err, p.Output())
	}
}

// Both is a connection to both gateways, in turn. A policy is a service config, as `redoubt retry-policy` prints it; without one nothing
// is repeated.
func (r *Replicated) Both(t testing.TB, token, policy string) *grpc.ClientConn {
	t.Helper()
	if policy == "" {
		policy = `{"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": ""}}`
	}
	return r.dial(t, token, policy, r.gateways...)
}

// reconnect is what docs/retries.md tells clients to wait at most before they try a gateway again that was away.
var reconnect = backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second}

func (r *Replicated) dial(t testing.TB, token, policy string, gateways ...string) *grpc.ClientConn {
	t.Helper()
	found := manual.NewBuilderWithScheme("gateways")
	var addresses []resolver.Endpoint
	for _, g := range gateways {
		addresses = append(addresses, resolver.Endpoint{Addresses: []resolver.Address{{Addr: g}}})
	}
	found.InitialState(resolver.State{Endpoints: addresses})
	host, _, err := splitPort(gateways[0]) // the certificate is the same for both
	if err != nil {
		t.Fatal(err)
	}
	tls := r.Access().TLS()
	tls.ServerName = host
	opts := []grpc.DialOption{grpc.WithResolvers(found), grpc.WithTransportCredentials(credentials.NewTLS(tls)), grpc.WithNoProxy(), grpc.WithDefaultServiceConfig(policy),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: reconnect, MinConnectTimeout: 5 * time.Second})}
	if token != "" {
		opts = append(opts, grpc.WithPerRPCCredentials(bearer(token)))
	}
	conn, err := grpc.NewClient("gateways:///redoubt", opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}
