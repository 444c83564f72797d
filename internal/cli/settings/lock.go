package settings

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/redoubt-ml/redoubt/pkg/fault"
)

const (
	// lockFile stands beside the tokens, for the file of tokens itself is replaced. It holds nothing.
	lockFile = "tokens.lock"

	// lockLimit is how long another process may take: it may be asking the installation, or the keyring.
	lockLimit = 2 * time.Minute
	lockPause = 20 * time.Millisecond
)

// locked runs f while no other process, and no one else in this one, changes tokens of the folder. What ends a process ends its lock.
func (d Folder) locked(ctx context.Context, f func() error) error {
	path := filepath.Join(d.dir, lockFile)
	bad := func(err error) error { return fault.FailedPrecondition("%s cannot be locked: %v", path, err) }
	if err := os.MkdirAll(d.dir, 0o700); err != nil {
		return bad(err)
	}
	l, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return bad(err)
	}
	defer func() { _ = l.Close() }()
	timed, cancel := context.WithTimeout(ctx, lockLimit)
	defer cancel()
	for {
		err := unix.Flock(int(l.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f()
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return bad(err)
		}
		select {
		case <-timed.Done():
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fault.FailedPrecondition("another redoubt has held %s for %v: end it, and repeat", path, lockLimit)
		case <-time.After(lockPause):
		}
	}
}
