package seal

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// The file is three lines: what it is, the key, and the fingerprint that shows that the key is whole.
const fileFormat = "redoubt seal key v1, keep it secret and keep a copy\nkey %s\nfingerprint %s\n"

var fileSize = int64(len(encode(new([keySize]byte))))

func encode(key *[keySize]byte) []byte {
	return fmt.Appendf(nil, fileFormat, base64.StdEncoding.EncodeToString(key[:]), fingerprint(key))
}

// decode accepts exactly what encode writes.
func decode(content []byte) (*[keySize]byte, bool) {
	lines := bytes.Split(content, []byte("\n"))
	if len(lines) < 2 {
		return nil, false
	}
	text, found := bytes.CutPrefix(lines[1], []byte("key "))
	if !found {
		return nil, false
	}
	raw, err := base64.StdEncoding.DecodeString(string(text))
	if err != nil || len(raw) != keySize {
		return nil, false
	}
	key := [keySize]byte(raw)
	clear(raw)
	if !bytes.Equal(encode(&key), content) {
		clear(key[:])
		return nil, false
	}
	return &key, true
}

// OpenFile opens the seal file. With create, one is made where there is none, and never where there is one; without, its absence is an
// error. Errors name the file and leave it as it is.
func OpenFile(path string, create bool) (*Seal, error) {
	key, err := read(path)
	if errors.Is(err, fs.ErrNotExist) && create {
		if err := makeFile(path); err != nil {
			return nil, err
		}
		key, err = read(path) // ours, or that of whoever was faster
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.FailedPrecondition("the seal file %s is missing; without it nothing of this service can be opened. Bring it back from its backup", path)
	}
	if err != nil {
		return nil, err
	}
	return newSeal(key), nil
}

// read gives fs.ErrNotExist when there is no file, else errors for the operator.
func read(path string) (*[keySize]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fs.ErrNotExist
	case errors.Is(err, unix.ELOOP):
		return nil, fault.FailedPrecondition("the seal file %s is a link; put the file itself there", path)
	case errors.Is(err, fs.ErrPermission):
		return nil, fault.FailedPrecondition("the seal file %s cannot be read by this user; give it to the service's user", path)
	case err != nil:
		return nil, fault.Internal(err, "the seal file %s cannot be read", path)
	}
	defer func() { _ = f.Close() }()

	var stat unix.Stat_t // of what is open, not of what has the name by now
	if err := unix.Fstat(int(f.Fd()), &stat); err != nil {
		return nil, fault.Internal(err, "the seal file %s cannot be read", path)
	}
	switch {
	case stat.Mode&unix.S_IFMT != unix.S_IFREG:
		return nil, fault.FailedPrecondition("the seal file %s is not a file", path)
	case stat.Mode&0o077 != 0:
		return nil, fault.FailedPrecondition("the seal file %s can be read by others (mode %04o); if nobody has, run chmod 600 on it", path, stat.Mode&0o7777)
	case int(stat.Uid) != os.Geteuid() && stat.Uid != 0:
		return nil, fault.FailedPrecondition("the seal file %s belongs to another user (uid %d)", path, stat.Uid)
	case stat.Size != fileSize:
		return nil, damagedFile(path)
	}
	content := make([]byte, fileSize)
	defer clear(content)
	if _, err := io.ReadFull(f, content); err != nil {
		return nil, fault.Internal(err, "the seal file %s cannot be read", path)
	}
	key, whole := decode(content)
	if !whole {
		return nil, damagedFile(path)
	}
	return key, nil
}

func damagedFile(path string) error {
	return fault.New(codes.DataLoss, faultv1.Reason_DATA_DAMAGED,
		"the seal file %s is damaged. Nothing was changed. Bring it back from its backup; a new one cannot open what this one sealed", path)
}

// makeFile makes a seal file, durable before it has its name. That another one has the name by then is no error.
func makeFile(path string) error {
	dir, base := filepath.Split(path)
	if dir == "" {
		dir = "."
	}
	var key [keySize]byte
	_, _ = rand.Read(key[:]) // never fails (Go 1.24)
	content := encode(&key)
	defer clear(content)
	clear(key[:])

	temporary := filepath.Join(dir, temporaryPrefix(base)+rand.Text())
	f, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return cannotMake(path, err)
	}
	defer func() { _ = os.Remove(temporary) }()
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err == nil {
		err = os.Link(temporary, path) // unlike a rename, it replaces nothing
	}
	if err != nil {
		// Whoever was faster has made the file, and may have swept ours away.
		if _, there := os.Lstat(path); there != nil {
			return cannotMake(path, err)
		}
	}
	sweep(dir, base)
	if err := syncDir(dir); err != nil {
		return cannotMake(path, err)
	}
	return nil
}

func temporaryPrefix(base string) string { return "." + base + ".new-" }

// sweep removes what processes left that were killed while they made a seal: keys that nothing was ever sealed with. The seal stands by
// now, so none of them can become it.
func sweep(dir, base string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return // they do no harm
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), temporaryPrefix(base)) {
			_ = os.Remove(filepath.Join(dir, e.Name()))
		}
	}
}

func cannotMake(path string, err error) error {
	code, reason, why := codes.FailedPrecondition, faultv1.Reason_PRECONDITION_FAILED, "its folder must exist and be writable"
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		code, reason, why = codes.ResourceExhausted, faultv1.Reason_STORAGE_FULL, "the disk is full"
	}
	return fault.Wrap(err, code, reason, "the seal file %s cannot be made: %s", path, why)
}

func syncDir(name string) error {
	dir, err := os.Open(name)
	if err != nil {
		return err
	}
	err = dir.Sync()
	if closed := dir.Close(); err == nil {
		err = closed
	}
	return err
}
