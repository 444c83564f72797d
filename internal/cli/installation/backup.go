package installation

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/redoubt-ml/redoubt/internal/backup"
	"github.com/redoubt-ml/redoubt/internal/cli/app"
	"github.com/redoubt-ml/redoubt/internal/cli/settings"
	"github.com/redoubt-ml/redoubt/internal/cli/show"
	"github.com/redoubt-ml/redoubt/internal/node"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
)

// opening says what an archive is opened with.
type opening struct{ identity, passphrase string }

func (o *opening) add(c *cobra.Command) {
	c.Flags().StringVar(&o.identity, "identity", "", "the file with the key that opens it (of redoubt backup keygen, or of age)")
	c.Flags().StringVar(&o.passphrase, "passphrase-file", "", "the file with the passphrase that opens it")
}

// decrypt opens the file, or standard input for "-".
func (o *opening) decrypt(a verbs, name string) (_ io.Reader, done func(), err error) {
	if (o.identity == "") == (o.passphrase == "") {
		return nil, nil, app.Usagef("--identity or --passphrase-file opens the backup: give the one that it was made for")
	}
	var identity, passphrase redact.Secret
	if o.identity != "" {
		identity, err = backup.ReadSecret(o.identity)
	} else {
		passphrase, err = passphraseIn(o.passphrase)
	}
	if err != nil {
		return nil, nil, err
	}
	in, done := a.In, func() {}
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, nil, err
		}
		in, done = f, func() { _ = f.Close() }
	}
	r, err := backup.Decrypt(bufio.NewReaderSize(in, 1<<20), identity, passphrase)
	if err != nil {
		done()
		return nil, nil, err
	}
	return r, done, nil
}

func passphraseIn(path string) (redact.Secret, error) {
	s, err := backup.ReadSecret(path)
	if err != nil {
		return s, err
	}
	defer s.Wipe()
	return redact.FromString(strings.TrimSpace(s.RevealString())), nil
}

func (a verbs) backup() *cobra.Command {
	var data, passphrase string
	var recipients, at []string
	c := &cobra.Command{
		Use: "backup FILE", Short: "Back a running installation up into one encrypted file, as of one moment", Args: app.Exactly(1),
		Long: `Back a running installation up into one encrypted file, as of one moment. Nothing stops: changes wait for some milliseconds.

The file has all that the services keep, and not their seals: without those nothing opens it. Keep them elsewhere, once: redoubt seals copy.
FILE - writes to standard output. You need a role that may do everything (Owner at the installation), and to reach the services' own ports.`,
	}
	f := c.Flags()
	f.StringArrayVar(&recipients, "recipient", nil, "who can open it: age1… (repeat it for more; redoubt backup keygen makes one)")
	f.StringVar(&passphrase, "passphrase-file", "", "in place of recipients: the file with a passphrase that opens it")
	f.StringVar(&data, "data", "", "the installation's folder, where it is on this machine; without it $XDG_STATE_HOME/redoubt")
	f.StringArrayVar(&at, "at", nil, "where a service is, SERVICE=HOST:PORT, in place of what etcd says")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if (len(recipients) == 0) == (passphrase == "") {
			return app.Usagef("--recipient or --passphrase-file says who can open it; a key of your own: redoubt backup keygen KEYFILE")
		}
		var secret redact.Secret
		if passphrase != "" {
			var err error
			if secret, err = passphraseIn(passphrase); err != nil {
				return err
			}
		}
		begin := a.Now()
		s, size, err := a.writeArchive(args[0], func(w io.Writer) (backup.Summary, error) {
			encrypted, err := backup.Encrypt(w, recipients, secret)
			if err != nil {
				return backup.Summary{}, err
			}
			s, err := a.take(cmd.Context(), data, at, encrypted)
			if err != nil {
				return s, err
			}
			return s, encrypted.Close()
		})
		if err != nil {
			return err
		}
		a.Say("%s: %s in %s; changes waited for %s at most", args[0], show.Bytes(size), show.Duration(a.Now().Sub(begin)), s.Held().Round(100*time.Microsecond))
		if args[0] == "-" {
			return nil
		}
		return a.summary(s)
	}
	c.AddCommand(a.backupVerify(), a.backupKeygen())
	return c
}

// writeArchive writes a file that is there whole or not at all.
func (a verbs) writeArchive(name string, write func(io.Writer) (backup.Summary, error)) (_ backup.Summary, size int64, err error) {
	if name == "-" {
		if f, ok := a.Out.(*os.File); ok && app.IsTerminal(f) {
			return backup.Summary{}, 0, app.Usagef("a backup is nothing to look at: send standard output into a file, or name one")
		}
		w := &counted{w: a.Out}
		s, err := write(w)
		return s, w.n, err
	}
	if _, err := os.Lstat(name); !errors.Is(err, os.ErrNotExist) {
		return backup.Summary{}, 0, fault.FailedPrecondition("%s is there already; backups are never overwritten: take another name", name)
	}
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".partial-*") // 0600
	if err != nil {
		return backup.Summary{}, 0, err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
		if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
			err = &app.Exit{Code: app.ExitLocal, Message: "the disk of " + name + " is full; nothing was left there\n  → make room, or name a file on another disk"}
		}
	}()
	w := &counted{w: f}
	s, err := write(w)
	if err != nil {
		return s, 0, err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return s, 0, err
	}
	if err := os.Link(f.Name(), name); err != nil { // unlike a rename, it replaces nothing
		return s, 0, err
	}
	if err := os.Remove(f.Name()); err != nil {
		return s, 0, err
	}
	d, err := os.Open(filepath.Dir(name))
	if err != nil {
		return s, 0, err
	}
	return s, w.n, errors.Join(d.Sync(), d.Close())
}

type counted struct {
	w io.Writer
	n int64
}

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// take asks the services, with an operator's certificate.
func (a verbs) take(ctx context.Context, data string, at []string, w io.Writer) (backup.Summary, error) {
	var none backup.Summary
	chosen, err := a.Chosen()
	if err != nil {
		return none, err
	}
	c, err := a.Connect(ctx)
	if err != nil {
		return none, err
	}
	defer func() { _ = c.Close() }()
	by, err := a.Credentials(ctx, chosen)
	if err != nil {
		return none, err
	}
	addresses, err := a.stores(ctx, chosen, data, at)
	if err != nil {
		return none, err
	}
	dir, err := os.MkdirTemp("", "redoubt-backup-*")
	if err != nil {
		return none, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	m, err := a.operator(ctx, c, dir)
	if err != nil {
		return none, err
	}
	cfg := backup.TakeConfig{Installation: m.td.Name(), Say: a.Say, Now: a.Now}
	for _, name := range node.Services {
		if addresses[name] == "" {
			continue
		}
		conn, err := m.connect(name, addresses[name], by)
		if err != nil {
			return none, err
		}
		defer func() { _ = conn.Close() }()
		cfg.Peers = append(cfg.Peers, backup.Peer{Service: name, Conn: conn})
	}
	return backup.Take(ctx, cfg, w)
}

// stores finds one instance of every service that keeps something.
func (a verbs) stores(ctx context.Context, chosen settings.Context, data string, at []string) (map[string]string, error) {
	need, out := node.Stores(), make(map[string]string)
	for _, one := range at {
		name, addr, ok := strings.Cut(one, "=")
		if _, known := need[name]; !ok || !known {
			return nil, app.Usagef("--at is SERVICE=HOST:PORT, and %q is not", one)
		}
		out[name] = addr
	}
	if len(out) < len(need) {
		data, err := a.dataFolder(data)
		if err != nil {
			return nil, err
		}
		all, err := a.instances(ctx, chosen, where{data: data})
		if err != nil {
			return nil, fmt.Errorf("the services are not known from here (on the installation's own machine give its folder with --data; else say each with --at SERVICE=HOST:PORT): %w", err)
		}
		for _, i := range all {
			if _, ok := need[i.Service]; ok && out[i.Service] == "" {
				out[i.Service] = i.Addr
			}
		}
	}
	for name := range need {
		if out[name] == "" {
			return nil, fault.FailedPrecondition("no instance of %s runs, and a backup needs one of every service. See `redoubt doctor`", name)
		}
	}
	return out, nil
}

// connect reaches a service's own port in the name of the operator.
func (m *member) connect(service, addr string, by credentials.PerRPCCredentials) (*grpc.ClientConn, error) {
	cfg, err := m.tls(service)
	if err != nil {
		return nil, err
	}
	return grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(credentials.NewTLS(cfg)), grpc.WithNoProxy(), grpc.WithDisableServiceConfig(),
		grpc.WithPerRPCCredentials(by), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(backup.MaxMessage)), grpc.WithInitialWindowSize(4<<20))
}

// summary says what is in an archive.
func (a verbs) summary(s backup.Summary) error {
	if a.Structured() {
		b, err := json.MarshalIndent(s, "", "  ")
		if err != nil {
			return err
		}
		return a.AnswerJSON(append(b, '\n'))
	}
	if err := show.Pairs(a.Out, "backup", s.ID, "installation", s.Installation, "time", s.Time.UTC().Format("2006-01-02 15:04:05 UTC"), "activity log", fmt.Sprintf("%d records", s.ActivityPosition),
		"made by", s.Version); err != nil {
		return err
	}
	rows := make([][]string, len(s.Parts))
	for i, p := range s.Parts {
		gone := ""
		if p.BlobsGone > 0 {
			gone = fmt.Sprintf("%d were deleted meanwhile", p.BlobsGone)
		}
		rows[i] = []string{p.Service, p.Engine, fmt.Sprint(p.Tables), fmt.Sprint(p.Rows), fmt.Sprint(p.Blobs), show.Bytes(p.BlobBytes), p.Seal[:min(8, len(p.Seal))] + "…", gone}
	}
	return show.Table(a.Out, []string{"service", "engine", "tables", "rows", "files", "size", "seal", ""}, rows)
}

func (a verbs) backupVerify() *cobra.Command {
	var open opening
	var seals string
	c := &cobra.Command{
		Use: "verify FILE", Short: "Read a backup from beginning to end, and see whether it is whole", Args: app.Exactly(1),
		Long: `Read a backup from beginning to end, and see whether it is whole. Nothing is changed, nothing has to run.

With --seals it also proves that your own installation made it, and that these seals open it. How old it is cannot be proved: look at its time.`,
	}
	open.add(c)
	c.Flags().StringVar(&seals, "seals", "", "the folder with the seals (of redoubt seals copy)")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		r, done, err := open.decrypt(a, args[0])
		if err != nil {
			return err
		}
		defer done()
		s, err := backup.Verify(cmd.Context(), r, seals)
		if err != nil {
			return err
		}
		if err := a.summary(s); err != nil {
			return err
		}
		if seals == "" {
			a.Say("it is whole. Whether your installation made it was not looked at: give --seals")
			return nil
		}
		a.Say("it is whole, your installation made it, and these seals open it")
		return nil
	}
	return c
}

func (a verbs) backupKeygen() *cobra.Command {
	return &cobra.Command{
		Use: "keygen KEYFILE", Short: "Make the key that opens backups, and print the recipient that they are made for", Args: app.Exactly(1),
		Long: `Make the key that opens backups, and print the recipient that they are made for. Keep KEYFILE away from the installation: making backups
needs the recipient only. Who loses KEYFILE loses every backup that was made for it.`,
		RunE: func(_ *cobra.Command, args []string) error {
			if _, err := os.Lstat(args[0]); !errors.Is(err, os.ErrNotExist) {
				return fault.FailedPrecondition("%s is there already, and may be the key of older backups; take another name", args[0])
			}
			key, recipient, err := backup.NewIdentity(a.Now())
			if err != nil {
				return err
			}
			defer key.Wipe()
			if err := writeFile(args[0], key.Reveal(), 0o600); err != nil {
				return err
			}
			_, err = fmt.Fprintln(a.Out, recipient)
			return err
		},
	}
}

func (a verbs) seals() *cobra.Command {
	c := &cobra.Command{Use: "seals", Short: "The keys that open what an installation keeps"}
	var data, to string
	cp := &cobra.Command{
		Use: "copy --to FOLDER", Short: "Copy the seals to where backups are not: once, at install", Args: app.Exactly(0),
		Long: `Copy the seals to where backups are not: once, at install. They never change. A backup and the seals together are the installation; a backup
without seals is of no use to anybody, you included. So: an own medium, in other hands, and a second one.`,
	}
	cp.Flags().StringVar(&data, "data", "", "the installation's folder; without it $XDG_STATE_HOME/redoubt")
	cp.Flags().StringVar(&to, "to", "", "the folder to copy them to")
	cp.RunE = func(*cobra.Command, []string) error {
		if to == "" {
			return app.Usagef("--to says where")
		}
		from, err := a.dataFolder(data)
		if err != nil {
			return err
		}
		var services []string
		for name := range node.Stores() {
			services = append(services, name)
		}
		slices.Sort(services)
		n, err := backup.CopySeals(from, to, services)
		if err != nil {
			return err
		}
		a.Say("%d seals copied to %s, %d were there already. Now take it to other hands", n, to, len(services)-n)
		return nil
	}
	c.AddCommand(cp)
	return c
}
