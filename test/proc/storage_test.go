package proc

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	keyvaultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/keyvault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// D10: an installation of a plan that keeps everything over the wire: rows in PostgreSQL by verify-full, blobs in a bucket by https. A run goes
// through it; PostgreSQL is killed and started again, and everything acknowledged is there.
func TestStorageOverTheWire(t *testing.T) {
	needSandbox(t)
	tls, control, s3 := os.Getenv("REDOUBT_TEST_POSTGRES_TLS"), os.Getenv("REDOUBT_TEST_POSTGRES_CONTROL"), os.Getenv("REDOUBT_TEST_S3")
	if tls == "" || s3 == "" {
		t.Skip("needs PostgreSQL over TLS and a bucket: make proc-storage")
	}
	super, err := url.Parse(os.Getenv("REDOUBT_TEST_POSTGRES"))
	if err != nil {
		t.Fatal(err)
	}
	psql := func(database string, args ...string) {
		t.Helper()
		u := *super
		u.Path = "/" + database
		if out, err := exec.CommandContext(t.Context(), "psql", append([]string{u.String(), "-v", "ON_ERROR_STOP=1", "-q"}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("psql: %v\n%s", err, out)
		}
	}
	more := fmt.Sprintf("postgres: {host: %s, port: %s, database: wire, root: %s}\nblobs: {url: \"%s&prefix=wire\", credentials: %s, root: %s}\n",
		super.Hostname(), super.Port(), filepath.Join(tls, "root.pem"), s3, os.Getenv("REDOUBT_TEST_S3_CREDENTIALS"), os.Getenv("REDOUBT_TEST_S3_ROOT"))
	h := NewHosts(t, more, func(args ...string) {
		if code, out := Run(t, Environment(filepath.Dir(args[2])), append(args, "--sql")...); code != 0 {
			t.Fatalf("bootstrap --sql ends with %d: %s", code, out)
		}
		psql("postgres", "-c", "CREATE DATABASE wire TEMPLATE template0 ENCODING 'UTF8'")
		psql("wire", "-f", filepath.Join(args[4], "postgres.sql"))
	})
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	l, err := NewLab(ctx, h.Access(), "wire")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	count := func(id string) {
		t.Helper()
		r, err := l.Count(ctx, id, 20, 10*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		if r, err = l.WaitRun(ctx, r.GetName(), nil); err != nil || r.GetState().String() != "STATE_COMPLETED" {
			t.Fatalf("%s: %v, %v", id, r.GetState(), err)
		}
		if steps, err := l.History(ctx, r.GetName(), "i"); err != nil || len(steps) != 20 {
			t.Errorf("%s: %d metrics, %v", id, len(steps), err)
		}
	}
	count("before")

	// PostgreSQL dies under writes. Each is repeated with its value until it is acknowledged.
	acknowledged, refused := 0, 0
	set := func(i int) error {
		_, err := l.Secrets().SetSecret(ctx, &keyvaultv1.SetSecretRequest{Parent: l.Workspace, SecretId: fmt.Sprintf("s%d", i), Value: fmt.Appendf(nil, "value %d", i)})
		return err
	}
	for i := range 60 {
		if i == 20 {
			if out, err := exec.CommandContext(ctx, control, "kill").CombinedOutput(); err != nil {
				t.Fatalf("kill: %v\n%s", err, out)
			}
			err := set(i)
			if c := fault.Code(err); c != codes.Unavailable && c != codes.DeadlineExceeded {
				t.Errorf("while PostgreSQL is away: %v", err)
			}
			if out, err := exec.CommandContext(ctx, control, "start").CombinedOutput(); err != nil {
				t.Fatalf("start: %v\n%s", err, out)
			}
		}
		if err := poll(ctx, func() error {
			err := set(i)
			if err != nil {
				refused++
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
		acknowledged++
	}
	for i := range acknowledged {
		v, err := l.Secrets().AccessSecret(ctx, &keyvaultv1.AccessSecretRequest{Name: fmt.Sprintf("%s/secrets/s%d", l.Workspace, i)})
		if err != nil || string(v.GetValue()) != fmt.Sprintf("value %d", i) {
			t.Errorf("secret %d was acknowledged: %v", i, err)
		}
	}
	count("after")
	for _, p := range h.Services {
		select {
		case <-p.Ended():
			t.Errorf("%s has ended: %v\n%s", p.Name, p.Err(), p.Output())
		default:
		}
		if _, err := os.Stat(filepath.Join(h.Data, p.Name, "db.sqlite")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s keeps rows in its folder", p.Name)
		}
		if _, err := os.Stat(filepath.Join(h.Data, p.Name, "blob")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s keeps blobs in its folder", p.Name)
		}
	}
	t.Logf("%d acknowledged, %d refused while PostgreSQL was away, 0 lost", acknowledged, refused)
}
