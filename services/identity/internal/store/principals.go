package store

import (
	"context"
	"encoding/json"
	"strings"
	"time"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/identity/internal/login"
	"github.com/redoubt-ml/redoubt/services/identity/internal/store/db"
)

// The kinds of principal, as the contract numbers them.
const (
	User             = identityv1.PrincipalType_PRINCIPAL_TYPE_USER
	ServicePrincipal = identityv1.PrincipalType_PRINCIPAL_TYPE_SERVICE_PRINCIPAL
	ManagedIdentity  = identityv1.PrincipalType_PRINCIPAL_TYPE_MANAGED_IDENTITY
	Group            = identityv1.PrincipalType_PRINCIPAL_TYPE_GROUP
)

// Principal is whoever a token or an assignment can name.
type Principal struct {
	UID  string
	Kind identityv1.PrincipalType
	// ID is the last segment of the name; of a managed identity it is the UID.
	ID          string
	DisplayName string
	// Workspace is the uid of the workspace that a managed identity belongs to.
	Workspace  string
	Disabled   bool
	Version    int64
	CreateTime time.Time
	// Home of a user who signs in elsewhere, else nil.
	Home *Home
}

// Name is the resource name.
func (p Principal) Name() string {
	switch p.Kind {
	case User:
		return "users/" + p.ID
	case ServicePrincipal:
		return "servicePrincipals/" + p.ID
	case ManagedIdentity:
		return "managedIdentities/" + p.ID
	case Group:
		return "groups/" + p.ID
	default:
		return ""
	}
}

// record is what is sealed of a principal.
type record struct {
	ID          string `json:"id"`
	DisplayName string `json:"display_name"`
	Home        *Home  `json:"home,omitempty"`
}

func (s *Store) sealPrincipal(ctx context.Context, p Principal) ([]byte, error) {
	plain, err := json.Marshal(record{ID: p.ID, DisplayName: p.DisplayName, Home: p.Home})
	if err != nil {
		return nil, fault.Internal(err, "a principal could not be encoded")
	}
	return s.box.Seal(ctx, kindPrincipal, p.UID, plain)
}

// InsertPrincipal stores a new principal. An id that is taken, or that a reader would take for one that is, is ALREADY_EXISTS.
// The id must be a valid one already.
func (s *Store) InsertPrincipal(ctx context.Context, tx *sqldb.Tx, p Principal) error {
	kind := p.Kind.String()
	name, err := s.box.MAC(ctx, macName, kind, p.ID)
	if err != nil {
		return err
	}
	look := p.ID
	if p.Kind != ManagedIdentity { // a uid is never read for another
		look = login.Skeleton(p.ID)
	}
	skeleton, err := s.box.MAC(ctx, macSkeleton, kind, look)
	if err != nil {
		return err
	}
	q := db.New(tx)
	n, err := q.CountLike(ctx, db.CountLikeParams{Kind: int64(p.Kind), NameMac: name, SkeletonMac: skeleton})
	if err != nil {
		return err
	}
	if n > 0 {
		return fault.AlreadyExists("%s exists, or looks like one that does; choose another id", p.Name())
	}
	sealed, err := s.sealPrincipal(ctx, p)
	if err != nil {
		return err
	}
	return q.InsertPrincipal(ctx, db.InsertPrincipalParams{
		UID: p.UID, Kind: int64(p.Kind), NameMac: name, SkeletonMac: skeleton, WorkspaceUID: p.Workspace, Record: sealed,
		CreateTime: micros(p.CreateTime),
	})
}

// Principal finds one by uid.
func (s *Store) Principal(ctx context.Context, q sqldb.DBTX, uid string) (Principal, bool, error) {
	row, err := db.New(q).GetPrincipal(ctx, uid)
	return s.one(ctx, row, err)
}

// Find finds one by the canonical id.
func (s *Store) Find(ctx context.Context, q sqldb.DBTX, kind identityv1.PrincipalType, id string) (Principal, bool, error) {
	mac, err := s.box.MAC(ctx, macName, kind.String(), id)
	if err != nil {
		return Principal{}, false, err
	}
	row, err := db.New(q).FindPrincipal(ctx, db.FindPrincipalParams{Kind: int64(kind), NameMac: mac})
	return s.one(ctx, row, err)
}

// ManagedIdentityOf finds the managed identity of a workspace.
func (s *Store) ManagedIdentityOf(ctx context.Context, q sqldb.DBTX, workspaceUID string) (Principal, bool, error) {
	if workspaceUID == "" {
		return Principal{}, false, nil
	}
	row, err := db.New(q).FindManagedIdentity(ctx, db.FindManagedIdentityParams{WorkspaceUID: workspaceUID, Kind: int64(ManagedIdentity)})
	return s.one(ctx, row, err)
}

func (s *Store) one(ctx context.Context, row db.Principal, err error) (Principal, bool, error) {
	if ok, err := found(err); !ok {
		return Principal{}, false, err
	}
	p, err := s.open(ctx, row)
	return p, err == nil, err
}

func (s *Store) open(ctx context.Context, row db.Principal) (Principal, error) {
	plain, err := s.box.Open(ctx, kindPrincipal, row.UID, row.Record)
	if err != nil {
		return Principal{}, damaged("principal", err)
	}
	var r record
	if err := json.Unmarshal(plain, &r); err != nil {
		return Principal{}, damaged("principal", err)
	}
	return Principal{
		UID: row.UID, Kind: identityv1.PrincipalType(row.Kind), ID: r.ID, DisplayName: r.DisplayName, Workspace: row.WorkspaceUID,
		Disabled: row.Disabled != 0, Version: row.Version, CreateTime: fromMicros(row.CreateTime),
		Home: r.Home,
	}, nil
}

// Cursor is where a list goes on: after this row. The zero value is the start.
type Cursor struct {
	CreateTime time.Time
	UID        string
}

// List gives up to n principals of a kind, the oldest first.
func (s *Store) List(ctx context.Context, q sqldb.DBTX, kind identityv1.PrincipalType, after Cursor, n int) ([]Principal, error) {
	rows, err := db.New(q).ListPrincipals(ctx, db.ListPrincipalsParams{
		Kind: int64(kind), Limit: int32(n), AfterTime: micros(after.CreateTime), AfterUID: after.UID,
	})
	if err != nil {
		return nil, sqldb.Fault(err)
	}
	out := make([]Principal, len(rows))
	for i, row := range rows {
		if out[i], err = s.open(ctx, row); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// SetDisabled marks a principal.
func (s *Store) SetDisabled(ctx context.Context, tx *sqldb.Tx, uid string, disabled bool) error {
	v := int64(0)
	if disabled {
		v = 1
	}
	_, err := db.New(tx).SetDisabled(ctx, db.SetDisabledParams{UID: uid, Disabled: v})
	return err
}

// DeletePrincipal removes a principal with all that hangs on it. It returns the groups that it was a member of.
func (s *Store) DeletePrincipal(ctx context.Context, tx *sqldb.Tx, uid string) (groups []string, err error) {
	q := db.New(tx)
	if groups, err = q.ListGroupsOf(ctx, uid); err != nil {
		return nil, err
	}
	_, err = q.DeletePrincipal(ctx, uid) // the rest goes by its foreign keys
	return groups, err
}

// SetPassword stores the hash of a password, in PHC form.
func (s *Store) SetPassword(ctx context.Context, tx *sqldb.Tx, uid, phc string, now time.Time) error {
	sealed, err := s.box.Seal(ctx, kindPassword, uid, []byte(phc))
	if err != nil {
		return err
	}
	return db.New(tx).PutPassword(ctx, db.PutPasswordParams{UID: uid, Hash: sealed, CreateTime: micros(now)})
}

// Password gives the stored hash.
func (s *Store) Password(ctx context.Context, q sqldb.DBTX, uid string) (phc string, ok bool, err error) {
	sealed, err := db.New(q).GetPassword(ctx, uid)
	if ok, err := found(err); !ok {
		return "", false, err
	}
	plain, err := s.box.Open(ctx, kindPassword, uid, sealed)
	if err != nil {
		return "", false, damaged("password", err)
	}
	return string(plain), true, nil
}

// FirstAdmin is the uid of the administrator that the installation began with, "" if there is none yet.
func (s *Store) FirstAdmin(ctx context.Context, q sqldb.DBTX) (string, error) {
	row, err := db.New(q).GetInstallation(ctx)
	return row.FirstAdmin, sqldb.Fault(err)
}

// SetFirstAdmin stores it, once.
func (s *Store) SetFirstAdmin(ctx context.Context, tx *sqldb.Tx, uid string) error {
	n, err := db.New(tx).SetFirstAdmin(ctx, uid)
	if err == nil && n != 1 {
		return fault.AlreadyExists("the installation has its first administrator already")
	}
	return err
}

// ClientSecret is a credential of a service principal, without the secret.
type ClientSecret struct {
	ID, UID                string
	CreateTime, ExpireTime time.Time // CreateTime is zero where it was found by its digest
}

// InsertClientSecret stores the digest of a secret.
func (s *Store) InsertClientSecret(ctx context.Context, tx *sqldb.Tx, c ClientSecret, secret redact.Secret, now time.Time) error {
	return db.New(tx).InsertClientSecret(ctx, db.InsertClientSecretParams{
		SecretID: c.ID, UID: c.UID, Digest: digest(secret), CreateTime: micros(now), ExpireTime: micros(c.ExpireTime),
	})
}

// CountClientSecrets counts those of a principal that are not over.
func (s *Store) CountClientSecrets(ctx context.Context, q sqldb.DBTX, uid string, now time.Time) (int, error) {
	n, err := db.New(q).CountClientSecrets(ctx, db.CountClientSecretsParams{UID: uid, ExpireTime: micros(now)})
	return int(n), sqldb.Fault(err)
}

// FindClientSecret finds a secret by its digest, whosesoever it is and whether it is over or not.
func (s *Store) FindClientSecret(ctx context.Context, q sqldb.DBTX, secret redact.Secret) (ClientSecret, bool, error) {
	row, err := db.New(q).FindClientSecret(ctx, digest(secret))
	if ok, err := found(err); !ok {
		return ClientSecret{}, false, err
	}
	return ClientSecret{ID: row.SecretID, UID: row.UID, ExpireTime: fromMicros(row.ExpireTime)}, true, nil
}

// Auth is how the user of a session proved himself, and when last: what its tokens say as auth_time, acr and amr.
type Auth struct {
	Time time.Time
	ACR  string
	AMR  []string
}

func (a Auth) amr() string { return strings.Join(a.AMR, " ") }

// InsertSession stores a sign-in.
func (s *Store) InsertSession(ctx context.Context, tx *sqldb.Tx, sid, uid string, auth Auth, now, expire time.Time) error {
	return db.New(tx).InsertSession(ctx, db.InsertSessionParams{
		Sid: sid, UID: uid, CreateTime: micros(now), ExpireTime: micros(expire), AuthTime: micros(auth.Time), Acr: auth.ACR, Amr: auth.amr(),
	})
}

// Session is a sign-in that is not over.
type Session struct {
	UID             string // of the principal
	Created, Expire time.Time
	Auth            Auth
}

// FindSession finds a sign-in; ok is false for one that is over or was ended.
func (s *Store) FindSession(ctx context.Context, q sqldb.DBTX, sid string, now time.Time) (session Session, ok bool, err error) {
	row, err := db.New(q).GetSession(ctx, db.GetSessionParams{Sid: sid, ExpireTime: micros(now)})
	if ok, err := found(err); !ok {
		return Session{}, false, err
	}
	auth := Auth{Time: fromMicros(row.AuthTime), ACR: row.Acr, AMR: strings.Fields(row.Amr)}
	return Session{UID: row.UID, Created: fromMicros(row.CreateTime), Expire: fromMicros(row.ExpireTime), Auth: auth}, true, nil
}

// DeleteSession forgets a sign-in.
func (s *Store) DeleteSession(ctx context.Context, tx *sqldb.Tx, sid string) error {
	return db.New(tx).DeleteSession(ctx, sid)
}

// EndSessions forgets the sign-ins of a principal and returns those that still mattered.
func (s *Store) EndSessions(ctx context.Context, tx *sqldb.Tx, uid string, now time.Time) (sids []string, err error) {
	q := db.New(tx)
	rows, err := q.ListSessionsOf(ctx, db.ListSessionsOfParams{UID: uid, ExpireTime: micros(now)})
	if err != nil {
		return nil, err
	}
	for _, row := range rows {
		sids = append(sids, row.Sid)
	}
	return sids, q.DeleteSessionsOf(ctx, uid)
}
