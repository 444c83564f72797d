package backup

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redoubt-ml/redoubt/internal/cli"
	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/internal/node"
	"github.com/redoubt-ml/redoubt/internal/testmesh"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/sqldb/sqldbtest"
)

// planned is an installation of separate processes, each of which is a goroutine of the test.
type planned struct {
	url, data string
	ca        []byte
	stop      func()
}

const planText = `
public_url: https://127.0.0.1:%[1]d
scoring_url: https://127.0.0.1:%[2]d
base_port: %[1]d
local_targets: true
etcd: [{name: etcd-1, host: 127.0.0.1, client_port: %[3]d, peer_port: %[4]d}]
instances:
  - {service: identity, name: a, host: 127.0.0.1}
  - {service: workspace, name: a, host: 127.0.0.1}
  - {service: keyvault, name: a, host: 127.0.0.1}
  - {service: telemetry, name: a, host: 127.0.0.1}
  - {service: compute, name: a, host: 127.0.0.1}
  - {service: inference, name: a, host: 127.0.0.1}
  - {service: gateway, name: a, host: 127.0.0.1}
postgres: {host: %[5]s, port: %[6]s, database: %[7]s}
`

// psql runs SQL as the server's administrator.
func psql(t *testing.T, dsn string, args ...string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "psql", append([]string{"-X", "-q", "-v", "ON_ERROR_STOP=1", dsn}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("psql: %v\n%s", err, out)
	}
}

// start runs what a plan says, and waits until it answers.
func (x *terminal) start(data string, base int) *planned {
	x.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	log := &locked{}
	p := &planned{url: fmt.Sprintf("https://127.0.0.1:%d", base), data: data, stop: func() { cancel(); wg.Wait() }}
	lines := [][]string{{"etcd", "--config", filepath.Join(data, "etcd-1", "etcd.yaml")}}
	for _, s := range node.Services {
		lines = append(lines, []string{"serve", s, "--config", filepath.Join(data, s+"-a", "service.yaml")})
	}
	for _, args := range lines {
		wg.Go(func() {
			if code := cli.Main(ctx, args, strings.NewReader(""), log, log); code != 0 && ctx.Err() == nil {
				x.t.Errorf("redoubt %s: %d\n%s", strings.Join(args, " "), code, log.tail())
			}
		})
	}
	var err error
	p.ca, err = os.ReadFile(filepath.Join(data, "ca.pem"))
	must(x.t, err)
	deadline := time.Now().Add(60 * time.Second)
	for _, s := range node.Services {
		for {
			code, out, errs := x.run("health", "--config", filepath.Join(data, s+"-a", "service.yaml"))
			if code == 0 {
				break
			}
			if time.Now().After(deadline) || x.t.Failed() {
				p.stop()
				x.t.Fatalf("%s does not answer: %s%s\n%s", s, out, errs, log.tail())
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
	return p
}

type locked struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *locked) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *locked) tail() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.b.String()
	return s[max(0, len(s)-4000):]
}

// D5, D10: an installation moves from SQLite to PostgreSQL, by a plan, works there, and moves back.
func TestFromSQLiteToPostgresAndBack(t *testing.T) {
	dsn := os.Getenv(sqldbtest.Env)
	if dsn == "" {
		t.Skip(sqldbtest.Env + " is not set: make test-postgres")
	}
	u, err := url.Parse(dsn)
	must(t, err)
	m, err := testmesh.StartOnPorts()
	must(t, err)
	defer m.Close()
	l := furnish(t, m)
	l.runs = "" // it may end meanwhile
	want := l.contents(t)
	x := at(t, m.URL, m.CA, m.Admin(t))
	key, seals := filepath.Join(x.dir, "key"), filepath.Join(x.dir, "seals")
	recipient, _ := x.ok("backup", "keygen", key)
	recipient = strings.TrimSpace(recipient)
	x.ok("seals", "copy", "--data", m.Dir, "--to", seals)
	x.ok("backup", filepath.Join(x.dir, "one"), "--recipient", recipient, "--data", m.Dir)
	password := m.Password()
	m.Stop()

	base := 20000 + rand.IntN(10000)
	database := fmt.Sprintf("moved_%d", base)
	psql(t, dsn, "-c", "CREATE DATABASE "+database+" ENCODING 'UTF8' TEMPLATE template0")
	plan, data := filepath.Join(x.dir, "plan.yaml"), filepath.Join(x.dir, "planned")
	must(t, os.WriteFile(plan, []byte(fmt.Sprintf(planText, base, base+9, base+20, base+21, u.Hostname(), u.Port(), database)), 0o600))
	x.ok("bootstrap", "--plan", plan, "--data", data, "--sql")
	u.Path = "/" + database
	psql(t, u.String(), "-f", filepath.Join(data, "postgres.sql"))
	x.ok("restore", filepath.Join(x.dir, "one"), "--identity", key, "--seals", seals, "--plan", plan, "--data", data)
	x.refused("is not empty", "restore", filepath.Join(x.dir, "one"), "--identity", key, "--seals", seals, "--plan", plan, "--data", data)
	x.ok("bootstrap", "--plan", plan, "--data", data)
	p := x.start(data, base)
	stop := sync.OnceFunc(p.stop)
	defer stop()
	moved := *l
	moved.Client = signedIn(t, p.url, p.ca, password)
	same(t, "on PostgreSQL", want, moved.contents(t))
	works(t, &moved)
	moved.wholeLog(t, "CreateServicePrincipal")

	token, err := moved.SignIn(t.Context(), "admin", redact.FromString(password))
	must(t, err)
	y := at(t, p.url, p.ca, token.GetAccessToken())
	addresses := []string{}
	for i, s := range []string{"identity", "", "workspace", "keyvault", "telemetry", "compute", "inference"} {
		if s != "" {
			addresses = append(addresses, "--at", fmt.Sprintf("%s=127.0.0.1:%d", s, base+2+i))
		}
	}
	_, said := y.ok(append([]string{"backup", filepath.Join(y.dir, "two"), "--recipient", recipient}, addresses...)...)
	t.Logf("%s", said)
	stop()
	back := filepath.Join(y.dir, "back")
	y.ok("restore", filepath.Join(y.dir, "two"), "--identity", key, "--seals", seals, "--data", back)
	again, err := testmesh.Start(func(c *node.UpConfig) { c.Data = back })
	must(t, err)
	defer again.Close()
	home := *l
	home.Client = signedIn(t, again.URL, again.CA, password)
	same(t, "back on SQLite", want, home.contents(t))
	works(t, &home)
	home.wholeLog(t, "CreateServicePrincipal")
}

func signedIn(t *testing.T, url string, ca []byte, password string) *client.Client {
	t.Helper()
	c, err := client.Dial(client.Context{Name: "test", Server: url, CAPEM: ca}, redact.Secret{})
	must(t, err)
	s, err := c.SignIn(t.Context(), "admin", redact.FromString(password))
	must(t, err)
	must(t, c.Close())
	c, err = client.Dial(client.Context{Name: "test", Server: url, CAPEM: ca}, redact.FromString(s.GetAccessToken()))
	must(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func same(t *testing.T, where string, want, got map[string]string) {
	t.Helper()
	for name, sum := range want {
		if got[name] != sum {
			t.Errorf("%s: %s is %q, not %q", where, name, got[name], sum)
		}
	}
}
