package blob

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"path"
	"slices"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// heldDir keeps what was deleted or replaced during a hold. Nobody reads it but the holder, and Open sweeps it.
const heldDir = ".held"

// Held is a store of which everything that was there at some moment can still be read, for a backup. One at a time.
type Held struct {
	s      *Store
	folder *folder // nil where the store cannot keep anything aside
}

// aside is the folder of a store that has one, else nil.
func (s *Store) aside() *folder {
	f, _ := s.driver.(*folder)
	return f
}

// Hold keeps what is deleted or replaced from now on until Release. Deletions are acknowledged as ever, but their space is not free before.
// A store that is no folder keeps nothing: what is deleted there is gone.
func (s *Store) Hold() (*Held, error) {
	h := &Held{s, s.aside()}
	if h.folder == nil {
		return h, nil
	}
	h.folder.keeping.Lock()
	defer h.folder.keeping.Unlock()
	if h.folder.holding {
		return nil, fault.FailedPrecondition("a backup of these blobs is under way already")
	}
	h.folder.holding = true
	return h, nil
}

// Release lets go of what was kept.
func (h *Held) Release() error {
	if h.folder == nil {
		return nil
	}
	h.folder.keeping.Lock()
	defer h.folder.keeping.Unlock()
	h.folder.holding = false
	if err := h.folder.root.RemoveAll(heldDir); err != nil {
		return mapped(context.Background(), err)
	}
	return nil
}

// Names are those of all blobs that are there or are kept, in order: all that were there when the hold began, and maybe some that came
// later.
func (h *Held) Names(ctx context.Context) ([]string, error) {
	var out []string
	for info, err := range h.s.List(ctx, "") {
		if err != nil {
			return nil, err
		}
		out = append(out, info.Name)
	}
	if h.folder == nil {
		return out, nil
	}
	// After the others: what is deleted in between is found here.
	err := fs.WalkDir(h.folder.root.FS(), heldDir, func(name string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && e.Type().IsRegular() {
			out = append(out, name[len(heldDir)+1:])
		}
		return errors.Join(err, ctx.Err())
	})
	if err != nil {
		return nil, mapped(ctx, err)
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// Get reads a blob as it was when the hold began. One that is gone all the same is NOT_FOUND.
func (h *Held) Get(ctx context.Context, name string) (io.ReadCloser, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	// A name is put aside before it is given to something else: so what is opened first, where nothing is aside then, is the old one.
	live, err := h.s.bucket.NewRangeReader(ctx, name, 0, -1, nil)
	if err = mapped(ctx, err); err != nil && !fault.Is(err, codes.NotFound) {
		return nil, err
	}
	if h.folder != nil {
		kept, none := h.s.bucket.NewRangeReader(ctx, heldDir+"/"+name, 0, -1, nil)
		if none = mapped(ctx, none); !fault.Is(none, codes.NotFound) {
			if err == nil {
				_ = live.Close()
			}
			if none != nil {
				return nil, none
			}
			return kept, nil
		}
	}
	if err != nil {
		return nil, err
	}
	return live, nil
}

// replace renames a finished file into place.
func (f *folder) replace(from, name string) error {
	f.keeping.RLock()
	defer f.keeping.RUnlock()
	if err := f.keep(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return f.root.Rename(from, name)
}

// keep gives a blob a second name during a hold, unless one has it already: then what is kept is older. The caller holds keeping.
func (f *folder) keep(name string) error {
	if !f.holding {
		return nil
	}
	to := heldDir + "/" + name
	if err := f.root.MkdirAll(path.Dir(to), 0o700); err != nil {
		return err
	}
	err := f.root.Link(name, to)
	// On a file system without second names nothing can be kept, and deleting goes on.
	if errors.Is(err, fs.ErrExist) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EMLINK) {
		return nil
	}
	return err
}

// keepAll keeps everything below a folder.
func (f *folder) keepAll(dir string) error {
	if !f.holding {
		return nil
	}
	return fs.WalkDir(f.root.FS(), dir, func(name string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && e.Type().IsRegular() {
			err = f.keep(name)
		}
		return err
	})
}
