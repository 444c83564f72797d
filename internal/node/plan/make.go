package plan

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/redoubt-ml/redoubt/internal/node"
	"github.com/redoubt-ml/redoubt/internal/node/etcdnode"
	"github.com/redoubt-ml/redoubt/pkg/config"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/seal"
	"github.com/redoubt-ml/redoubt/pkg/svid"
)

// Config says which plan is carried out, and where.
type Config struct {
	// Plan and Data are paths.
	Plan, Data string
	// SQLOnly stops before anything that needs the PostgreSQL server: what is written is what its administrator needs.
	SQLOnly bool
	Options node.Options
}

// Made is what there is afterwards.
type Made struct {
	// URL is the public URL, CA the roots to believe at it, as PEM; empty where nothing was added.
	URL string
	CA  []byte
	// SQL is the file for PostgreSQL's administrator; empty without PostgreSQL.
	SQL string
	// Processes are the lines that start the installation.
	Processes []Process
	// Added are the names of the folders that were not there before.
	Added []string
	Admin node.Admin

	data string
}

// Given says that the first password has been handed over.
func (m *Made) Given() error { return node.PasswordGiven(m.data) }

// Process is one process of the plan.
type Process struct {
	// Name is that of its folder.
	Name, Host string
	// Args are what `redoubt` is started with, as the process sees its files.
	Args []string
}

// maker carries out one plan.
type maker struct {
	*Plan
	data string
	opts node.Options
	made map[string]bool // folders of before
	pki  *etcdnode.PKI
	out  *Made
}

// Make carries out a plan: it adds what is missing, and changes nothing that is there.
//
// Errors: INVALID_ARGUMENT names a field of the plan; FAILED_PRECONDITION says what is in the way and what to do.
func Make(ctx context.Context, cfg Config) (*Made, error) {
	p, err := Read(cfg.Plan)
	if err != nil {
		return nil, err
	}
	if cfg.SQLOnly && p.Postgres == nil {
		return nil, bad("postgres", "is not set: there is no SQL to write")
	}
	m := &maker{Plan: p, opts: cfg.Options, out: &Made{URL: p.PublicURL}}
	if m.data, err = filepath.Abs(cfg.Data); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(m.data, 0o700); err != nil {
		return nil, fault.FailedPrecondition("the folder %s cannot be made: %v", m.data, err)
	}
	unlock, err := node.LockFolder(m.data)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if there(m.at("identity", "db.sqlite")) {
		return nil, fault.FailedPrecondition("%s holds an installation that was made without a plan: take another folder", m.data)
	}
	if err := m.before(); err != nil {
		return nil, err
	}
	if err := m.members(); err != nil {
		return nil, err
	}
	if err := m.postgres(); err != nil {
		return nil, err
	}
	if cfg.SQLOnly {
		return m.out, nil
	}
	if err := m.instances(ctx); err != nil {
		return nil, err
	}
	m.processes()
	m.out.data = m.data
	return m.out, m.keep()
}

func (m *maker) at(elem ...string) string {
	return filepath.Join(append([]string{m.data}, elem...)...)
}

func there(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// before reads the plan that was carried out, where one was.
func (m *maker) before() error {
	var old *Plan
	if there(m.at(keptFile)) {
		var err error
		if old, err = Read(m.at(keptFile)); err != nil {
			return err
		}
	}
	var err error
	m.made, err = m.added(old)
	return err
}

// keep keeps the plan: what is in it is made.
func (m *maker) keep() error {
	text, err := config.Dump(m.Plan)
	if err != nil {
		return err
	}
	return svid.WritePrivate(m.at(keptFile), []byte(text))
}

// authority opens etcd's root. It is made once: where there was a plan before, it must be there.
func (m *maker) authority() (err error) {
	if m.pki != nil {
		return nil
	}
	if len(m.made) > 0 && !there(m.at(etcdRoot, "root.key")) {
		return fault.FailedPrecondition("the key of etcd's root is needed to add to the installation: bring %s back", m.at(etcdRoot))
	}
	m.pki, err = etcdnode.OpenPKI(m.at(etcdRoot), m.opts.Now)
	return err
}

// instances writes the services' folders.
func (m *maker) instances(ctx context.Context) error {
	var todo []Instance
	for _, in := range m.Instances {
		if !m.made[in.Folder()] || m.unjoined(in) {
			todo = append(todo, in)
		}
	}
	if len(todo) == 0 {
		return nil
	}
	ids, err := m.found(ctx)
	if err != nil {
		return err
	}
	defer ids.Close()
	if m.out.Admin, err = ids.FirstAdmin(ctx, m.data, m.Admin); err != nil {
		return err
	}
	m.out.CA = ids.CA()
	for _, in := range todo {
		if err := m.instance(ctx, in, ids); err != nil {
			return err
		}
	}
	return nil
}

// unjoined reports whether a folder of before is here and has neither enrolled nor a token to do so.
func (m *maker) unjoined(in Instance) bool {
	return m.enrols(in) && there(m.at(in.Folder(), serviceFile)) && !there(m.at(in.Folder(), joinFile)) && !there(m.at(in.Folder(), "svid", "svid.pem"))
}

// found opens identity's state, in the folder of its first instance.
func (m *maker) found(ctx context.Context) (*node.Founding, error) {
	i := slices.IndexFunc(m.Instances, func(in Instance) bool { return in.Service == "identity" })
	in := m.Instances[i]
	if m.made[in.Folder()] && !there(m.at(in.Folder(), sealMark)) {
		return nil, fault.FailedPrecondition("identity's state is needed to add to the installation: bring the folder %s back, its process being stopped", m.at(in.Folder()))
	}
	if err := m.seal(in); err != nil {
		return nil, err
	}
	opts := m.opts
	if m.Postgres != nil {
		dsn, err := m.connection(in)
		if err != nil {
			return nil, err
		}
		opts.Postgres = dsn
	}
	f, err := node.Found(ctx, m.config(in, m.at(in.Folder()), "", ""), opts)
	if err != nil && m.Postgres != nil {
		err = fault.Wrap(err, fault.Code(err), fault.ReasonOf(err), "%v. Has the database's administrator run %s?", err, m.out.SQL)
	}
	return f, err
}

// instance writes one folder: its configuration last, so that a folder without one is not done.
func (m *maker) instance(ctx context.Context, in Instance, ids *node.Founding) error {
	dir := m.at(in.Folder())
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if in.Service != rpc.Gateway {
		if err := m.seal(in); err != nil {
			return err
		}
	}
	if !there(filepath.Join(dir, etcdFolder, "client.crt")) {
		if err := m.authority(); err != nil {
			return err
		}
		if err := m.pki.WriteClient(filepath.Join(dir, etcdFolder), in.Folder()); err != nil {
			return err
		}
	}
	if m.enrols(in) && !there(filepath.Join(dir, joinFile)) && !there(filepath.Join(dir, "svid", "svid.pem")) {
		if err := ids.Join(ctx, in.Service, in.Name, filepath.Join(dir, joinFile)); err != nil {
			return err
		}
	}
	if there(filepath.Join(dir, serviceFile)) {
		return nil
	}
	if err := m.blobFiles(in); err != nil {
		return err
	}
	m.out.Added = append(m.out.Added, in.Folder())
	return node.WriteConfig(filepath.Join(dir, serviceFile), m.config(in, m.seen(m.data, in.Folder()), ids.Pin(), m.out.Admin.UID))
}

// seal gives an instance the seal of its service: that of another instance, or a new one where none was ever made. Beside it stands its
// fingerprint, so that the process does not make another where the seal is missing.
func (m *maker) seal(in Instance) error {
	dir := m.at(in.Folder())
	if there(filepath.Join(dir, sealMark)) {
		return nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	key := filepath.Join(dir, sealFile)
	if !there(key) {
		other, known := m.sibling(in, sealFile)
		if other == "" && known {
			return fault.FailedPrecondition("%s needs the seal that the other instances of %s have: put its file at %s", in.Folder(), in.Service, key)
		}
		if other != "" {
			b, err := os.ReadFile(other)
			if err != nil {
				return err
			}
			err = svid.WritePrivate(key, b)
			clear(b)
			if err != nil {
				return err
			}
		}
	}
	s, err := seal.OpenFile(key, true)
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }()
	return svid.WritePrivate(filepath.Join(dir, sealMark), []byte(s.Fingerprint()+"\n"))
}

// sibling finds a file in the folder of another instance of the service. known is whether there ever was such an instance.
func (m *maker) sibling(in Instance, file string) (path string, known bool) {
	for _, other := range m.Instances {
		if other.Service != in.Service || other == in {
			continue
		}
		known = known || m.made[other.Folder()]
		if f := m.at(other.Folder(), file); path == "" && there(f) {
			path = f
		}
	}
	return path, known || m.made[in.Folder()]
}

// processes says how everything is started.
func (m *maker) processes() {
	for _, e := range m.Etcd {
		m.out.Processes = append(m.out.Processes, Process{Name: e.folder(), Host: e.Host, Args: []string{"etcd", "--config", filepath.Join(m.seen(m.data, e.folder()), memberFile)}})
	}
	for _, name := range node.Services {
		for _, in := range m.Instances {
			if in.Service == name {
				m.out.Processes = append(m.out.Processes, Process{Name: in.Folder(), Host: in.Host, Args: []string{"serve", name, "--config", filepath.Join(m.seen(m.data, in.Folder()), serviceFile)}})
			}
		}
	}
}
