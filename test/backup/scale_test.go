package backup

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/redoubt-ml/redoubt/internal/node"
	"github.com/redoubt-ml/redoubt/internal/testmesh"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
)

// percentile of durations, in milliseconds.
func percentile(all []time.Duration, p float64) float64 {
	if len(all) == 0 {
		return 0
	}
	slices.Sort(all)
	return float64(all[min(len(all)-1, int(p*float64(len(all))))].Microseconds()) / 1000
}

// RELIABILITY 36: how fast a large installation is backed up and restored, and how long changes wait meanwhile. BACKUP_ROWS rows of what
// metrics are kept as are put into telemetry's store besides.
func TestScale(t *testing.T) {
	rows, err := strconv.Atoi(os.Getenv("BACKUP_ROWS"))
	if err != nil {
		t.Skip("BACKUP_ROWS is not set: make backup-scale")
	}
	m, err := testmesh.StartOnPorts()
	must(t, err)
	defer m.Close()
	l := furnish(t, m)
	password := m.Password()
	x := at(t, m.URL, m.CA, m.Admin(t))
	key, file, seals, data := filepath.Join(x.dir, "key"), filepath.Join(x.dir, "backup.age"), filepath.Join(x.dir, "seals"), filepath.Join(x.dir, "data")
	recipient, _ := x.ok("backup", "keygen", key)
	recipient = recipient[:len(recipient)-1]
	x.ok("seals", "copy", "--data", m.Dir, "--to", seals)
	m.Stop()
	fillTelemetry(t, filepath.Join(m.Dir, "telemetry", "db.sqlite"), rows)
	must(t, m.Restart())
	l.Client = dialed(t, m, m.SignIn(t, "admin", password))
	token := m.SignIn(t, "admin", password)
	t.Setenv("REDOUBT_TOKEN", token)

	quiet := newLoad(t, m.Dial(t, token), l.workspace, l.tracked, 1)
	time.Sleep(5 * time.Second) // how long is measured
	quiet.stop()
	busy := newLoad(t, m.Dial(t, token), l.workspace, l.tracked, 1, "busy-")
	busy.until(t, 10)
	begin := time.Now()
	_, said := x.ok("backup", file, "--recipient", recipient, "--data", m.Dir)
	took := time.Since(begin)
	busy.stop()
	info, err := os.Stat(file)
	must(t, err)
	size := float64(info.Size()) / (1 << 20)
	fmt.Print(said)
	fmt.Printf("figure backup_rows_per_second %.0f\nfigure backup_mib_per_second %.1f\nfigure backup_seconds %.1f of %d rows, %.0f MiB\n", float64(rows)/took.Seconds(), size/took.Seconds(), took.Seconds(), rows, size)
	fmt.Printf("figure write_p99_ms without %.1f with %.1f; longest without %.1f with %.1f; %d and %d writes\n",
		percentile(quiet.took, 0.99), percentile(busy.took, 0.99), percentile(quiet.took, 1), percentile(busy.took, 1), len(quiet.took), len(busy.took))
	m.Stop()
	begin = time.Now()
	x.ok("backup", "verify", file, "--identity", key, "--seals", seals)
	fmt.Printf("figure verify_seconds %.1f\n", time.Since(begin).Seconds())
	begin = time.Now()
	x.ok("restore", file, "--identity", key, "--seals", seals, "--data", data)
	took = time.Since(begin)
	fmt.Printf("figure restore_seconds %.1f of %d rows (goal: 300 for 1000000), %.0f rows/s\n", took.Seconds(), rows, float64(rows)/took.Seconds())
	if limit := 5 * time.Minute * time.Duration(max(rows, 1_000_000)) / 1_000_000; took > limit {
		t.Errorf("the restore took %s, more than %s", took, limit)
	}
	again, err := testmesh.Start(func(c *node.UpConfig) { c.Data = data })
	must(t, err)
	defer again.Close()
	again.SignIn(t, "admin", password)
}

// fillTelemetry puts rows as large as chunks of metrics into a store that is stopped. Nothing reads them.
func fillTelemetry(t *testing.T, path string, rows int) {
	t.Helper()
	db, err := sqldb.Open(t.Context(), sqldb.Config{
		Driver: sqldb.SQLite, Path: path, Migrations: node.Stores()["telemetry"].Migrations, Finish: func(_ context.Context, commit func() error) error { return commit() },
	})
	must(t, err)
	sealed := make([]byte, 200)
	for done := 0; done < rows; {
		must(t, db.Write(t.Context(), func(ctx context.Context, tx *sqldb.Tx) error {
			for range min(50_000, rows-done) {
				_, _ = rand.Read(sealed)
				if _, err := tx.ExecContext(ctx, "INSERT INTO metric_chunk (run_uid, key_mac, seq, step_min, step_max, time_min, time_max, points, sealed) VALUES ($1, $2, $3, 1, 2, 3, 4, 5, $4)",
					fmt.Sprintf("run_scale%d", done%1000), sealed[:32], int64(done), sealed); err != nil {
					return err
				}
				done++
			}
			return nil
		}))
	}
	must(t, db.Close())
}
