// Package backup backs whole installations up while they work, restores them, and looks whether everything is there: through the command
// line, as an operator does it.
package backup

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	keyvaultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/keyvault/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/internal/cli"
	"github.com/redoubt-ml/redoubt/internal/testmesh"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

func TestMain(m *testing.M) {
	testmesh.Child()
	os.Exit(m.Run())
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// terminal is an operator at an installation.
type terminal struct {
	t   testing.TB
	dir string
}

// at makes the environment of the test that of an operator of the mesh, with a token of the administrator.
func at(t *testing.T, url string, ca []byte, token string) *terminal {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "ca.pem")
	must(t, os.WriteFile(file, ca, 0o600))
	for k, v := range map[string]string{
		"HOME": dir, "REDOUBT_CONFIG": filepath.Join(dir, "config.yaml"), "REDOUBT_KEYRING": "off", "REDOUBT_FORMAT": "", "REDOUBT_CONTEXT": "",
		"REDOUBT_RESOURCE_GROUP": "", "REDOUBT_WORKSPACE": "", "REDOUBT_ADDR": url, "REDOUBT_CACERT": file, "REDOUBT_TOKEN": token,
	} {
		t.Setenv(k, v)
	}
	return &terminal{t, dir}
}

// run types a command and gives how it ended and all that it wrote.
func (x *terminal) run(args ...string) (code int, out, errs string) {
	x.t.Helper()
	var o, e bytes.Buffer
	code = cli.Main(context.Background(), args, strings.NewReader(""), &o, &e)
	return code, o.String(), e.String()
}

func (x *terminal) ok(args ...string) (out, errs string) {
	x.t.Helper()
	code, out, errs := x.run(args...)
	if code != 0 {
		x.t.Fatalf("redoubt %s: %d\n%s%s", strings.Join(args, " "), code, out, errs)
	}
	return out, errs
}

// refused types a command that must fail, with these words, and change nothing.
func (x *terminal) refused(words string, args ...string) {
	x.t.Helper()
	code, out, errs := x.run(args...)
	if code == 0 || !strings.Contains(errs, words) {
		x.t.Errorf("redoubt %s: %d, and not refused with %q\n%s%s", strings.Join(args, " "), code, words, out, errs)
	}
}

// load changes things at three services, one after the other, as fast as they are acknowledged.
type load struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup
	mu     sync.Mutex
	begun  map[string]time.Time // by what was changed
	acked  map[string]time.Time
	took   []time.Duration

	workers int
	chained int
}

// chain is how many links the chain has.
func (l *load) chain() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.chained
}

// newLoad begins. Each worker makes its next change when the last was acknowledged. Worker 0 of each kind is one and the same: it makes a
// secret, then a principal, then a metric, each after the one before, so that none may come back without its cause.
func newLoad(t testing.TB, conn *grpc.ClientConn, workspace, run string, workers int, prefix ...string) *load {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{cancel: cancel, begun: map[string]time.Time{}, acked: map[string]time.Time{}, workers: workers}
	named := strings.Join(prefix, "")
	user := func(id string) func() error {
		return func() error {
			_, err := identityv1.NewDirectoryServiceClient(conn).CreateServicePrincipal(ctx, &identityv1.CreateServicePrincipalRequest{ServicePrincipalId: named + id})
			return err
		}
	}
	secret := func(id string) func() error {
		return func() error {
			_, err := keyvaultv1.NewSecretServiceClient(conn).SetSecret(ctx, &keyvaultv1.SetSecretRequest{Parent: workspace, SecretId: named + id, Value: []byte(id)})
			return err
		}
	}
	metric := func(id string, w, n int) func() error {
		return func() error {
			_, err := telemetryv1.NewMetricServiceClient(conn).LogBatch(ctx, &telemetryv1.LogBatchRequest{
				Run: run, BatchId: named + id, Metrics: []*telemetryv1.Metric{{Key: fmt.Sprint("load", w), Value: float64(n), Step: int64(n)}},
			})
			return err
		}
	}
	repeat := func(step func(n int) bool) {
		l.wg.Go(func() {
			for n := 0; ctx.Err() == nil && step(n); n++ {
			}
		})
	}
	repeat(func(n int) bool {
		l.mu.Lock()
		l.chained = n + 1
		l.mu.Unlock()
		s, u, m := fmt.Sprintf("secret-chain-%d", n), fmt.Sprintf("user-chain-%d", n), fmt.Sprintf("metric-0-%d", n)
		return l.change(ctx, t, s, secret(s)) && l.change(ctx, t, u, user(u)) && l.change(ctx, t, m, metric(m, 0, n))
	})
	for w := 1; w < workers; w++ {
		repeat(func(n int) bool { id := fmt.Sprintf("user-%d-%d", w, n); return l.change(ctx, t, id, user(id)) })
		repeat(func(n int) bool { id := fmt.Sprintf("secret-%d-%d", w, n); return l.change(ctx, t, id, secret(id)) })
		repeat(func(n int) bool {
			id := fmt.Sprintf("metric-%d-%d", w, n)
			return l.change(ctx, t, id, metric(id, w, n))
		})
	}
	return l
}

// change makes one change, and again where the caller is too fast for his limit.
func (l *load) change(ctx context.Context, t testing.TB, id string, f func() error) bool {
	begin := time.Now()
	l.mu.Lock()
	l.begun[id] = begin
	l.mu.Unlock()
	for {
		begin = time.Now()
		err := fault.FromStatus(f())
		switch {
		case err == nil:
			l.mu.Lock()
			l.acked[id] = time.Now()
			l.took = append(l.took, time.Since(begin))
			l.mu.Unlock()
			return true
		case ctx.Err() != nil:
			return false
		case fault.ReasonOf(err) != faultv1.Reason_RATE_LIMITED:
			t.Errorf("%s: %v", id, err)
			return false
		}
		time.Sleep(max(fault.Describe(err).RetryAfter(), 5*time.Millisecond)) // the limit says for how long
	}
}

// acknowledged is how many changes were, so far.
func (l *load) acknowledged() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.acked)
}

// until waits for so many acknowledged changes.
func (l *load) until(t testing.TB, n int) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); l.acknowledged() < n; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) || t.Failed() {
			t.Fatalf("%d changes of %d", l.acknowledged(), n)
		}
	}
}

func (l *load) stop() {
	l.cancel()
	l.wg.Wait()
}
