package store

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"time"

	"google.golang.org/protobuf/proto"

	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/inference/internal/store/db"
)

// Endpoint is an endpoint as it is stored.
type Endpoint struct {
	UID, Workspace string
	// Body is what the endpoint says of itself: name, kind, auth, description, tags, traffic, mirror, token_ttl, created_by.
	Body               *inferencev1.Endpoint
	Primary, Secondary redact.Secret
	// Deleting says that it is closed for good; its name is free again.
	Deleting         bool
	Revision         int64
	Created, Updated time.Time
}

// ID is the last segment of the endpoint's name.
func (e *Endpoint) ID() string { return lastSegment(e.Body.GetName()) }

func lastSegment(name string) string {
	n, err := resource.Parse(name)
	if err != nil {
		return ""
	}
	return n.ID()
}

// Token is a token of an endpoint, as far as it is kept.
type Token struct {
	Hash      [32]byte
	Principal string
	Expires   time.Time
}

// Endpoints are the queries about endpoints, deployments and replicas of one workspace, in a transaction or beside one.
type Endpoints struct {
	q         *db.Queries
	key       *envelope.Key
	workspace string
}

// Endpoints gives the queries on tx. key is the workspace's data key.
func (s *Store) Endpoints(tx sqldb.DBTX, key *envelope.Key) Endpoints {
	return Endpoints{q: db.New(tx), key: key, workspace: key.Owner()}
}

// Reader runs single statements.
func (s *Store) Reader() sqldb.DBTX { return s.db.Reader() }

// Write runs fn in one write transaction.
func (s *Store) Write(ctx context.Context, fn func(ctx context.Context, tx *sqldb.Tx) error) error {
	return s.db.Write(ctx, fn)
}

// Read runs fn on one snapshot of the database.
func (s *Store) Read(ctx context.Context, fn func(ctx context.Context, tx *sqldb.Tx) error) error {
	return s.db.Read(ctx, fn)
}

func (x Endpoints) aad(kind, uid, field string, revision int64) envelope.AAD {
	return envelope.AAD{Owner: x.workspace, Kind: kind, ID: uid, Field: field, Version: revision}
}

func (x Endpoints) endpointMAC(e *Endpoint) []byte {
	if e.Deleting {
		return x.key.MAC("deleted endpoint", x.workspace, e.UID)
	}
	return x.key.MAC("endpoint", x.workspace, e.ID())
}

// sealed are the sealed columns of an endpoint at a revision.
func (x Endpoints) sealed(e *Endpoint, revision int64) (body, primary, secondary []byte, err error) {
	plain, err := proto.Marshal(e.Body)
	if err != nil {
		return nil, nil, nil, fault.Internal(err, "the endpoint cannot be stored")
	}
	if body, err = x.key.Seal(x.aad("endpoint", e.UID, "body", revision), plain); err != nil {
		return nil, nil, nil, err
	}
	if primary, err = x.key.Seal(x.aad("endpoint", e.UID, "primary_key", revision), e.Primary.Reveal()); err != nil {
		return nil, nil, nil, err
	}
	secondary, err = x.key.Seal(x.aad("endpoint", e.UID, "secondary_key", revision), e.Secondary.Reveal())
	return body, primary, secondary, err
}

// Insert makes an endpoint.
func (x Endpoints) Insert(ctx context.Context, e *Endpoint) error {
	body, primary, secondary, err := x.sealed(e, 1)
	if err != nil {
		return err
	}
	n, err := x.q.InsertEndpoint(ctx, db.InsertEndpointParams{
		UID: e.UID, WorkspaceUID: x.workspace, NameMac: x.endpointMAC(e), Body: body, PrimaryKey: primary, SecondaryKey: secondary, CreateTime: micros(e.Created),
	})
	if err != nil {
		return sqldb.Fault(err)
	}
	if n == 0 {
		return fault.AlreadyExists("the workspace has an endpoint of that name already; choose another id")
	}
	e.Revision, e.Updated = 1, e.Created
	return nil
}

// Get gives an endpoint by its uid.
func (x Endpoints) Get(ctx context.Context, uid string) (*Endpoint, error) {
	row, err := x.q.GetEndpoint(ctx, uid)
	if err != nil {
		return nil, sqldb.Fault(err)
	}
	return x.endpoint(row)
}

// Find gives an endpoint by its id.
func (x Endpoints) Find(ctx context.Context, id string) (*Endpoint, error) {
	row, err := x.q.FindEndpoint(ctx, db.FindEndpointParams{WorkspaceUID: x.workspace, NameMac: x.key.MAC("endpoint", x.workspace, id)})
	if err != nil {
		return nil, sqldb.Fault(err)
	}
	e, err := x.endpoint(row)
	if err == nil && e.ID() != id {
		return nil, errMisplaced("endpoint")
	}
	return e, err
}

func errMisplaced(what string) error {
	return errDamaged("the stored %s stands in the place of another one", what)
}

func (x Endpoints) endpoint(row db.Endpoint) (*Endpoint, error) {
	if row.WorkspaceUID != x.workspace {
		return nil, fault.NotFound("the endpoint is not of this workspace")
	}
	e := &Endpoint{
		UID: row.UID, Workspace: row.WorkspaceUID, Body: &inferencev1.Endpoint{}, Deleting: row.Deleting != 0, Revision: row.Revision,
		Created: instant(row.CreateTime), Updated: instant(row.UpdateTime),
	}
	if err := open(x.key, x.aad("endpoint", e.UID, "body", e.Revision), row.Body, e.Body); err != nil {
		return nil, err
	}
	for _, f := range []struct {
		field  string
		sealed []byte
		to     *redact.Secret
	}{{"primary_key", row.PrimaryKey, &e.Primary}, {"secondary_key", row.SecondaryKey, &e.Secondary}} {
		b, err := x.key.Open(x.aad("endpoint", e.UID, f.field, e.Revision), f.sealed)
		if err != nil {
			return nil, err
		}
		*f.to = redact.New(b)
	}
	return e, nil
}

// List gives endpoints after the cursor, oldest first.
func (x Endpoints) List(ctx context.Context, after Cursor, limit int) ([]*Endpoint, Cursor, error) {
	rows, err := x.q.ListEndpoints(ctx, db.ListEndpointsParams{WorkspaceUID: x.workspace, CreateTime: after.Time, UID: after.UID, Column4: int64(limit)})
	if err != nil {
		return nil, after, sqldb.Fault(err)
	}
	out := make([]*Endpoint, 0, len(rows))
	for _, row := range rows {
		e, err := x.endpoint(row)
		if err != nil {
			return nil, after, err
		}
		out = append(out, e)
		after = Cursor{Time: row.CreateTime, UID: row.UID}
	}
	return out, after, nil
}

// Count is how many endpoints the workspace has.
func (x Endpoints) Count(ctx context.Context) (int64, error) {
	n, err := x.q.CountEndpoints(ctx, x.workspace)
	return n, sqldb.Fault(err)
}

// Update stores a changed endpoint, if nobody else has changed it since it was read.
func (x Endpoints) Update(ctx context.Context, e *Endpoint, now time.Time) error {
	body, primary, secondary, err := x.sealed(e, e.Revision+1)
	if err != nil {
		return err
	}
	deleting := int64(0)
	if e.Deleting {
		deleting = 1
	}
	n, err := x.q.UpdateEndpoint(ctx, db.UpdateEndpointParams{
		UID: e.UID, Revision: e.Revision, NameMac: x.endpointMAC(e), Body: body, PrimaryKey: primary, SecondaryKey: secondary, Deleting: deleting, UpdateTime: micros(now),
	})
	if err != nil {
		return sqldb.Fault(err)
	}
	if n == 0 {
		return fault.Aborted("the endpoint was changed meanwhile; read it and repeat the call")
	}
	e.Revision++
	e.Updated = now
	return nil
}

// Delete removes an endpoint that has no deployments, with its tokens.
func (x Endpoints) Delete(ctx context.Context, uid string) error {
	if err := x.DropTokens(ctx, uid); err != nil {
		return err
	}
	return sqldb.Fault(x.q.DeleteEndpoint(ctx, uid))
}

// Place says where an endpoint is.
type Place struct{ UID, Workspace string }

// AllEndpoints are the endpoints of all workspaces, those that are being deleted too.
func (s *Store) AllEndpoints(ctx context.Context) ([]Place, error) {
	rows, err := db.New(s.db.Reader()).AllEndpoints(ctx)
	if err != nil {
		return nil, sqldb.Fault(err)
	}
	out := make([]Place, 0, len(rows))
	for _, r := range rows {
		out = append(out, Place{UID: r.UID, Workspace: r.WorkspaceUID})
	}
	return out, nil
}

// --- tokens

// tokenEntry is what is sealed of a token.
type tokenEntry struct {
	Principal string `json:"principal"`
	Expires   int64  `json:"expires"`
}

func (x Endpoints) tokenAAD(endpoint string, hash []byte) envelope.AAD {
	return x.aad("endpoint_token", endpoint, hex.EncodeToString(hash), 0)
}

// AddToken keeps a token.
func (x Endpoints) AddToken(ctx context.Context, endpoint string, t Token) error {
	plain, err := json.Marshal(tokenEntry{Principal: t.Principal, Expires: micros(t.Expires)})
	if err != nil {
		return fault.Internal(err, "the token cannot be stored")
	}
	entry, err := x.key.Seal(x.tokenAAD(endpoint, t.Hash[:]), plain)
	if err != nil {
		return err
	}
	return sqldb.Fault(x.q.InsertEndpointToken(ctx, db.InsertEndpointTokenParams{EndpointUID: endpoint, Hash: t.Hash[:], Entry: entry, ExpireTime: micros(t.Expires)}))
}

// Tokens are those of an endpoint that have not expired.
func (x Endpoints) Tokens(ctx context.Context, endpoint string, now time.Time) ([]Token, error) {
	rows, err := x.q.EndpointTokens(ctx, db.EndpointTokensParams{EndpointUID: endpoint, ExpireTime: micros(now)})
	if err != nil {
		return nil, sqldb.Fault(err)
	}
	out := make([]Token, 0, len(rows))
	for _, row := range rows {
		plain, err := x.key.Open(x.tokenAAD(endpoint, row.Hash), row.Entry)
		if err != nil {
			return nil, err
		}
		var entry tokenEntry
		if err := json.Unmarshal(plain, &entry); err != nil || len(row.Hash) != 32 || entry.Expires != row.ExpireTime {
			return nil, errDamaged("a stored token cannot be read")
		}
		t := Token{Principal: entry.Principal, Expires: instant(entry.Expires)}
		copy(t.Hash[:], row.Hash)
		out = append(out, t)
	}
	return out, nil
}

// DropTokens removes every token of an endpoint.
func (x Endpoints) DropTokens(ctx context.Context, endpoint string) error {
	return sqldb.Fault(x.q.DeleteEndpointTokens(ctx, endpoint))
}

// SweepTokens removes tokens that have expired, of all workspaces.
func (s *Store) SweepTokens(ctx context.Context, now time.Time) (n int64, err error) {
	err = s.db.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		n, err = db.New(tx).DeleteExpiredTokens(ctx, micros(now))
		return sqldb.Fault(err)
	})
	return n, err
}
