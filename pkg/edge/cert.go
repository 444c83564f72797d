package edge

import (
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// lookEvery bounds how often the files of a certificate are looked at.
const lookEvery = time.Second

// files is a certificate that stands in two files.
type files struct {
	what      string
	cert, key string
	now       func() time.Time
	log       *slog.Logger

	current atomic.Pointer[tls.Certificate]
	next    atomic.Int64 // when to look again, in nanoseconds

	mu     sync.Mutex
	digest [sha256.Size]byte // of what current was made of, or of what was broken
	said   string            // the last fault that was logged
}

// Files gives the certificate in two PEM files, at each handshake as they are then: they are looked at once a second at most. Files
// that cannot be read, or do not belong together, leave the certificate that was there, and a line in the log; at the start they are an
// error. what names the listener in both.
func Files(what, certFile, keyFile string, now func() time.Time, log *slog.Logger) (func() (*tls.Certificate, error), error) {
	f := &files{what: what, cert: certFile, key: keyFile, now: now, log: log}
	if err := f.load(); err != nil {
		return nil, fmt.Errorf("the certificate of %s: %w", what, err)
	}
	f.next.Store(now().Add(lookEvery).UnixNano())
	return f.get, nil
}

func (f *files) get() (*tls.Certificate, error) {
	now, next := f.now(), f.next.Load()
	if now.UnixNano() >= next && f.next.CompareAndSwap(next, now.Add(lookEvery).UnixNano()) {
		f.again()
	}
	return f.current.Load(), nil
}

// again looks at the files, and logs a fault once.
func (f *files) again() {
	err := f.load()
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case err == nil:
	case err.Error() != f.said:
		f.said = err.Error()
		f.log.Warn("the files of a certificate are broken; the one before serves on", "of", f.what, "error", f.said)
	}
}

// load reads the files. What it has seen already, good or bad, it does not judge again.
func (f *files) load() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	cert, err := os.ReadFile(f.cert)
	if err != nil {
		return err
	}
	key, err := os.ReadFile(f.key)
	if err != nil {
		return err
	}
	defer clear(key)
	h := sha256.New()
	_, _ = fmt.Fprintf(h, "%d\n", len(cert))
	h.Write(cert)
	h.Write(key)
	var digest [sha256.Size]byte
	h.Sum(digest[:0])
	if digest == f.digest {
		return nil
	}
	f.digest = digest
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return err
	}
	if pair.Leaf == nil {
		return errors.New("no certificate in it")
	}
	if !f.now().Before(pair.Leaf.NotAfter) {
		return fmt.Errorf("the certificate has ended on %s", pair.Leaf.NotAfter.Format(time.RFC3339))
	}
	f.current.Store(&pair)
	f.said = ""
	f.log.Info("certificate", "of", f.what, "subject", pair.Leaf.Subject.String(), "not_after", pair.Leaf.NotAfter.Format(time.RFC3339))
	return nil
}
