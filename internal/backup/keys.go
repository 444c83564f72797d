package backup

import (
	"bytes"
	"errors"
	"io"
	"os"
	"strings"
	"time"

	"filippo.io/age"
	"golang.org/x/sys/unix"

	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
)

// minPassphrase is the shortest passphrase in bytes: an archive can be tried offline, at a try a second.
const minPassphrase = 12

// Encrypt makes a writer of an encrypted archive for all recipients ("age1…"), or for the passphrase where there are none. It must be
// closed; the file is whole then.
func Encrypt(w io.Writer, recipients []string, passphrase redact.Secret) (io.WriteCloser, error) {
	if (len(recipients) == 0) == passphrase.Empty() {
		return nil, fault.InvalidArgument("a backup is encrypted for recipients, or with a passphrase: give one of them")
	}
	var to []age.Recipient
	for _, text := range recipients {
		r, err := age.ParseRecipients(strings.NewReader(text))
		if err != nil || len(r) != 1 {
			return nil, fault.InvalidArgument("%q is no recipient of age: it begins with age1 (`redoubt backup keygen` makes a pair)", text)
		}
		to = append(to, r...)
	}
	if len(to) == 0 {
		if passphrase.Len() < minPassphrase {
			return nil, fault.InvalidArgument("the passphrase has fewer than %d characters", minPassphrase)
		}
		r, err := age.NewScryptRecipient(passphrase.RevealString())
		if err != nil {
			return nil, fault.InvalidArgument("the passphrase cannot be used")
		}
		to = []age.Recipient{r}
	}
	return age.Encrypt(w, to...)
}

// Decrypt reads an encrypted archive with the identities of an age identity file, or with a passphrase.
func Decrypt(r io.Reader, identities, passphrase redact.Secret) (io.Reader, error) {
	if identities.Empty() == passphrase.Empty() {
		return nil, fault.InvalidArgument("a backup is opened with an identity file, or with a passphrase: give the one that it was made for")
	}
	var keys []age.Identity
	var err error
	if passphrase.Empty() {
		if keys, err = age.ParseIdentities(bytes.NewReader(identities.Reveal())); err != nil {
			return nil, fault.InvalidArgument("the identity file is none of age: it has a line that begins with AGE-SECRET-KEY-")
		}
	} else {
		k, err := age.NewScryptIdentity(passphrase.RevealString())
		if err != nil {
			return nil, fault.InvalidArgument("the passphrase cannot be used")
		}
		keys = []age.Identity{k}
	}
	out, err := age.Decrypt(r, keys...)
	var none *age.NoIdentityMatchError
	switch {
	case errors.As(err, &none):
		return nil, fault.FailedPrecondition("the backup was not made for this key. Find the identity file (or the passphrase) that belongs to it")
	case err != nil:
		return nil, damaged("this is no backup of redoubt, or its beginning is damaged")
	}
	return out, nil
}

// NewIdentity makes a key pair: the content of an identity file, and its recipient.
func NewIdentity(now time.Time) (identity redact.Secret, recipient string, err error) {
	k, err := age.GenerateX25519Identity()
	if err != nil {
		return redact.Secret{}, "", err
	}
	recipient = k.Recipient().String()
	return redact.FromString("# made by redoubt on " + now.UTC().Format(time.DateOnly) + "\n# public key: " + recipient + "\n" + k.String() + "\n"), recipient, nil
}

// ReadSecret reads a file that nobody else may read, 64 KiB at most.
func ReadSecret(path string) (redact.Secret, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return redact.Secret{}, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return redact.Secret{}, err
	}
	const most = 64 << 10
	if info.Mode().IsRegular() && info.Mode().Perm()&0o077 != 0 {
		return redact.Secret{}, fault.FailedPrecondition("%s can be read by others: chmod 600 it", path)
	}
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	if err != nil {
		return redact.Secret{}, err
	}
	if len(b) > most {
		return redact.Secret{}, fault.InvalidArgument("%s is too long to be a key", path)
	}
	return redact.New(b), nil
}
