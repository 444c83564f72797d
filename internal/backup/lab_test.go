package backup

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/redoubt-ml/redoubt/pkg/blob"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/seal"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// lab is two services with stores, seals and blobs of their own.
type lab struct {
	dir   string
	peers []Peer
	dbs   map[string]*sqldb.DB
	blobs map[string]*blob.Store
}

var names = []string{"keyvault", "workspace"}

func own() sqldb.MigrationSet {
	return sqldb.MigrationSet{Name: "lab", FS: fstest.MapFS{"1_m.sql": {Data: []byte("-- +goose Up\nCREATE TABLE item (id TEXT NOT NULL PRIMARY KEY, body BYTEA, n BIGINT NOT NULL);\nCREATE TABLE activity_head (id BIGINT NOT NULL PRIMARY KEY, position BIGINT NOT NULL);\nINSERT INTO activity_head VALUES (1, 0);")}}}
}

func stores() map[string]Store {
	out := map[string]Store{}
	for _, name := range names {
		out[name] = Store{Folder: name, Migrations: []sqldb.MigrationSet{envelope.Migrations(), own()}, Blobs: name == "workspace"}
	}
	return out
}

func newLab(t testing.TB) *lab {
	t.Helper()
	l := &lab{dir: t.TempDir(), dbs: map[string]*sqldb.DB{}, blobs: map[string]*blob.Store{}}
	for _, name := range names {
		dir := filepath.Join(l.dir, name)
		must(t, os.Mkdir(dir, 0o700))
		s, err := seal.OpenFile(filepath.Join(dir, "seal.key"), true)
		must(t, err)
		db, err := sqldb.Open(t.Context(), sqldb.Config{Driver: sqldb.SQLite, Path: filepath.Join(dir, "db.sqlite"), Migrations: stores()[name].Migrations, Finish: passThrough})
		must(t, err)
		t.Cleanup(func() { _ = db.Close() })
		ring, err := envelope.New(envelope.Config{Source: envelope.SealSource(s, name), DB: db})
		must(t, err)
		cfg := Config{Service: name, Instance: "a", DB: db, Own: ring, Seal: s.Fingerprint()}
		if name == "workspace" {
			b, err := blob.Open(t.Context(), blob.Config{Dir: filepath.Join(dir, "blob")})
			must(t, err)
			t.Cleanup(func() { _ = b.Close() })
			cfg.Blobs, l.blobs[name] = b, b
			for i := range 3 {
				_, err := b.Put(t.Context(), fmt.Sprintf("ws/%d", i), strings.NewReader(strings.Repeat("b", 400*i)))
				must(t, err)
			}
		}
		l.dbs[name] = db
		l.insert(t, name, "first", []byte("body"))
		l.insert(t, name, "second", nil)
		service, err := New(cfg)
		must(t, err)
		l.peers = append(l.peers, Peer{Service: name, Conn: serve(t, service)})
	}
	must(t, l.dbs["keyvault"].Write(t.Context(), func(ctx context.Context, tx *sqldb.Tx) error {
		_, err := tx.ExecContext(ctx, "UPDATE activity_head SET position = 77")
		return err
	}))
	return l
}

func serve(t testing.TB, s *Service) *grpc.ClientConn {
	t.Helper()
	l := bufconn.Listen(1 << 20)
	server := grpc.NewServer(grpc.StreamInterceptor(func(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
		if err := next(srv, ss); err != nil {
			return fault.ToStatus(err, "redoubt.lab", "").Err() // as the chain does
		}
		return nil
	}))
	s.Register(server)
	go func() { _ = server.Serve(l) }()
	t.Cleanup(server.Stop)
	conn, err := grpc.NewClient("passthrough:///lab", grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(MaxMessage)),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	must(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func (l *lab) insert(t testing.TB, service, id string, body []byte) {
	t.Helper()
	must(t, l.dbs[service].Write(context.Background(), func(ctx context.Context, tx *sqldb.Tx) error {
		_, err := tx.ExecContext(ctx, "INSERT INTO item (id, body, n) VALUES ($1, $2, $3)", id, body, int64(len(id)))
		return err
	}))
}

// take is a backup, not encrypted.
func (l *lab) take(t testing.TB) []byte {
	t.Helper()
	var out bytes.Buffer
	s, err := Take(t.Context(), TakeConfig{Peers: l.peers, Installation: "lab"}, &out)
	must(t, err)
	if len(s.Parts) != 2 || s.ActivityPosition != 77 || s.Parts[1].Blobs != 3 || s.Parts[1].BlobBytes != 1200 || s.Held() <= 0 || s.Held() > holdLimit {
		t.Fatalf("the summary is %+v", s)
	}
	return out.Bytes()
}

func (l *lab) verify(b []byte) error {
	_, err := Verify(context.Background(), bytes.NewReader(b), l.dir)
	return err
}

func restoreInto(data, seals string, b []byte, change ...func(*RestoreConfig)) error {
	cfg := RestoreConfig{Data: data, Seals: seals, Stores: stores()}
	for _, f := range change {
		f(&cfg)
	}
	_, err := Restore(context.Background(), cfg, bytes.NewReader(b))
	return err
}

// entries says what is in a folder.
func entries(t testing.TB, dir string) string {
	t.Helper()
	all, err := os.ReadDir(dir)
	must(t, err)
	var out []string
	for _, e := range all {
		out = append(out, e.Name())
	}
	return strings.Join(out, " ")
}
