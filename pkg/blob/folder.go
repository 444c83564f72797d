package blob

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

const (
	temporary = ".tmp"
	lockName  = ".lock"
	// maxDurable bounds how many folders are remembered as durable.
	maxDurable = 1 << 16
	// placeAttempts is how often a rename is repeated because a deletion has just taken the empty folder away.
	placeAttempts = 10
)

// folder is the driver behind a Store: driver.go has the methods that gocloud wants, this file what they do to the disk.
type folder struct {
	root   *os.Root
	lock   *os.File
	broken atomic.Bool // an fsync failed

	// keeping is held for reading while something is deleted or replaced; whoever changes holding holds it alone.
	keeping sync.RWMutex
	holding bool // what is deleted or replaced is kept in heldDir

	mu      sync.Mutex
	durable map[string]bool // folders whose name is on stable storage; place forgets one that a deletion took away
}

func openFolder(dir string) (_ *folder, err error) {
	if err := makeFolder(dir); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, folderFault(dir, err)
	}
	f := &folder{root: root, durable: map[string]bool{".": true}}
	defer func() {
		if err != nil {
			_ = f.Close()
		}
	}()
	if f.lock, err = root.OpenFile(lockName, os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, folderFault(dir, err)
	}
	if err := unix.Flock(int(f.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fault.FailedPrecondition("the blob folder %s is open in another process; stop that one first", dir)
		}
		return nil, folderFault(dir, err)
	}
	// Nobody else writes here now, so whatever is left was never acknowledged.
	for _, left := range []string{temporary, heldDir} {
		if err := root.RemoveAll(left); err != nil {
			return nil, folderFault(dir, err)
		}
	}
	if err := root.Mkdir(temporary, 0o700); err != nil {
		return nil, folderFault(dir, err)
	}
	if err := f.syncDir("."); err != nil {
		return nil, folderFault(dir, err)
	}
	return f, nil
}

// makeFolder makes the folder durable, or narrows one that is there.
func makeFolder(dir string) error {
	err := os.Mkdir(dir, 0o700)
	if errors.Is(err, fs.ErrExist) {
		info, err := os.Lstat(dir)
		if err != nil {
			return folderFault(dir, err)
		}
		if !info.IsDir() {
			return fault.FailedPrecondition("%s is not a folder; blobs need one of their own", dir)
		}
		if info.Mode().Perm() == 0o700 {
			return nil
		}
		if err := os.Chmod(dir, 0o700); err != nil {
			return folderFault(dir, err)
		}
		return nil
	}
	if err != nil {
		return folderFault(dir, err)
	}
	parent, err := os.Open(filepath.Dir(dir))
	if err != nil {
		return folderFault(dir, err)
	}
	defer func() { _ = parent.Close() }()
	if err := parent.Sync(); err != nil {
		return folderFault(dir, err)
	}
	return nil
}

func folderFault(dir string, err error) error {
	code, reason, why := codes.FailedPrecondition, faultv1.Reason_PRECONDITION_FAILED, "the folder above it must exist, and the service's user must be able to write"
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		code, reason, why = codes.ResourceExhausted, faultv1.Reason_STORAGE_FULL, "the disk is full"
	}
	return fault.Wrap(err, code, reason, "the blob folder %s cannot be opened: %s", dir, why)
}

func (f *folder) syncDir(name string) error {
	dir, err := f.root.Open(name)
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	return f.sync(dir)
}

// sync is the only fsync of the store. ENOSPC is the disk's answer to data it has no room for yet, and says nothing worse.
func (f *folder) sync(file *os.File) error {
	err := file.Sync()
	if err != nil && !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
		f.broken.Store(true)
		return fault.Wrap(err, codes.Unavailable, faultv1.Reason_SERVICE_UNAVAILABLE,
			"content could not be brought safely to disk; the service must be restarted by its operator")
	}
	return err
}

func errBroken() error {
	return fault.Unavailable("earlier content could not be brought safely to disk, so nothing more is stored; the service must be restarted by its operator")
}

// place gives a finished temporary file its name, durably.
func (f *folder) place(from, name string) error {
	if err := f.rename(from, name); err != nil {
		return err
	}
	return f.settle(path.Dir(name))
}

// rename gives a finished temporary file its name, in a folder whose own name is on disk; settle makes it durable.
func (f *folder) rename(from, name string) error {
	dir := path.Dir(name)
	for attempt := 1; ; attempt++ {
		err := f.ensure(dir) // fails, too, where a deletion has removed a folder above it
		if err == nil {
			err = f.replace(from, name)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if attempt == placeAttempts {
			return errors.New("the folder does not stay")
		}
		f.forget(dir) // a deletion has removed it
	}
}

// ensure makes a folder and those above it, and fsyncs what holds each name that this process has not seen durable. It holds the lock
// meanwhile: whoever finds the folder made may acknowledge what lies in it.
func (f *folder) ensure(dir string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ensureLocked(dir)
}

func (f *folder) ensureLocked(dir string) error {
	if f.durable[dir] {
		return nil
	}
	parent := path.Dir(dir)
	if err := f.ensureLocked(parent); err != nil {
		return err
	}
	if err := f.root.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := f.syncDir(parent); err != nil {
		return err
	}
	if len(f.durable) >= maxDurable {
		f.durable = map[string]bool{".": true}
	}
	f.durable[dir] = true
	return nil
}

// forget makes ensure look at a folder, and those above it, again.
func (f *folder) forget(dir string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for ; dir != "."; dir = path.Dir(dir) {
		delete(f.durable, dir)
	}
}

// remove deletes one file, and the folders that it leaves empty.
func (f *folder) remove(name string) error {
	f.keeping.RLock()
	defer f.keeping.RUnlock()
	info, err := f.root.Lstat(name)
	if err != nil {
		return err
	}
	if info.IsDir() {
		return fs.ErrNotExist
	}
	if err := f.keep(name); err != nil {
		return err
	}
	if err := f.root.Remove(name); err != nil {
		return err
	}
	return f.prune(path.Dir(name))
}

// removeAll deletes everything below a folder, and the folder.
func (f *folder) removeAll(_ context.Context, dir string) error {
	f.keeping.RLock()
	defer f.keeping.RUnlock()
	info, err := f.root.Lstat(dir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !info.IsDir() {
		return nil // a blob of that very name is not below it
	}
	if err != nil {
		return err
	}
	if err := f.keepAll(dir); err != nil {
		return err
	}
	if err := f.root.RemoveAll(dir); err != nil {
		return err
	}
	return f.prune(path.Dir(dir))
}

// prune removes empty folders from dir upwards and makes the removal durable.
func (f *folder) prune(dir string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for dir != "." && f.root.Remove(dir) == nil {
		dir = path.Dir(dir)
	}
	err := f.syncDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // another deletion took it away, and made that durable
	}
	return err
}
