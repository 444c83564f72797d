package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/svid"
	"github.com/redoubt-ml/redoubt/services/identity"
)

// joinLife is how long the join tokens of an installation that is made are good: its processes may be started later.
const joinLife = 7 * 24 * time.Hour

// Founding is identity's state, open to make an installation with, or to add to one. Nobody can call it, and it calls nobody.
type Founding struct{ n *Node }

// Found opens identity's state, and makes it where there is none. The caller closes it.
func Found(ctx context.Context, cfg Config, opts Options) (*Founding, error) {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if err := cfg.Check(); err != nil {
		return nil, err
	}
	n := newNode(ctx, cfg, opts)
	if err := os.MkdirAll(cfg.Service.Dir, 0o700); err != nil {
		n.Stop()
		return nil, err
	}
	st, err := n.openState(ctx, identity.Migrations())
	if err == nil {
		err = n.newIdentity(st)
	}
	if err != nil {
		n.Stop()
		return nil, err
	}
	n.onStop(func() { _ = n.identity.Close() })
	return &Founding{n}, nil
}

// Close gives the state free.
func (f *Founding) Close() { f.n.Stop() }

// Pin is what enrolment knows the mesh's root by.
func (f *Founding) Pin() string { return f.n.identity.Pin() }

// CA are the mesh's roots, as PEM.
func (f *Founding) CA() []byte { return pemOf(f.n.identity.Roots()) }

// Join writes a join token for an instance of a service, good for a week.
func (f *Founding) Join(ctx context.Context, service, instance, path string) error {
	token, err := f.n.identity.CreateServiceJoin(ctx, service, instance, joinLife)
	if err != nil {
		return err
	}
	return writeSecret(path, token)
}

// Admin is the first administrator.
type Admin struct {
	// Name is users/{user}.
	Name, UID string
	// Password is his first one, only when this start made him, or one before that was cut off.
	Password redact.Secret
}

// FirstAdmin makes the first administrator, if there is none. When it is told, the caller calls PasswordGiven.
func (f *Founding) FirstAdmin(ctx context.Context, data, user string) (Admin, error) {
	return firstAdmin(ctx, data, user, f.n.identity)
}

// unseen holds the first password from before the administrator is made until the start that made him is through, so that a start
// that is cut off loses nothing: the next one gives the same.
const unseen = "first.password"

func firstAdmin(ctx context.Context, data, user string, ids *identity.Service) (Admin, error) {
	path := filepath.Join(data, unseen)
	password, err := readSecret(path)
	cutOff := err == nil
	if errors.Is(err, fs.ErrNotExist) {
		password = newPassword()
		err = writeSecret(path, password)
	}
	if err != nil {
		return Admin{}, err
	}
	p, created, err := ids.Bootstrap(ctx, identity.BootstrapRequest{User: user, Password: password})
	if err != nil {
		return Admin{}, err
	}
	out := Admin{Name: p.Name, UID: p.UID}
	if created || cutOff {
		out.Password = password
		return out, nil
	}
	return out, os.Remove(path)
}

// PasswordGiven removes the file: whoever started the installation has the first password now.
func PasswordGiven(data string) error {
	if err := os.Remove(filepath.Join(data, unseen)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// WriteConfig writes the file that `redoubt serve` reads: what is set, and nothing of another service's.
func WriteConfig(path string, c Config) error {
	s := &c.Service
	if s.Name != "gateway" {
		s.MeshListen = ""
	}
	if s.Name != "compute" {
		s.AgentCommand, s.LocalTargets = nil, Defaults().Service.LocalTargets
	}
	if c.Log.Level == "" {
		c.Log.Level = "info"
	}
	zero, out := reflect.ValueOf(Defaults()), make(map[string]map[string]any)
	for i, v := 0, reflect.ValueOf(c); i < v.NumField(); i++ {
		section, t := make(map[string]any), v.Field(i).Type()
		for j := range t.NumField() {
			value := v.Field(i).Field(j).Interface()
			if reflect.DeepEqual(value, zero.Field(i).Field(j).Interface()) {
				continue
			}
			if d, ok := value.(time.Duration); ok {
				value = d.String()
			}
			section[t.Field(j).Tag.Get("koanf")] = value
		}
		out[v.Type().Field(i).Tag.Get("koanf")] = section
	}
	b, err := yaml.Marshal(out)
	if err != nil {
		return fault.Internal(fmt.Errorf("marshal: %w", err), "the configuration of %s cannot be written", s.Name)
	}
	return svid.WritePrivate(path, b)
}
