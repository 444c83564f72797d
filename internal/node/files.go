package node

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/redoubt-ml/redoubt/internal/node/etcdnode"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/svid"
)

// LockFolder takes the state folder for this process, as long as it lives.
func LockFolder(dir string) (unlock func(), err error) {
	path := filepath.Join(dir, "lock")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fault.FailedPrecondition("the folder %s cannot be written: %v; choose another with --data", dir, reason(err))
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fault.FailedPrecondition("another redoubt runs on %s; stop it first, or choose another folder with --data", dir)
		}
		return nil, err
	}
	return func() { _ = f.Close() }, nil
}

// writeSecret puts a secret into a file that only we can read.
func writeSecret(path string, s redact.Secret) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return svid.WritePrivate(path, append(append([]byte(nil), s.Reveal()...), '\n'))
}

// etcdClient writes what a service needs to speak to etcd: its certificate, valid for 825 days, made again at every start of `up`.
func etcdClient(pki *etcdnode.PKI, dir, name string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	_, err := pki.WriteLeaf(dir, "client", svid.Leaf{CommonName: name, Client: true})
	return err
}
