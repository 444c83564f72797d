package store

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"strings"
	"time"

	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/identity/internal/store/db"
)

// Browser is one that is signed in to the provider. It is a session too, and ends with it.
type Browser struct {
	SID, UID string
	AuthTime time.Time
	AMR      []string
	ACR      string
	Expire   time.Time
}

// InsertBrowser stores a browser, with its session, under the digest of its cookie.
func (s *Store) InsertBrowser(ctx context.Context, tx *sqldb.Tx, cookie redact.Secret, b Browser, now time.Time) error {
	if err := s.InsertSession(ctx, tx, b.SID, b.UID, Auth{Time: b.AuthTime, ACR: b.ACR, AMR: b.AMR}, now, b.Expire); err != nil {
		return err
	}
	return db.New(tx).InsertBrowser(ctx, db.InsertBrowserParams{
		Sid: b.SID, Digest: digest(cookie), AuthTime: micros(b.AuthTime), Amr: strings.Join(b.AMR, " "), Acr: b.ACR,
	})
}

// FindBrowser finds a browser by its cookie; ok is false for one that is signed out or over.
func (s *Store) FindBrowser(ctx context.Context, q sqldb.DBTX, cookie redact.Secret, now time.Time) (Browser, bool, error) {
	row, err := db.New(q).FindBrowser(ctx, db.FindBrowserParams{Digest: digest(cookie), ExpireTime: micros(now)})
	if ok, err := found(err); !ok {
		return Browser{}, false, err
	}
	return Browser{
		SID: row.Sid, UID: row.UID, AuthTime: fromMicros(row.AuthTime), AMR: strings.Fields(row.Amr), ACR: row.Acr, Expire: fromMicros(row.ExpireTime),
	}, true, nil
}

// Browser finds a browser by its session.
func (s *Store) Browser(ctx context.Context, q sqldb.DBTX, sid string, now time.Time) (Browser, bool, error) {
	row, err := db.New(q).GetBrowser(ctx, db.GetBrowserParams{Sid: sid, ExpireTime: micros(now)})
	if ok, err := found(err); !ok {
		return Browser{}, false, err
	}
	return Browser{
		SID: row.Sid, UID: row.UID, AuthTime: fromMicros(row.AuthTime), AMR: strings.Fields(row.Amr), ACR: row.Acr, Expire: fromMicros(row.ExpireTime),
	}, true, nil
}

// EndBrowser forgets a browser and all that was given in it, and gives the sessions to revoke.
func (s *Store) EndBrowser(ctx context.Context, tx *sqldb.Tx, sid string) (sids []string, err error) {
	q := db.New(tx)
	if sids, err = q.ListGrantsOfBrowser(ctx, sid); err != nil {
		return nil, err
	}
	sids = append(sids, sid)
	for _, s := range sids {
		if err := q.DeleteSession(ctx, s); err != nil {
			return nil, err
		}
	}
	return sids, nil
}

// Code is an authorization code, without its secret.
type Code struct {
	// BrowserSID is the session that it was given in, GrantSID that of the grant which its use makes.
	BrowserSID string `json:"-"`
	GrantSID   string `json:"-"`
	ClientID   string `json:"-"`
	// RedirectURI as the request had it, and the S256 challenge.
	RedirectURI string `json:"redirect_uri"`
	Challenge   string `json:"challenge"`
	Scope       string `json:"scope"`
	Nonce       string `json:"nonce,omitempty"`
	// JKT is the key that the code is bound to (RFC 9449 section 10), or "".
	JKT string `json:"jkt,omitempty"`
	// Uses counts this one. Whatever is above 1 is a replay.
	Uses   int64     `json:"-"`
	Expire time.Time `json:"-"`
}

func codeID(id []byte, c Code) string {
	return hex.EncodeToString(id) + "/" + c.BrowserSID + "/" + c.GrantSID + "/" + c.ClientID
}

// InsertCode stores the digest of a code with what it gives. The row is kept until keep.
func (s *Store) InsertCode(ctx context.Context, tx *sqldb.Tx, secret redact.Secret, c Code, keep time.Time) error {
	plain, err := json.Marshal(c)
	if err != nil {
		return fault.Internal(err, "a code could not be encoded")
	}
	id := digest(secret)
	sealed, err := s.box.Seal(ctx, kindCode, codeID(id, c), plain)
	if err != nil {
		return err
	}
	return db.New(tx).InsertCode(ctx, db.InsertCodeParams{
		Digest: id, BrowserSid: c.BrowserSID, GrantSid: c.GrantSID, ClientID: c.ClientID, Record: sealed, CodeExpire: micros(c.Expire), ExpireTime: micros(keep),
	})
}

// UseCode counts a use of a code and gives it, over or not, used or not: the caller decides by Uses and Expire. ok is false for what
// never was one, or is forgotten.
func (s *Store) UseCode(ctx context.Context, tx *sqldb.Tx, secret redact.Secret) (c Code, ok bool, err error) {
	id := digest(secret)
	row, err := db.New(tx).UseCode(ctx, id)
	if ok, err := found(err); !ok {
		return Code{}, false, err
	}
	c = Code{BrowserSID: row.BrowserSid, GrantSID: row.GrantSid, ClientID: row.ClientID}
	plain, err := s.box.Open(ctx, kindCode, codeID(id, c), row.Record)
	if err != nil {
		return Code{}, false, damaged("code", err)
	}
	if err := json.Unmarshal(plain, &c); err != nil {
		return Code{}, false, damaged("code", err)
	}
	c.Uses, c.Expire = row.Used, fromMicros(row.CodeExpire)
	return c, true, nil
}

// Grant is what an application was given by a person. It is a session too, and ends with it.
type Grant struct {
	SID, UID, ClientID, BrowserSID string
	Scope                          string
	// JKT is the key that all its tokens are bound to, or "".
	JKT      string
	AuthTime time.Time
	AMR      []string
	ACR      string
	Expire   time.Time
}

// InsertGrant stores a grant with its session.
func (s *Store) InsertGrant(ctx context.Context, tx *sqldb.Tx, g Grant, now time.Time) error {
	if err := s.InsertSession(ctx, tx, g.SID, g.UID, Auth{Time: g.AuthTime, ACR: g.ACR, AMR: g.AMR}, now, g.Expire); err != nil {
		return err
	}
	return db.New(tx).InsertGrant(ctx, db.InsertGrantParams{
		Sid: g.SID, ClientID: g.ClientID, BrowserSid: g.BrowserSID, Scope: g.Scope, Jkt: g.JKT, AuthTime: micros(g.AuthTime), Amr: strings.Join(g.AMR, " "), Acr: g.ACR,
	})
}

// Grant finds a grant; ok is false for one that is over or was ended.
func (s *Store) Grant(ctx context.Context, q sqldb.DBTX, sid string, now time.Time) (Grant, bool, error) {
	row, err := db.New(q).GetGrant(ctx, db.GetGrantParams{Sid: sid, ExpireTime: micros(now)})
	if ok, err := found(err); !ok {
		return Grant{}, false, err
	}
	return Grant{
		SID: row.Sid, UID: row.UID, ClientID: row.ClientID, BrowserSID: row.BrowserSid, Scope: row.Scope, JKT: row.Jkt,
		AuthTime: fromMicros(row.AuthTime), AMR: strings.Fields(row.Amr), ACR: row.Acr, Expire: fromMicros(row.ExpireTime),
	}, true, nil
}

// Refresh is a refresh token, without its secret.
type Refresh struct {
	SID string
	// Used is when it was used, zero if it was not, and Successor what it gave then.
	Used      time.Time
	Successor redact.Secret
	Expire    time.Time
}

// InsertRefresh stores the digest of a refresh token.
func (s *Store) InsertRefresh(ctx context.Context, tx *sqldb.Tx, secret redact.Secret, sid string, expire time.Time) error {
	return db.New(tx).InsertRefresh(ctx, db.InsertRefreshParams{Digest: digest(secret), Sid: sid, Successor: []byte{}, ExpireTime: micros(expire)})
}

// Refresh finds a refresh token, used or not, over or not.
func (s *Store) Refresh(ctx context.Context, q sqldb.DBTX, secret redact.Secret) (Refresh, bool, error) {
	id := digest(secret)
	row, err := db.New(q).GetRefresh(ctx, id)
	if ok, err := found(err); !ok {
		return Refresh{}, false, err
	}
	r := Refresh{SID: row.Sid, Used: fromMicros(row.UsedTime), Expire: fromMicros(row.ExpireTime)}
	if !r.Used.IsZero() {
		plain, err := s.box.Open(ctx, kindSuccessor, hex.EncodeToString(id), row.Successor)
		if err != nil {
			return Refresh{}, false, damaged("refresh token", err)
		}
		r.Successor = redact.New(plain)
	}
	return r, true, nil
}

// UseRefresh marks a refresh token as used and puts its successor in its place; first is false if it was used before.
func (s *Store) UseRefresh(ctx context.Context, tx *sqldb.Tx, secret, successor redact.Secret, sid string, now, expire time.Time) (first bool, err error) {
	id := digest(secret)
	sealed, err := s.box.Seal(ctx, kindSuccessor, hex.EncodeToString(id), successor.Reveal())
	if err != nil {
		return false, err
	}
	n, err := db.New(tx).UseRefresh(ctx, db.UseRefreshParams{Digest: id, UsedTime: micros(now), Successor: sealed})
	if err != nil || n != 1 {
		return false, err
	}
	return true, s.InsertRefresh(ctx, tx, successor, sid, expire)
}

// States of a device.
const (
	DeviceWaits   = 0
	DeviceAllowed = 1
	DeviceDenied  = 2
)

// Device is one that waits for a person.
type Device struct {
	ClientID, Scope, JKT string
	State                int64
	BrowserSID           string
	Wait                 time.Duration
	LastPoll, Expire     time.Time
}

// InsertDevice stores a device under its two codes; ok is false if one of them is taken.
func (s *Store) InsertDevice(ctx context.Context, tx *sqldb.Tx, secret redact.Secret, userCode string, d Device) (ok bool, err error) {
	mac, err := s.box.MAC(ctx, macUserCode, "", userCode)
	if err != nil {
		return false, err
	}
	n, err := db.New(tx).InsertDevice(ctx, db.InsertDeviceParams{
		Digest: digest(secret), UserMac: mac, ClientID: d.ClientID, Scope: d.Scope, Jkt: d.JKT, Wait: d.Wait.Microseconds(), ExpireTime: micros(d.Expire),
	})
	return n == 1, err
}

// Device finds a device by its own code, over or not.
func (s *Store) Device(ctx context.Context, q sqldb.DBTX, secret redact.Secret) (Device, bool, error) {
	row, err := db.New(q).GetDevice(ctx, digest(secret))
	if ok, err := found(err); !ok {
		return Device{}, false, err
	}
	return Device{
		ClientID: row.ClientID, Scope: row.Scope, JKT: row.Jkt, State: row.State, BrowserSID: row.BrowserSid,
		Wait: time.Duration(row.Wait) * time.Microsecond, LastPoll: fromMicros(row.LastPoll), Expire: fromMicros(row.ExpireTime),
	}, true, nil
}

// FindDevice finds a device that is not over by the code that a person types.
func (s *Store) FindDevice(ctx context.Context, q sqldb.DBTX, userCode string, now time.Time) (Device, bool, error) {
	mac, err := s.box.MAC(ctx, macUserCode, "", userCode)
	if err != nil {
		return Device{}, false, err
	}
	row, err := db.New(q).FindDevice(ctx, db.FindDeviceParams{UserMac: mac, ExpireTime: micros(now)})
	if ok, err := found(err); !ok {
		return Device{}, false, err
	}
	return Device{ClientID: row.ClientID, Scope: row.Scope, State: row.State, Expire: fromMicros(row.ExpireTime)}, true, nil
}

// AnswerDevice says yes or no to a device that waits; ok is false if it does not wait any more.
func (s *Store) AnswerDevice(ctx context.Context, tx *sqldb.Tx, userCode string, allow bool, browserSID string, now time.Time) (ok bool, err error) {
	mac, err := s.box.MAC(ctx, macUserCode, "", userCode)
	if err != nil {
		return false, err
	}
	state := int64(DeviceDenied)
	if allow {
		state = DeviceAllowed
	}
	n, err := db.New(tx).AnswerDevice(ctx, db.AnswerDeviceParams{UserMac: mac, State: state, BrowserSid: browserSID, ExpireTime: micros(now)})
	return n == 1, err
}

// PollDevice remembers when a device asked, and how long it has to wait from now on.
func (s *Store) PollDevice(ctx context.Context, tx *sqldb.Tx, secret redact.Secret, at time.Time, wait time.Duration) error {
	return db.New(tx).PollDevice(ctx, db.PollDeviceParams{Digest: digest(secret), LastPoll: micros(at), Wait: wait.Microseconds()})
}

// DropDevice forgets a device; first is false if it was forgotten before.
func (s *Store) DropDevice(ctx context.Context, tx *sqldb.Tx, secret redact.Secret) (first bool, err error) {
	n, err := db.New(tx).DeleteDevice(ctx, digest(secret))
	return n == 1, err
}
