package store

import (
	"context"
	"encoding/json"
	"time"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/identity/internal/store/db"
)

const (
	kindIssuer       = "foreign-issuer"
	kindIssuerSecret = "foreign-issuer-secret"
	macIssuer        = "foreign-issuer-name"
	macIssuerURL     = "foreign-issuer-url"
	macHome          = "home"
	macHomeSession   = "home-session"
)

// GroupMapping puts who has a value in the groups claim into a group of ours.
type GroupMapping struct {
	Value    string `json:"value"`
	GroupUID string `json:"group_uid"`
}

// Issuer is a foreign OpenID provider.
type Issuer struct {
	UID   string               `json:"-"`
	ID    string               `json:"id"`
	URL   string               `json:"url"`
	Class identityv1.HomeClass `json:"class"`

	DisplayName  string         `json:"display_name"`
	ClientID     string         `json:"client_id"`
	Audiences    []string       `json:"audiences,omitempty"`
	Algorithms   []string       `json:"algorithms"`
	Scopes       []string       `json:"scopes,omitempty"`
	NameClaim    string         `json:"name_claim"`
	EmailClaim   string         `json:"email_claim"`
	GroupsClaim  string         `json:"groups_claim,omitempty"`
	Groups       []GroupMapping `json:"groups,omitempty"`
	Domains      []string       `json:"domains,omitempty"`
	PrivateHosts []string       `json:"private_hosts,omitempty"`
	RootsPEM     string         `json:"roots_pem,omitempty"`
	TrustMFA     bool           `json:"trust_mfa,omitempty"`
	Disabled     bool           `json:"disabled,omitempty"`

	// Secret is the client secret, empty for a public client. It is sealed by itself.
	Secret     redact.Secret `json:"-"`
	Version    int64         `json:"-"`
	CreateTime time.Time     `json:"-"`
}

// Name is the resource name.
func (i Issuer) Name() string { return "issuers/" + i.ID }

// secretID binds a client secret to its row and to the issuer that it may be shown to.
func (i Issuer) secretID() string { return i.UID + "/" + i.URL }

func (s *Store) sealIssuer(ctx context.Context, i Issuer) (record, secret []byte, err error) {
	plain, err := json.Marshal(i)
	if err != nil {
		return nil, nil, fault.Internal(err, "an issuer could not be encoded")
	}
	if record, err = s.box.Seal(ctx, kindIssuer, i.UID, plain); err != nil || i.Secret.Empty() {
		return record, []byte{}, err
	}
	secret, err = s.box.Seal(ctx, kindIssuerSecret, i.secretID(), i.Secret.Reveal())
	return record, secret, err
}

func (s *Store) openIssuer(ctx context.Context, row db.Issuer) (Issuer, error) {
	plain, err := s.box.Open(ctx, kindIssuer, row.UID, row.Record)
	if err != nil {
		return Issuer{}, damaged("issuer", err)
	}
	var i Issuer
	if err := json.Unmarshal(plain, &i); err != nil {
		return Issuer{}, damaged("issuer", err)
	}
	i.UID, i.Version, i.CreateTime = row.UID, row.Version, fromMicros(row.CreateTime)
	if len(row.Secret) > 0 {
		secret, err := s.box.Open(ctx, kindIssuerSecret, i.secretID(), row.Secret)
		if err != nil {
			return Issuer{}, damaged("client secret of an issuer", err)
		}
		i.Secret = redact.New(secret)
	}
	return i, nil
}

// InsertIssuer stores a new issuer. An id or a URL that is taken is ALREADY_EXISTS.
func (s *Store) InsertIssuer(ctx context.Context, tx *sqldb.Tx, i Issuer) error {
	name, err := s.box.MAC(ctx, macIssuer, "", i.ID)
	if err != nil {
		return err
	}
	url, err := s.box.MAC(ctx, macIssuerURL, "", i.URL)
	if err != nil {
		return err
	}
	q := db.New(tx)
	if n, err := q.CountIssuersLike(ctx, db.CountIssuersLikeParams{NameMac: name, URLMac: url}); err != nil || n > 0 {
		if err == nil {
			err = fault.AlreadyExists("%s, or an issuer with this URL, exists; change that one, or choose another", i.Name())
		}
		return err
	}
	record, secret, err := s.sealIssuer(ctx, i)
	if err != nil {
		return err
	}
	return q.InsertIssuer(ctx, db.InsertIssuerParams{UID: i.UID, NameMac: name, URLMac: url, Record: record, Secret: secret, CreateTime: micros(i.CreateTime)})
}

// UpdateIssuer stores an issuer in place of the version that it was read in; ok is false if it is another by now.
func (s *Store) UpdateIssuer(ctx context.Context, tx *sqldb.Tx, i Issuer) (ok bool, err error) {
	record, secret, err := s.sealIssuer(ctx, i)
	if err != nil {
		return false, err
	}
	n, err := db.New(tx).UpdateIssuer(ctx, db.UpdateIssuerParams{UID: i.UID, Version: i.Version, Record: record, Secret: secret})
	return n == 1, err
}

// FindIssuer finds one by the id in its name.
func (s *Store) FindIssuer(ctx context.Context, q sqldb.DBTX, id string) (Issuer, bool, error) {
	mac, err := s.box.MAC(ctx, macIssuer, "", id)
	if err != nil {
		return Issuer{}, false, err
	}
	row, err := db.New(q).FindIssuer(ctx, mac)
	if ok, err := found(err); !ok {
		return Issuer{}, false, err
	}
	i, err := s.openIssuer(ctx, db.Issuer{UID: row.UID, Record: row.Record, Secret: row.Secret, Version: row.Version, CreateTime: row.CreateTime})
	return i, err == nil, err
}

// Issuer finds one by its uid.
func (s *Store) Issuer(ctx context.Context, q sqldb.DBTX, uid string) (Issuer, bool, error) {
	row, err := db.New(q).GetIssuer(ctx, uid)
	if ok, err := found(err); !ok {
		return Issuer{}, false, err
	}
	i, err := s.openIssuer(ctx, db.Issuer{UID: row.UID, Record: row.Record, Secret: row.Secret, Version: row.Version, CreateTime: row.CreateTime})
	return i, err == nil, err
}

// Issuers are all of them, the oldest first.
func (s *Store) Issuers(ctx context.Context, q sqldb.DBTX) ([]Issuer, error) {
	rows, err := db.New(q).ListIssuers(ctx)
	if err != nil {
		return nil, sqldb.Fault(err)
	}
	out := make([]Issuer, len(rows))
	for n, row := range rows {
		if out[n], err = s.openIssuer(ctx, db.Issuer{UID: row.UID, Record: row.Record, Secret: row.Secret, Version: row.Version, CreateTime: row.CreateTime}); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// DeleteIssuer removes one. The homes of its people stay.
func (s *Store) DeleteIssuer(ctx context.Context, tx *sqldb.Tx, uid string) error {
	_, err := db.New(tx).DeleteIssuer(ctx, uid)
	return err
}

// Home is where a user comes from who signs in elsewhere.
type Home struct {
	// IssuerID is the last segment of the issuer's name at the last sign-in.
	IssuerID string               `json:"issuer"`
	URL      string               `json:"url"`
	Subject  string               `json:"subject"`
	Class    identityv1.HomeClass `json:"class"`
	Email    string               `json:"email,omitempty"`
}

func (s *Store) homeMAC(ctx context.Context, url, subject string) ([]byte, error) {
	return s.box.MAC(ctx, macHome, url, subject)
}

// FindHome finds the user of a home by issuer and subject, and by nothing else.
func (s *Store) FindHome(ctx context.Context, q sqldb.DBTX, url, subject string) (Principal, bool, error) {
	mac, err := s.homeMAC(ctx, url, subject)
	if err != nil {
		return Principal{}, false, err
	}
	uid, err := db.New(q).FindHome(ctx, mac)
	if ok, err := found(err); !ok {
		return Principal{}, false, err
	}
	return s.Principal(ctx, q, uid)
}

// InsertHome says where a user comes from who was just stored with it.
func (s *Store) InsertHome(ctx context.Context, tx *sqldb.Tx, p Principal, now time.Time) error {
	mac, err := s.homeMAC(ctx, p.Home.URL, p.Home.Subject)
	if err != nil {
		return err
	}
	url, err := s.box.MAC(ctx, macIssuerURL, "", p.Home.URL)
	if err != nil {
		return err
	}
	return db.New(tx).InsertHome(ctx, db.InsertHomeParams{UID: p.UID, HomeMac: mac, URLMac: url, CreateTime: micros(now)})
}

// HomeOf gives the home of a principal; ok is false for who has none.
func (s *Store) HomeOf(ctx context.Context, q sqldb.DBTX, uid string) (Home, bool, error) {
	n, err := db.New(q).CountHomesOf(ctx, uid)
	if err != nil || n == 0 {
		return Home{}, false, sqldb.Fault(err)
	}
	p, ok, err := s.Principal(ctx, q, uid)
	if err != nil || !ok {
		return Home{}, false, err
	}
	if p.Home == nil {
		return Home{}, false, damaged("home of a guest", nil)
	}
	return *p.Home, true, nil
}

// UsersAt are the uids of an issuer's people.
func (s *Store) UsersAt(ctx context.Context, q sqldb.DBTX, url string) ([]string, error) {
	mac, err := s.box.MAC(ctx, macIssuerURL, "", url)
	if err != nil {
		return nil, err
	}
	out, err := db.New(q).ListHomesAt(ctx, mac)
	return out, sqldb.Fault(err)
}

// PutHomeSession remembers whose a session at an issuer is.
func (s *Store) PutHomeSession(ctx context.Context, tx *sqldb.Tx, url, sid, uid string, expire time.Time) error {
	mac, err := s.box.MAC(ctx, macHomeSession, url, sid)
	if err != nil {
		return err
	}
	return db.New(tx).PutHomeSession(ctx, db.PutHomeSessionParams{SessionMac: mac, UID: uid, ExpireTime: micros(expire)})
}

// FindHomeSession finds whose a session at an issuer is.
func (s *Store) FindHomeSession(ctx context.Context, q sqldb.DBTX, url, sid string, now time.Time) (uid string, ok bool, err error) {
	mac, err := s.box.MAC(ctx, macHomeSession, url, sid)
	if err != nil {
		return "", false, err
	}
	uid, err = db.New(q).FindHomeSession(ctx, db.FindHomeSessionParams{SessionMac: mac, ExpireTime: micros(now)})
	ok, err = found(err)
	return uid, ok, err
}

// SetPrincipalRecord stores another display name and home of a principal. Its id stays.
func (s *Store) SetPrincipalRecord(ctx context.Context, tx *sqldb.Tx, p Principal) error {
	sealed, err := s.sealPrincipal(ctx, p)
	if err != nil {
		return err
	}
	_, err = db.New(tx).UpdatePrincipalRecord(ctx, db.UpdatePrincipalRecordParams{UID: p.UID, Record: sealed})
	return err
}

// HomeGroups are the groups that the mapping has put a user into.
func (s *Store) HomeGroups(ctx context.Context, q sqldb.DBTX, uid string) ([]string, error) {
	out, err := db.New(q).ListHomeGroups(ctx, uid)
	return out, sqldb.Fault(err)
}

// SetHomeGroup remembers that the mapping has put a user into a group, or that it has taken him out.
func (s *Store) SetHomeGroup(ctx context.Context, tx *sqldb.Tx, uid, group string, member bool) error {
	if !member {
		return db.New(tx).DeleteHomeGroup(ctx, db.DeleteHomeGroupParams{UID: uid, GroupUID: group})
	}
	return db.New(tx).InsertHomeGroup(ctx, db.InsertHomeGroupParams{UID: uid, GroupUID: group})
}
