package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"
)

// maxDepth is how deep folders of outputs may lie. A run can make thousands inside one another.
const maxDepth = 64

// Skipped is something among the outputs that is not kept.
type Skipped struct {
	Name string // as Output.Name
	Why  string
}

// Output is a file among the outputs. File is open for reading, until keep returns.
type Output struct {
	Name string // path below the output folder, with slashes; never absolute, never with ".."
	Info fs.FileInfo
	File *os.File
}

// EachOutput gives every regular file among the outputs to keep, in the order of their names, and stops at keep's first
// error. Links, pipes, sockets, folders too deep and what cannot be read are skipped and told. Nothing outside of the output
// folder is ever opened, whatever the run left there. A file that has many names comes once for each.
func EachOutput(outputs *os.Root, keep func(Output) error) ([]Skipped, error) {
	w := walk{keep: keep}
	err := w.folder(outputs, "", 0)
	return w.skipped, err
}

type walk struct {
	keep    func(Output) error
	skipped []Skipped
}

func (w *walk) skip(name, format string, args ...any) {
	w.skipped = append(w.skipped, Skipped{Name: name, Why: fmt.Sprintf(format, args...)})
}

func (w *walk) folder(root *os.Root, name string, depth int) error {
	entries, err := list(root)
	if err != nil {
		w.skip(name, "the folder cannot be read: %v", reason(err))
		return nil
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	for _, entry := range entries {
		below := path.Join(name, entry.Name())
		switch {
		case entry.Type().IsRegular():
			err = w.file(root, entry.Name(), below)
		case !entry.IsDir():
			w.skip(below, "it is no file but %s", kind(entry.Type()))
		case depth == maxDepth:
			w.skip(below, "folders are more than %d deep", maxDepth)
		default:
			err = w.enter(root, entry.Name(), below, depth)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (w *walk) enter(root *os.Root, entry, name string, depth int) error {
	sub, err := unlocked(root, entry, 0o700, root.OpenRoot)
	if err != nil {
		w.skip(name, "the folder cannot be opened: %v", reason(err))
		return nil
	}
	defer func() { _ = sub.Close() }()
	return w.folder(sub, name, depth+1)
}

func (w *walk) file(root *os.Root, entry, name string) error {
	// Not blocking: in case that it became a pipe meanwhile. A link that it became leads to below this folder at most.
	f, err := unlocked(root, entry, 0o600, func(entry string) (*os.File, error) {
		return root.OpenFile(entry, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	})
	if err != nil {
		w.skip(name, "it cannot be opened: %v", reason(err))
		return nil
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		w.skip(name, "it is no file any more")
		return nil
	}
	return w.keep(Output{Name: name, Info: info, File: f})
}

// list reads the names in root.
func list(root *os.Root) ([]fs.DirEntry, error) {
	dir, err := unlocked(root, ".", 0o700, root.Open)
	if err != nil {
		return nil, err
	}
	defer func() { _ = dir.Close() }()
	return dir.ReadDir(-1)
}

// unlocked opens an entry of root. A run may have locked what is its own; an agent of the same user can unlock it.
func unlocked[T any](root *os.Root, entry string, mode fs.FileMode, open func(string) (T, error)) (T, error) {
	opened, err := open(entry)
	if errors.Is(err, fs.ErrPermission) && root.Chmod(entry, mode) == nil {
		return open(entry)
	}
	return opened, err
}

func kind(mode fs.FileMode) string {
	switch {
	case mode&fs.ModeSymlink != 0:
		return "a link"
	case mode&fs.ModeNamedPipe != 0:
		return "a pipe"
	case mode&fs.ModeSocket != 0:
		return "a socket"
	}
	return "something special"
}

// reason is the bare cause of a failed file operation: names are told apart from it.
func reason(err error) error {
	var pathErr *fs.PathError
	if errors.As(err, &pathErr) {
		return pathErr.Err
	}
	return err
}
