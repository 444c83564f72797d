package store

import (
	"bytes"
	"context"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/seal"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/pkg/sqldb/sqldbtest"
)

type lab struct {
	*Store
	t   *testing.T
	db  *sqldb.DB
	now time.Time
}

// run runs fn on each engine.
func run(t *testing.T, fn func(t *testing.T, l *lab)) {
	sqldbtest.Run(t, []sqldb.MigrationSet{envelope.Migrations(), Migrations()}, func(t *testing.T, db *sqldb.DB) {
		sl, err := seal.OpenFile(filepath.Join(t.TempDir(), "seal.key"), true)
		if err != nil {
			t.Fatal(err)
		}
		own, err := envelope.New(envelope.Config{Source: envelope.SealSource(sl, "workspace"), DB: db})
		if err != nil {
			t.Fatal(err)
		}
		l := &lab{t: t, db: db, now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
		l.Store = New(db, own, func() time.Time { return l.now })
		fn(t, l)
	})
}

func (l *lab) change(fn func(ctx context.Context, t *Tx) error) uint64 {
	l.t.Helper()
	seq, err := l.Change(l.t.Context(), fn)
	if err != nil {
		l.t.Fatal(err)
	}
	return seq
}

func (l *lab) read(fn func(ctx context.Context, t *Tx) error) {
	l.t.Helper()
	if err := l.Read(l.t.Context(), fn); err != nil {
		l.t.Fatal(err)
	}
}

// add makes a node.
func (l *lab) add(kind Kind, parent, id string, state State) Scope {
	l.t.Helper()
	sc := Scope{UID: resource.NewUID("x"), Kind: kind, ParentUID: parent, ID: id, State: state, CreatedBy: "usr_1"}
	body, err := l.SealBody(l.t.Context(), kind, sc.UID, Body{DisplayName: "display-canary " + id, Tags: map[string]string{"k": "tag-canary"}})
	if err != nil {
		l.t.Fatal(err)
	}
	l.change(func(ctx context.Context, t *Tx) error {
		ok, err := t.AddScope(ctx, sc, body)
		if err == nil && !ok {
			l.t.Errorf("%s is there", id)
		}
		return err
	})
	l.now = l.now.Add(time.Second)
	return sc
}

// The changes, applied to the first full state, give the last full state; every number comes once.
func TestChangesLeadToTheState(t *testing.T) {
	run(t, func(t *testing.T, l *lab) {
		state := func() (scopes map[string]string, assignments map[string]bool, seq uint64) {
			scopes, assignments = map[string]string{}, map[string]bool{}
			l.read(func(ctx context.Context, tx *Tx) error {
				msgs, err := tx.FullState(ctx, nil)
				if err != nil {
					return err
				}
				if !msgs[0].GetReset_() || !msgs[len(msgs)-1].GetComplete() {
					t.Error("not a full state")
				}
				for _, m := range msgs {
					apply(m, scopes, assignments)
					seq = m.GetSeq()
				}
				return nil
			})
			return scopes, assignments, seq
		}
		scopes, assignments, seq := state()
		s := l.add(Subscription, "", "s1", Active)
		g := l.add(ResourceGroup, s.UID, "g1", Active)
		w := l.add(Workspace, g.UID, "w1", Creating)
		var extra Assignment
		l.change(func(ctx context.Context, tx *Tx) error {
			if ok, err := tx.Activate(ctx, w, "mid_1"); err != nil || !ok {
				t.Fatal(ok, err)
			}
			for _, p := range []string{"mid_1", "usr_1"} {
				if _, ok, err := tx.Assign(ctx, w.UID, "roleDefinitions/owner", p, ""); err != nil || !ok {
					t.Fatal(ok, err)
				}
			}
			if _, ok, err := tx.Assign(ctx, w.UID, "roleDefinitions/owner", "usr_1", ""); err != nil || ok {
				t.Fatal("twice", ok, err)
			}
			var err error
			extra, _, err = tx.Assign(ctx, g.UID, "roleDefinitions/reader", "mid_1", "usr_1")
			return err
		})
		l.change(func(ctx context.Context, tx *Tx) error {
			if ok, err := tx.Move(ctx, w, Creating, Deleting, "usr_1"); err != nil || ok {
				t.Fatal("moved from where it is not", err)
			}
			_, err := tx.Move(ctx, w, Active, Deleting, "usr_1")
			return err
		})
		l.add(ResourceGroup, s.UID, "g2", Active)
		l.change(func(ctx context.Context, tx *Tx) error {
			now, err := tx.GetScope(ctx, w.UID)
			if err != nil || now.RemovedBy != "usr_1" || now.ManagedIdentity != "mid_1" {
				t.Fatalf("%+v %v", now, err)
			}
			return tx.RemoveScope(ctx, now)
		})
		l.read(func(ctx context.Context, tx *Tx) error {
			msgs, ok, err := tx.Changes(ctx, seq)
			if err != nil || !ok {
				t.Fatal(ok, err)
			}
			for _, m := range msgs {
				if seq++; m.GetSeq() != seq {
					t.Errorf("%d follows %d", m.GetSeq(), seq-1)
				}
				apply(m, scopes, assignments)
			}
			return nil
		})
		wantScopes, wantAssignments, wantSeq := state()
		if len(scopes) != len(wantScopes) || len(scopes) != 3 || len(assignments) != len(wantAssignments) || len(assignments) != 0 || seq != wantSeq {
			t.Errorf("%v %v %d, and not %v %v %d", scopes, assignments, seq, wantScopes, wantAssignments, wantSeq)
		}
		if assignments[extra.UID] {
			t.Error("the managed identity kept a role elsewhere")
		}
		// Changes that are gone ask for a new start.
		l.now = l.now.Add(time.Hour)
		if err := l.Prune(t.Context(), l.db.Write); err != nil {
			t.Fatal(err)
		}
		l.read(func(ctx context.Context, tx *Tx) error {
			if _, ok, err := tx.Changes(ctx, 0); ok || err != nil {
				t.Error("pruned changes are there", err)
			}
			if msgs, ok, err := tx.Changes(ctx, seq); !ok || len(msgs) != 0 || err != nil {
				t.Error("nothing new is not nothing", err)
			}
			return nil
		})
	})
}

func apply(m *workspacev1.WatchAuthorizationResponse, scopes map[string]string, assignments map[string]bool) {
	for _, uid := range m.GetRemoved() {
		delete(scopes, uid)
		delete(assignments, uid)
	}
	for _, s := range m.GetScopes() {
		scopes[s.GetUid()] = s.GetName()
	}
	for _, a := range m.GetAssignments() {
		assignments[a.GetUid()] = true
	}
}

func TestNamesAreHadOnce(t *testing.T) {
	run(t, func(t *testing.T, l *lab) {
		s, s2 := l.add(Subscription, "", "s1", Active), l.add(Subscription, "", "s2", Active)
		g := l.add(ResourceGroup, s.UID, "g1", Active)
		l.add(ResourceGroup, s2.UID, "g1", Active)
		l.change(func(ctx context.Context, tx *Tx) error {
			ok, err := tx.AddScope(ctx, Scope{UID: resource.NewUID("x"), Kind: ResourceGroup, ParentUID: s.UID, ID: "g1", State: Active}, []byte{1})
			if ok || err != nil {
				t.Error("twice", err)
			}
			return err
		})
		l.read(func(ctx context.Context, tx *Tx) error {
			found, err := tx.FindScope(ctx, ResourceGroup, s.UID, "g1")
			if err != nil || found.UID != g.UID || found.ID != "g1" {
				t.Errorf("%+v %v", found, err)
			}
			if path, err := tx.Path(ctx, found); err != nil || path != "subscriptions/s1/resourceGroups/g1" {
				t.Errorf("%q %v", path, err)
			}
			if _, err := tx.FindScope(ctx, ResourceGroup, s.UID, "g2"); !fault.Is(err, codes.NotFound) {
				t.Errorf("%v", err)
			}
			first, err := tx.List(ctx, ResourceGroup, nil, Cursor{}, 1)
			if err != nil || len(first) != 1 || first[0].UID != g.UID {
				t.Errorf("%v %v", first, err)
			}
			rest, err := tx.List(ctx, ResourceGroup, nil, first[0].Cursor(), 10)
			if err != nil || len(rest) != 1 || rest[0].ParentUID != s2.UID {
				t.Errorf("%v %v", rest, err)
			}
			return nil
		})
	})
}

// D2: what a tenant wrote stands nowhere in the rows; a row moved to another place does not open.
func TestRowsAreSealed(t *testing.T) {
	run(t, func(t *testing.T, l *lab) {
		s := l.add(Subscription, "", "name-canary", Active)
		other := l.add(Subscription, "", "other", Active)
		for _, q := range []string{"SELECT name, body FROM scopes", "SELECT message, message FROM authorization_changes"} {
			rows, err := l.db.Reader().QueryContext(t.Context(), q)
			if err != nil {
				t.Fatal(err)
			}
			n := 0
			for rows.Next() {
				var a, b []byte
				if err := rows.Scan(&a, &b); err != nil {
					t.Fatal(err)
				}
				n++
				if bytes.Contains(append(a, b...), []byte("canary")) {
					t.Errorf("plain text from %s", q)
				}
			}
			if err := rows.Close(); err != nil || n == 0 {
				t.Errorf("%d rows, %v", n, err)
			}
		}
		err := l.db.Write(t.Context(), func(ctx context.Context, tx *sqldb.Tx) error {
			_, err := tx.ExecContext(ctx, "UPDATE scopes SET name = (SELECT name FROM scopes WHERE uid = $1), body = (SELECT body FROM scopes WHERE uid = $1) WHERE uid = $2", s.UID, other.UID)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Read(t.Context(), func(ctx context.Context, tx *Tx) error {
			_, err := tx.GetScope(ctx, other.UID)
			return err
		}); !fault.Is(err, codes.DataLoss) {
			t.Errorf("%v", err)
		}
	})
}

func TestBlobsLive(t *testing.T) {
	run(t, func(t *testing.T, l *lab) {
		s := l.add(Subscription, "", "s", Active)
		g := l.add(ResourceGroup, s.UID, "g", Active)
		w := l.add(Workspace, g.UID, "w", Active)
		ctx := t.Context()
		for _, name := range []string{"begun", "unused", "used"} {
			if _, err := l.BeginBlob(ctx, w.UID, Blob{name, 5}); err != nil {
				t.Fatal(err)
			}
			if name == "begun" {
				continue
			}
			if err := l.FinishBlob(ctx, w.UID, Blob{name, 7}); err != nil {
				t.Fatal(err)
			}
		}
		if missing, err := l.UseBlobs(ctx, w.UID, []string{"used", "begun"}); err != nil || missing != 1 {
			t.Errorf("%d %v", missing, err)
		}
		if missing, err := l.UseBlobs(ctx, w.UID, []string{"used"}); err != nil || missing != -1 {
			t.Errorf("%d %v", missing, err)
		}
		if all, err := l.Blobs(ctx, w.UID); err != nil || len(all) != 2 || all["used"] != 7 {
			t.Errorf("%v %v", all, err)
		}
		if gone, err := l.Condemn(ctx, l.db.Write, l.now.Add(-time.Hour), 10); err != nil || len(gone) != 0 {
			t.Errorf("young ones: %v %v", gone, err)
		}
		gone, err := l.Condemn(ctx, l.db.Write, l.now.Add(time.Hour), 10)
		if err != nil || len(gone) != 2 || slices.ContainsFunc(gone, func(c Condemned) bool { return c.Name == "used" }) {
			t.Fatalf("%v %v", gone, err)
		}
		if _, err := l.BeginBlob(ctx, w.UID, Blob{"unused", 5}); !fault.Is(err, codes.Aborted) {
			t.Errorf("a condemned one: %v", err)
		}
		for _, c := range gone {
			if err := l.Buried(ctx, l.db.Write, c); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := l.BeginBlob(ctx, w.UID, Blob{"unused", 5}); err != nil {
			t.Error(err)
		}
		l.change(func(ctx context.Context, tx *Tx) error {
			_, err := tx.Move(ctx, w, Active, Deleting, "")
			return err
		})
		if err := l.FinishBlob(ctx, w.UID, Blob{"unused", 5}); !fault.Is(err, codes.FailedPrecondition) || !strings.Contains(err.Error(), "removed") {
			t.Errorf("in a workspace that goes: %v", err)
		}
	})
}
