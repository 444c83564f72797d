// Package settings owns what the CLI remembers of a user between commands: the contexts, one for each installation that he speaks to,
// and their tokens.
//
// Trust boundary: the user's own folder, and the operating system's keyring where there is one. A token is believed to be private only
// while its file is: one that others can read is refused.
//
// Invariants: contexts and tokens are in two files, so that the first can be shown; both are written 0600, in one step, in a folder of
// 0700; a key that is not known is an error, so that a misspelt one is not silently without effect; a token belongs to the address
// that it was made for and is given for no other. A token is kept in one place: in the keyring, to which the file of tokens points, or,
// where there is none that takes it, in that file. What stands in the file is never lost to a keyring. Two processes change tokens one
// after the other.
//
// Failure: a file that cannot be read or understood is named, with what to do; nothing is repaired silently.
package settings

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

const (
	// ConfigFile has the contexts, in the folder of settings.
	ConfigFile = "config.yaml"
	// TokenFile has the sessions, beside it.
	TokenFile = "tokens.json"

	maxFile = 1 << 20
)

// Context is one installation as the file has it.
type Context struct {
	Name          string `yaml:"name"`
	Server        string `yaml:"server"`
	CA            string `yaml:"ca,omitempty"`      // PEM
	CAFile        string `yaml:"ca_file,omitempty"` // or a file with it
	User          string `yaml:"user,omitempty"`
	Workspace     string `yaml:"workspace,omitempty"`
	ResourceGroup string `yaml:"resource_group,omitempty"`
}

// Client is the context as package client takes it.
func (c Context) Client() client.Context {
	return client.Context{Name: c.Name, Server: c.Server, CAPEM: []byte(c.CA), CAFile: c.CAFile, Workspace: c.Workspace, ResourceGroup: c.ResourceGroup, User: c.User}
}

// File is the contexts and which of them is meant when none is named.
type File struct {
	CurrentContext string `yaml:"current_context"`
	// Keyring is "off" where tokens stay out of the operating system's keyring.
	Keyring  string    `yaml:"keyring,omitempty"`
	Contexts []Context `yaml:"contexts"`
}

// Find gives the context with the name.
func (f *File) Find(name string) (Context, bool) {
	i := slices.IndexFunc(f.Contexts, func(c Context) bool { return c.Name == name })
	if i < 0 {
		return Context{}, false
	}
	return f.Contexts[i], true
}

// Put adds the context, or replaces the one of its name.
func (f *File) Put(c Context) {
	if i := slices.IndexFunc(f.Contexts, func(o Context) bool { return o.Name == c.Name }); i >= 0 {
		f.Contexts[i] = c
		return
	}
	f.Contexts = append(f.Contexts, c)
}

// Folder is where the settings of one user stand.
type Folder struct {
	dir  string
	ring Keyring
}

// Open names the folder; it is made when something is written.
func Open(dir string) Folder { return Folder{dir: dir} }

// Default is the folder by environment: REDOUBT_CONFIG names the file config.yaml itself, else XDG_CONFIG_HOME or HOME say where.
func Default(env func(string) string) (Folder, error) {
	if p := env("REDOUBT_CONFIG"); p != "" {
		if filepath.Base(p) != ConfigFile {
			return Folder{}, fault.InvalidArgument("REDOUBT_CONFIG names %s, and has to name a file %s", p, ConfigFile)
		}
		return Open(filepath.Dir(p)), nil
	}
	base := env("XDG_CONFIG_HOME")
	if base == "" {
		home := env("HOME")
		if home == "" {
			return Folder{}, fault.FailedPrecondition("neither REDOUBT_CONFIG nor XDG_CONFIG_HOME nor HOME is set, so there is no place for settings")
		}
		base = filepath.Join(home, ".config")
	}
	if !filepath.IsAbs(base) {
		return Folder{}, fault.FailedPrecondition("XDG_CONFIG_HOME is not an absolute path")
	}
	return Open(filepath.Join(base, "redoubt")), nil
}

// Path of the file with the contexts.
func (d Folder) Path() string { return filepath.Join(d.dir, ConfigFile) }

// Read gives the contexts; where there is no file there are none.
func (d Folder) Read() (*File, error) {
	f := &File{}
	b, err := read(d.Path(), false)
	if err != nil || len(b) == 0 {
		return f, err
	}
	dec := yaml.NewDecoder(bytes.NewReader(b))
	dec.KnownFields(true)
	if err := dec.Decode(f); err != nil && !errors.Is(err, io.EOF) {
		return nil, fault.FailedPrecondition("%s is not understood: %s; correct or remove it", d.Path(), strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if f.Keyring != "" && f.Keyring != keyringOn && f.Keyring != keyringOff {
		return nil, fault.FailedPrecondition("%s says keyring: %q, and may say on or off; correct it", d.Path(), f.Keyring)
	}
	names := make(map[string]bool)
	for _, c := range f.Contexts {
		if c.Name == "" || c.Server == "" || names[c.Name] {
			return nil, fault.FailedPrecondition("%s has a context without name or server, or two of one name; correct or remove it", d.Path())
		}
		names[c.Name] = true
	}
	if f.CurrentContext != "" && !names[f.CurrentContext] {
		return nil, fault.FailedPrecondition("%s names the current_context %q, which it does not have; correct it", d.Path(), f.CurrentContext)
	}
	return f, nil
}

// Write replaces the contexts.
func (d Folder) Write(f *File) error {
	b, err := yaml.Marshal(f)
	if err != nil {
		return err
	}
	return d.write(ConfigFile, b)
}

// read gives the file's content, empty where there is none.
func read(path string, private bool) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fault.FailedPrecondition("%s cannot be read: %v", path, err)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	switch mode := info.Mode(); {
	case !mode.IsRegular():
		return nil, fault.FailedPrecondition("%s is no file", path)
	case private && mode.Perm()&0o077 != 0:
		return nil, fault.FailedPrecondition("%s can be read by others, so its tokens may be known: remove it and sign in again, or chmod 600 it", path)
	case mode.Perm()&0o022 != 0:
		return nil, fault.FailedPrecondition("%s can be written by others: chmod 600 it", path)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(b) > maxFile {
		err = fmt.Errorf("it has more than %d bytes", maxFile)
	}
	if err != nil {
		return nil, fault.FailedPrecondition("%s cannot be read: %v", path, err)
	}
	return b, nil
}

// write puts a file in place in one step, 0600.
func (d Folder) write(name string, b []byte) error {
	bad := func(err error) error {
		return fault.FailedPrecondition("%s cannot be written: %v", filepath.Join(d.dir, name), err)
	}
	if err := os.MkdirAll(d.dir, 0o700); err != nil {
		return bad(err)
	}
	f, err := os.CreateTemp(d.dir, "."+name+"-*") // 0600
	if err != nil {
		return bad(err)
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), filepath.Join(d.dir, name))
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return bad(err)
	}
	return nil
}
