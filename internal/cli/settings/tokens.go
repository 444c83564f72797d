package settings

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
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

	// What follows is of a session that the OpenID provider gave, in clear as Value is.

	// Key is the key that all of it is bound to, PKCS #8 in base64; without it none of it opens anything.
	Key string `json:"key,omitempty"`
	// Refresh gives the next Value, once.
	Refresh string `json:"refresh,omitempty"`
	// Renew is when the next Value is fetched, before Expires.
	Renew time.Time `json:"renew,omitzero"`
}

// Bound tells whether the token counts only together with proofs by its key.
func (t Token) Bound() bool { return t.Key != "" }

// live tells whether there is something to call with, or to get that by.
func (t Token) live(now time.Time) bool {
	return t.Value != "" && now.Before(t.Expires) || t.Refresh != "" && t.Key != ""
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

// Token is the context's token, if there is one for this server that has not expired and is good by itself.
func (d Folder) Token(ctx context.Context, name, server string, now time.Time) (redact.Secret, bool, error) {
	t, ok, err := d.Session(ctx, name, server, now)
	if err != nil || !ok || t.Bound() || !now.Before(t.Expires) {
		return redact.Secret{}, false, err
	}
	return redact.FromString(t.Value), true, nil
}

// Session is all that is kept for the context, if it is for this server and not over.
func (d Folder) Session(ctx context.Context, name, server string, now time.Time) (Token, bool, error) {
	all, err := d.tokens()
	if err != nil {
		return Token{}, false, err
	}
	t, ok := all[name]
	if !ok || t.Server != server {
		return Token{}, false, nil
	}
	if !t.Keyring {
		return t, t.live(now), nil
	}
	ring, err := d.keyring()
	if err != nil || ring == nil {
		return Token{}, false, err
	}
	timed, cancel := context.WithTimeout(ctx, keyringLimit)
	defer cancel()
	v, ok, err := ring.Get(timed, keyringService, d.account(name))
	if err != nil {
		return Token{}, false, fault.FailedPrecondition("the session is in the keyring, which does not give it (%v): unlock it, or sign in again with REDOUBT_KEYRING=off to keep it in a file", err)
	}
	defer v.Wipe()
	var kept Token
	// The entry itself says where it may go: the file that points to it is not enough.
	if !ok || json.Unmarshal(v.Reveal(), &kept) != nil || kept.Server != server || kept.Value == "" || !kept.live(now) {
		return Token{}, false, nil
	}
	return kept, true, nil
}

// Exchange changes what is kept for the context, while no other process does. change gets what is there now, the zero Token for nothing, and
// gives what is to be there: the same for no change, the zero Token to forget it. It is kept also where change fails.
func (d Folder) Exchange(ctx context.Context, name, server string, now time.Time, change func(Token) (Token, error)) error {
	return d.locked(ctx, func() error {
		before, _, err := d.Session(ctx, name, server, now)
		if err != nil {
			return err
		}
		after, failed := change(before)
		if after == before {
			return failed
		}
		return errors.Join(failed, d.setToken(context.WithoutCancel(ctx), name, after))
	})
}

// SetToken keeps a token for a context; a zero Token forgets it. It goes into the keyring if there is one that takes it, else into the
// file.
func (d Folder) SetToken(ctx context.Context, name string, t Token) error {
	return d.locked(ctx, func() error { return d.setToken(ctx, name, t) })
}

func (d Folder) setToken(ctx context.Context, name string, t Token) error {
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
