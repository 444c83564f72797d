package settings

import (
	"bytes"
	"context"
	"encoding/json"
	"path/filepath"
	"time"

	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
)

const (
	keyringOn  = "on"
	keyringOff = "off"

	// keyringService is what the entries in the keyring are called.
	keyringService = "redoubt"
	// keyringLimit is how long a keyring may take: somebody may be asked to unlock it.
	keyringLimit = time.Minute
)

// Keyring is a place of the operating system's for what a user keeps to himself.
type Keyring interface {
	// Get gives what was set, and false where nothing was.
	Get(ctx context.Context, service, account string) (redact.Secret, bool, error)
	Set(ctx context.Context, service, account string, value redact.Secret) error
	// Delete forgets it; what is not there is no error.
	Delete(ctx context.Context, service, account string) error
}

// Token is a session's token and where it may go.
type Token struct {
	Server string `json:"server"`
	// Value is in clear here: this is the file, or the entry of the keyring, that holds it.
	Value   string    `json:"token,omitempty"`
	Expires time.Time `json:"expires"`
	// Keyring says that the value is in the keyring, and not here.
	Keyring bool `json:"keyring,omitempty"`
}

// WithKeyring is the folder with a keyring for its tokens; nil is none.
func (d Folder) WithKeyring(k Keyring) Folder {
	d.ring = k
	return d
}

// keyring is the one to use, if the file does not say otherwise.
func (d Folder) keyring() (Keyring, error) {
	f, err := d.Read()
	if err != nil || f.Keyring == keyringOff {
		return nil, err
	}
	return d.ring, nil
}

// account names a context's entry: two folders of settings do not share one.
func (d Folder) account(name string) string { return filepath.Clean(d.dir) + ": " + name }

// Token is the context's token, if there is one for this server that has not expired.
func (d Folder) Token(ctx context.Context, name, server string, now time.Time) (redact.Secret, bool, error) {
	all, err := d.tokens()
	if err != nil {
		return redact.Secret{}, false, err
	}
	t, ok := all[name]
	if !ok || t.Server != server || !now.Before(t.Expires) {
		return redact.Secret{}, false, nil
	}
	if !t.Keyring {
		return redact.FromString(t.Value), true, nil
	}
	ring, err := d.keyring()
	if err != nil || ring == nil {
		return redact.Secret{}, false, err
	}
	timed, cancel := context.WithTimeout(ctx, keyringLimit)
	defer cancel()
	v, ok, err := ring.Get(timed, keyringService, d.account(name))
	if err != nil {
		return redact.Secret{}, false, fault.FailedPrecondition("the session is in the keyring, which does not give it (%v): unlock it, or sign in again with REDOUBT_KEYRING=off to keep it in a file", err)
	}
	defer v.Wipe()
	var kept Token
	// The entry itself says where it may go: the file that points to it is not enough.
	if !ok || json.Unmarshal(v.Reveal(), &kept) != nil || kept.Server != server || kept.Value == "" || !now.Before(kept.Expires) {
		return redact.Secret{}, false, nil
	}
	return redact.FromString(kept.Value), true, nil
}

// SetToken keeps a token for a context; a zero Token forgets it. It goes into the keyring if there is one that takes it, else into the
// file.
func (d Folder) SetToken(ctx context.Context, name string, t Token) error {
	all, err := d.tokens()
	if err != nil {
		return err
	}
	ring, err := d.keyring()
	if err != nil {
		return err
	}
	before, known := all[name]
	if t == (Token{}) {
		if !known {
			return nil
		}
		delete(all, name)
	} else {
		all[name] = t
		if ring != nil && d.intoKeyring(ctx, ring, name, t) {
			all[name] = Token{Server: t.Server, Expires: t.Expires, Keyring: true}
		}
	}
	b, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return err
	}
	if err := d.write(TokenFile, append(b, '\n')); err != nil {
		return err
	}
	if !before.Keyring || all[name].Keyring || ring == nil {
		return nil
	}
	// What was in the keyring is not pointed to any more.
	timed, cancel := context.WithTimeout(ctx, keyringLimit)
	defer cancel()
	if err := ring.Delete(timed, keyringService, d.account(name)); err != nil && t == (Token{}) {
		return fault.FailedPrecondition("the session is still in the keyring, which does not forget it: %v", err)
	}
	return nil
}

// intoKeyring reports whether the keyring has taken the token: it is read back, for a keyring that loses things is none.
func (d Folder) intoKeyring(ctx context.Context, ring Keyring, name string, t Token) bool {
	b, err := json.Marshal(t)
	if err != nil {
		return false
	}
	v := redact.New(b)
	defer v.Wipe()
	timed, cancel := context.WithTimeout(ctx, keyringLimit)
	defer cancel()
	if err := ring.Set(timed, keyringService, d.account(name), v); err != nil {
		return false
	}
	got, ok, err := ring.Get(timed, keyringService, d.account(name))
	defer got.Wipe()
	if err == nil && ok && got.Equal(v) {
		return true
	}
	_ = ring.Delete(timed, keyringService, d.account(name)) // as far as it goes: it is kept in the file
	return false
}

func (d Folder) tokens() (map[string]Token, error) {
	path := filepath.Join(d.dir, TokenFile)
	all := make(map[string]Token)
	b, err := read(path, true)
	if err != nil || len(b) == 0 {
		return all, err
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&all); err != nil {
		return nil, fault.FailedPrecondition("%s is damaged; remove it and sign in again", path) // the cause may quote a token
	}
	return all, nil
}
