package installation

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/redoubt-ml/redoubt/internal/backup"
	"github.com/redoubt-ml/redoubt/internal/cli/app"
	"github.com/redoubt-ml/redoubt/internal/node"
	"github.com/redoubt-ml/redoubt/internal/node/plan"
	"github.com/redoubt-ml/redoubt/pkg/blob"
	"github.com/redoubt-ml/redoubt/pkg/observe"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
)

func (a verbs) restore() *cobra.Command {
	var data, seals, planFile string
	var open opening
	var bucket blobFlags
	c := &cobra.Command{
		Use: "restore FILE --seals FOLDER --data FOLDER", Short: "Make an installation of a backup, in an empty folder", Args: app.Exactly(1),
		Long: `Make an installation of a backup, in an empty folder. Nothing is written before the seals are found to be the backup's; until all is done,
nothing starts on the folder, and after an interruption the same command begins anew.

Everybody signs in again: tokens and sessions of before are void. What else was changed after the backup is as it was: see what it says at its end.
FILE - reads standard input.`,
	}
	open.add(c)
	f := c.Flags()
	f.StringVar(&data, "data", "", "the folder to make it in: empty, or missing")
	f.StringVar(&seals, "seals", "", "the folder with the seals (of redoubt seals copy, or a copy of the old data folder)")
	bucket.add(c)
	f.StringVar(&planFile, "plan", "", "the plan of an installation of many hosts; afterwards redoubt bootstrap --plan makes the rest")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		switch {
		case seals == "":
			return app.Usagef("--seals says where the seals are: without them nothing opens the backup")
		case data == "":
			return app.Usagef("--data says where to")
		case planFile != "" && bucket != blobFlags{}:
			return app.Usagef("the plan says which bucket: leave --blobs out")
		}
		if err := bucket.absolute(); err != nil {
			return err
		}
		data, err := filepath.Abs(data)
		if err != nil {
			return err
		}
		r, done, err := open.decrypt(a, args[0])
		if err != nil {
			return err
		}
		defer done()
		if err := os.MkdirAll(data, 0o700); err != nil {
			return err
		}
		unlock, err := node.LockFolder(data)
		if err != nil {
			return err
		}
		defer unlock()
		log := observe.NewLogger(observe.LogConfig{Writer: a.Err, Level: slog.LevelWarn, Now: a.Now})
		defer func() { _ = log.Close() }()
		cfg := backup.RestoreConfig{Data: data, Seals: seals, Stores: node.Stores(), Say: a.Say, Logger: log.Logger}
		if err := restoreTo(&cfg, planFile, bucket.Bucket); err != nil {
			return err
		}
		s, err := backup.Restore(cmd.Context(), cfg, r)
		if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
			return &app.Exit{Code: app.ExitLocal, Message: "the disk of " + data + " is full; nothing starts on what is there\n  → make room, and restore once more"}
		}
		if err != nil {
			return err
		}
		return a.restored(data, planFile, s)
	}
	return c
}

// restoreTo says where each service's data go by a plan, or which bucket files go to, where that is not a SQLite file and a folder.
func restoreTo(cfg *backup.RestoreConfig, planFile string, bucket node.Bucket) error {
	if planFile == "" {
		cfg.BlobStore = func(service string) (blob.Config, bool) { return inBucket(service, bucket) }
		return nil
	}
	p, err := plan.Read(planFile)
	if err != nil {
		return err
	}
	cfg.Planned = true
	if b := p.Blobs; b != nil {
		cfg.BlobStore = func(service string) (blob.Config, bool) {
			return inBucket(service, node.Bucket{URL: b.URL, CredentialsFile: b.Credentials, RootFile: b.Root})
		}
	}
	dsn := make(map[string]redact.Secret)
	for name, s := range cfg.Stores {
		if s.Folder, dsn[name], err = p.Store(cfg.Data, name); err != nil {
			return err
		}
		cfg.Stores[name] = s
	}
	cfg.Database = func(service string) (sqldb.Config, bool) { return onPostgres(service, dsn[service]) }
	return nil
}

func onPostgres(service string, dsn redact.Secret) (sqldb.Config, bool) {
	return sqldb.Config{Driver: sqldb.Postgres, DSN: dsn, Schema: service}, !dsn.Empty()
}

// inBucket is a service's part of a bucket, as its node has it.
func inBucket(service string, b node.Bucket) (blob.Config, bool) {
	return blob.Config{URL: b.URL, CredentialsFile: b.CredentialsFile, RootFile: b.RootFile, Prefix: service}, b.URL != ""
}

// restored says what to do next, and what to look at.
func (a verbs) restored(data, planFile string, s backup.Summary) error {
	next := "redoubt up --data " + data
	if s.Installation != "redoubt.local" {
		next += " --trust-domain " + s.Installation
	}
	if planFile == "" {
		next += "   (or, as separate processes: redoubt bootstrap --data " + data + ")"
		if err := node.MarkRestored(data); err != nil {
			return err
		}
	} else {
		next = "redoubt bootstrap --plan " + planFile + " --data " + data + "\n  start the processes that it prints"
	}
	if err := a.summary(s); err != nil {
		return err
	}
	a.Say(`restored into %s. Next:
  %s
  redoubt login
Everything that was issued before is void: tokens, sessions, tokens of endpoints, the keys with which services enrolled.
What was changed after %s is as it was then. Look at these, and change again what was changed since:
  passwords, disabled users, secrets of service principals, role assignments, keys of endpoints (redoubt endpoint regenerate-keys)
  runs that went on then are LOST; replicas of deployments start anew`,
		data, next, s.Time.UTC().Format("2006-01-02 15:04:05 UTC"))
	return nil
}
