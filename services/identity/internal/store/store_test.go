package store

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/seal"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/pkg/sqldb/sqldbtest"
)

var start = time.UnixMicro(1_790_000_000_123_456).UTC()

// sealed is a Box under a seal file.
type sealed struct{ ring *envelope.Keyring }

func (b sealed) key(ctx context.Context) (*envelope.Key, error) {
	return b.ring.Key(ctx, envelope.ServiceOwner)
}

func (b sealed) Seal(ctx context.Context, kind, id string, plain []byte) ([]byte, error) {
	k, err := b.key(ctx)
	if err != nil {
		return nil, err
	}
	return k.Seal(envelope.AAD{Owner: envelope.ServiceOwner, Kind: kind, ID: id}, plain)
}

func (b sealed) Open(ctx context.Context, kind, id string, c []byte) ([]byte, error) {
	k, err := b.key(ctx)
	if err != nil {
		return nil, err
	}
	return k.Open(envelope.AAD{Owner: envelope.ServiceOwner, Kind: kind, ID: id}, c)
}

func (b sealed) MAC(ctx context.Context, kind, parent, text string) ([]byte, error) {
	k, err := b.key(ctx)
	if err != nil {
		return nil, err
	}
	return k.MAC(kind, parent, text), nil
}

func newStore(t testing.TB, db *sqldb.DB) *Store {
	t.Helper()
	s, err := seal.OpenFile(filepath.Join(t.TempDir(), "seal.key"), true)
	if err != nil {
		t.Fatal(err)
	}
	ring, err := envelope.New(envelope.Config{Source: envelope.SealSource(s, "identity"), DB: db})
	if err != nil {
		t.Fatal(err)
	}
	b := sealed{ring}
	if _, err := b.key(t.Context()); err != nil {
		t.Fatal(err)
	}
	return New(b)
}

// each runs fn on every engine.
func each(t *testing.T, fn func(t *testing.T, s *Store, db *sqldb.DB)) {
	sqldbtest.Run(t, []sqldb.MigrationSet{Migrations(), envelope.Migrations()}, func(t *testing.T, db *sqldb.DB) {
		fn(t, newStore(t, db), db)
	})
}

func write(t testing.TB, db *sqldb.DB, fn func(ctx context.Context, tx *sqldb.Tx) error) {
	t.Helper()
	if err := db.Write(t.Context(), fn); err != nil {
		t.Fatal(err)
	}
}

func insert(t testing.TB, s *Store, db *sqldb.DB, kind identityv1.PrincipalType, id string) Principal {
	t.Helper()
	p := Principal{UID: "x_" + id, Kind: kind, ID: id, DisplayName: "The " + id, CreateTime: start, Version: 1}
	write(t, db, func(ctx context.Context, tx *sqldb.Tx) error { return s.InsertPrincipal(ctx, tx, p) })
	return p
}

func TestPrincipals(t *testing.T) {
	each(t, func(t *testing.T, s *Store, db *sqldb.DB) {
		ctx := t.Context()
		want := insert(t, s, db, User, "alice")
		got, ok, err := s.Principal(ctx, db.Reader(), want.UID)
		if err != nil || !ok || got != want {
			t.Fatalf("by uid: %+v, %v, %v", got, ok, err)
		}
		if got, ok, err := s.Find(ctx, db.Reader(), User, "alice"); err != nil || !ok || got != want {
			t.Errorf("by name: %+v, %v, %v", got, ok, err)
		}
		for name, find := range map[string]func() (Principal, bool, error){
			"another name":      func() (Principal, bool, error) { return s.Find(ctx, db.Reader(), User, "bob") },
			"another kind":      func() (Principal, bool, error) { return s.Find(ctx, db.Reader(), Group, "alice") },
			"another uid":       func() (Principal, bool, error) { return s.Principal(ctx, db.Reader(), "x_bob") },
			"no workspace":      func() (Principal, bool, error) { return s.ManagedIdentityOf(ctx, db.Reader(), "") },
			"another workspace": func() (Principal, bool, error) { return s.ManagedIdentityOf(ctx, db.Reader(), "ws_1") },
		} {
			if _, ok, err := find(); ok || err != nil {
				t.Errorf("%s: %v, %v", name, ok, err)
			}
		}
		for _, id := range []string{"alice", "a1ice", "al-ice"} { // a1ice reads as alice
			p := Principal{UID: "x_2", Kind: User, ID: id, CreateTime: start}
			err := db.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error { return s.InsertPrincipal(ctx, tx, p) })
			if !fault.Is(err, codes.AlreadyExists) {
				t.Errorf("%s beside alice: %v", id, err)
			}
		}
		write(t, db, func(ctx context.Context, tx *sqldb.Tx) error {
			return s.InsertPrincipal(ctx, tx, Principal{UID: "grp_1", Kind: Group, ID: "alice", CreateTime: start})
		})
	})
}

func TestListGoesOnAfterTheCursor(t *testing.T) {
	each(t, func(t *testing.T, s *Store, db *sqldb.DB) {
		var want []string
		write(t, db, func(ctx context.Context, tx *sqldb.Tx) error {
			for i := range 25 {
				// Several of one moment: the uid decides.
				p := Principal{UID: fmt.Sprintf("x_%02d", i), Kind: User, ID: fmt.Sprint("user-", string(rune('a'+i))), CreateTime: start.Add(time.Duration(i/4) * time.Second)}
				want = append(want, p.UID)
				if err := s.InsertPrincipal(ctx, tx, p); err != nil {
					return err
				}
			}
			return nil
		})
		insert(t, s, db, Group, "group")
		var got []string
		var at Cursor
		for {
			page, err := s.List(t.Context(), db.Reader(), User, at, 3)
			if err != nil {
				t.Fatal(err)
			}
			if len(page) == 0 {
				break
			}
			for _, p := range page {
				got = append(got, p.UID)
			}
			at = Cursor{page[len(page)-1].CreateTime, page[len(page)-1].UID}
		}
		if !slices.Equal(got, want) {
			t.Errorf("listed %v", got)
		}
	})
}

func TestRowsThatWereMovedDoNotOpen(t *testing.T) { // D2
	each(t, func(t *testing.T, s *Store, db *sqldb.DB) {
		ctx := t.Context()
		alice, bob := insert(t, s, db, User, "alice"), insert(t, s, db, User, "bob")
		key, err := authn.GenerateKey()
		if err != nil {
			t.Fatal(err)
		}
		kid := authn.Thumbprint(&key.PublicKey)
		write(t, db, func(ctx context.Context, tx *sqldb.Tx) error {
			if err := s.InsertSigningKey(ctx, tx, SigningKey{KeyID: kid, Key: key, Publish: start, SignFrom: start}); err != nil {
				return err
			}
			if err := s.SetPassword(ctx, tx, alice.UID, "$hash of alice", start); err != nil {
				return err
			}
			return s.SetPassword(ctx, tx, bob.UID, "$hash of bob", start)
		})
		if keys, err := s.SigningKeys(ctx, db.Reader()); err != nil || len(keys) != 1 || !keys[0].Key.Equal(key) {
			t.Fatalf("signing keys: %v, %v", keys, err)
		}
		for _, c := range []struct {
			name, change string
			read         func() error
		}{
			{"another's password", "UPDATE passwords SET hash = (SELECT hash FROM passwords WHERE uid = 'x_bob') WHERE uid = 'x_alice'", func() error {
				_, _, err := s.Password(ctx, db.Reader(), alice.UID)
				return err
			}},
			{"another's record", "UPDATE principals SET record = (SELECT record FROM principals WHERE uid = 'x_bob') WHERE uid = 'x_alice'", func() error {
				_, _, err := s.Principal(ctx, db.Reader(), alice.UID)
				return err
			}},
			{"a key of tokens among those of JWT-SVIDs", "UPDATE signing_keys SET purpose = 'jwt-svid'", func() error {
				_, err := s.SigningKeys(ctx, db.Reader())
				return err
			}},
			{"a key under another id", "UPDATE signing_keys SET kid = 'other', purpose = ''", func() error {
				_, err := s.SigningKeys(ctx, db.Reader())
				return err
			}},
		} {
			write(t, db, func(ctx context.Context, tx *sqldb.Tx) error {
				_, err := tx.ExecContext(ctx, c.change)
				return err
			})
			if err := c.read(); !fault.Is(err, codes.DataLoss) {
				t.Errorf("%s: %v", c.name, err)
			}
		}
	})
}

func TestNothingReadableIsStored(t *testing.T) { // D2
	conf := sqldbtest.SQLite(t, Migrations(), envelope.Migrations())
	db := sqldbtest.OpenConfig(t, conf)
	s := newStore(t, db)
	secret := redact.FromString("rdt_canarysecretcanarysecretcanary")
	p := Principal{UID: "x_1", Kind: User, ID: "canaryname", DisplayName: "Canary Display", CreateTime: start}
	write(t, db, func(ctx context.Context, tx *sqldb.Tx) error {
		if err := s.InsertPrincipal(ctx, tx, p); err != nil {
			return err
		}
		if err := s.SetPassword(ctx, tx, p.UID, "$argon2id$canaryhash", start); err != nil {
			return err
		}
		if err := s.InsertClientSecret(ctx, tx, ClientSecret{ID: "sec_1", UID: p.UID, ExpireTime: start}, secret, start); err != nil {
			return err
		}
		j := Join{Kind: JoinAgent, Agent: "agt_1", Run: "run_1", Workspace: "ws_1", Submitter: p.UID, Actions: []string{"canary/actions/read runs/canaryrun"}}
		return s.InsertJoin(ctx, tx, secret, j, start, start.Add(time.Hour))
	})
	for _, suffix := range []string{"", "-wal"} {
		content, err := os.ReadFile(conf.Path + suffix)
		if err != nil {
			t.Fatal(err)
		}
		if at := bytes.Index(bytes.ToLower(content), []byte("canary")); at >= 0 {
			t.Errorf("db%s holds %q", suffix, content[max(0, at-20):at+20])
		}
	}
}

func TestNesting(t *testing.T) {
	chain := func(n int, prefix string) nesting {
		out := nesting{}
		for i := range n - 1 {
			out[fmt.Sprint(prefix, i)] = []string{fmt.Sprint(prefix, i+1)}
		}
		return out
	}
	merge := func(a, b nesting) nesting {
		for k, v := range b {
			a[k] = v
		}
		return a
	}
	diamond := nesting{}
	for i := range 6 { // 2^6 paths
		diamond[fmt.Sprint("a", i)] = []string{fmt.Sprint("b", i), fmt.Sprint("c", i)}
		diamond[fmt.Sprint("b", i)] = []string{fmt.Sprint("a", i+1)}
		diamond[fmt.Sprint("c", i)] = []string{fmt.Sprint("a", i+1)}
	}
	for _, c := range []struct {
		name          string
		n             nesting
		group, member string
		ok            bool
	}{
		{"two", nesting{}, "a", "b", true},
		{"itself", nesting{}, "a", "a", false},
		{"each other", nesting{"a": {"b"}}, "b", "a", false},
		{"a long circle", chain(5, "g"), "g4", "g0", false},
		{"eight deep", chain(7, "g"), "top", "g0", true},
		{"nine deep, on top", chain(8, "g"), "top", "g0", false},
		{"nine deep, below", chain(8, "g"), "g7", "leaf", false},
		{"nine deep, between", merge(chain(4, "g"), chain(5, "h")), "g3", "h0", false},
		{"eight deep, between", merge(chain(4, "g"), chain(4, "h")), "g3", "h0", true},
		{"many paths", diamond, "a6", "x", false},
		{"beside", chain(8, "g"), "a", "b", true},
	} {
		if err := c.n.admit(c.group, c.member); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestMembersAndTheSecurityStream(t *testing.T) {
	each(t, func(t *testing.T, s *Store, db *sqldb.DB) {
		ctx := t.Context()
		outer, inner := insert(t, s, db, Group, "outer"), insert(t, s, db, Group, "inner")
		alice := insert(t, s, db, User, "alice")
		add := func(group, member Principal, want bool) {
			t.Helper()
			write(t, db, func(ctx context.Context, tx *sqldb.Tx) error {
				changed, err := s.AddMember(ctx, tx, group.UID, member)
				if changed != want {
					t.Errorf("%s in %s: changed is %v", member.ID, group.ID, changed)
				}
				if err != nil || !changed {
					return err
				}
				return s.Change(ctx, tx, start, nil, []string{group.UID})
			})
		}
		add(outer, inner, true)
		add(inner, alice, true)
		add(inner, alice, false)
		err := db.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
			_, err := s.AddMember(ctx, tx, inner.UID, outer)
			return err
		})
		if !fault.Is(err, codes.FailedPrecondition) {
			t.Errorf("a circle: %v", err)
		}
		write(t, db, func(ctx context.Context, tx *sqldb.Tx) error {
			groups, err := s.DeletePrincipal(ctx, tx, alice.UID)
			if !slices.Equal(groups, []string{inner.UID}) {
				t.Errorf("alice was in %v", groups)
			}
			if err != nil {
				return err
			}
			return s.Change(ctx, tx, start, []*identityv1.Revocation{{Subject: alice.UID, IssuedUntil: timestamppb.New(start), ExpireTime: timestamppb.New(start.Add(time.Hour))}}, groups)
		})
		// A change that is undone has no number.
		_ = db.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
			_ = s.Change(ctx, tx, start, []*identityv1.Revocation{{Sid: "ses_1"}}, nil)
			return fault.Aborted("on purpose")
		})

		read := func(fn func(ctx context.Context, tx *sqldb.Tx) error) {
			t.Helper()
			if err := db.Read(ctx, fn); err != nil {
				t.Fatal(err)
			}
		}
		read(func(ctx context.Context, tx *sqldb.Tx) error {
			got, ok, err := s.Changes(ctx, tx, 0)
			if !ok || len(got) != 3 {
				t.Fatalf("changes: %v, %v", got, ok)
			}
			for i, m := range got {
				if m.GetSeq() != uint64(i+1) {
					t.Errorf("change %d has number %d", i, m.GetSeq())
				}
			}
			last := got[2]
			if len(last.GetRevocations()) != 1 || len(last.GetGroups()) != 1 || len(last.GetGroups()[0].GetMemberUids()) != 0 {
				t.Errorf("the removal reads %v", last)
			}
			return err
		})
		read(func(ctx context.Context, tx *sqldb.Tx) error {
			full, err := s.FullState(ctx, tx, start)
			if len(full) != 1 || full[0].GetSeq() != 3 || !full[0].GetReset_() || !full[0].GetComplete() ||
				len(full[0].GetRevocations()) != 1 || len(full[0].GetGroups()) != 1 || full[0].GetGroups()[0].GetGroupUid() != outer.UID {
				t.Errorf("full state: %v", full)
			}
			return err
		})
		for name, c := range map[string]struct {
			seq uint64
			ok  bool
			n   int
		}{"at the head": {3, true, 0}, "behind": {1, true, 2}, "ahead": {9, false, 0}} {
			read(func(ctx context.Context, tx *sqldb.Tx) error {
				got, ok, err := s.Changes(ctx, tx, c.seq)
				if ok != c.ok || len(got) != c.n {
					t.Errorf("%s: %v, %v", name, got, ok)
				}
				return err
			})
		}
		write(t, db, func(ctx context.Context, tx *sqldb.Tx) error { return s.Purge(ctx, tx, start.Add(2*time.Hour)) })
		read(func(ctx context.Context, tx *sqldb.Tx) error {
			if _, ok, err := s.Changes(ctx, tx, 1); ok || err != nil {
				t.Errorf("after the purge: %v, %v", ok, err)
			}
			full, err := s.FullState(ctx, tx, start.Add(2*time.Hour))
			if len(full) != 1 || len(full[0].GetRevocations()) != 0 || full[0].GetSeq() != 3 {
				t.Errorf("full state after the purge: %v", full)
			}
			return err
		})
	})
}

func TestFullStateIsCutIntoMessages(t *testing.T) {
	each(t, func(t *testing.T, s *Store, db *sqldb.DB) {
		const n = 1700
		write(t, db, func(ctx context.Context, tx *sqldb.Tx) error {
			for i := range n {
				if err := s.Change(ctx, tx, start, []*identityv1.Revocation{{Jti: fmt.Sprint("tok_", i), ExpireTime: timestamppb.New(start.Add(time.Hour))}}, nil); err != nil {
					return err
				}
			}
			return nil
		})
		err := db.Read(t.Context(), func(ctx context.Context, tx *sqldb.Tx) error {
			full, err := s.FullState(ctx, tx, start)
			if err != nil {
				return err
			}
			sum := 0
			for i, m := range full {
				sum += len(m.GetRevocations())
				if m.GetReset_() != (i == 0) || m.GetComplete() != (i == len(full)-1) || m.GetSeq() != n || len(m.GetRevocations()) > perMessage {
					t.Errorf("message %d: reset %v complete %v seq %d with %d", i, m.GetReset_(), m.GetComplete(), m.GetSeq(), len(m.GetRevocations()))
				}
			}
			if sum != n || len(full) < 3 {
				t.Errorf("%d revocations in %d messages", sum, len(full))
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}

func TestRevocationsOnlyWiden(t *testing.T) {
	each(t, func(t *testing.T, s *Store, db *sqldb.DB) {
		for _, until := range []time.Duration{time.Minute, 0} {
			write(t, db, func(ctx context.Context, tx *sqldb.Tx) error {
				return s.Change(ctx, tx, start, []*identityv1.Revocation{{
					Subject: "x_1", IssuedUntil: timestamppb.New(start.Add(until)), ExpireTime: timestamppb.New(start.Add(until + time.Hour)),
				}}, nil)
			})
		}
		if got, err := s.IssuedUntil(t.Context(), db.Reader(), "x_1"); err != nil || !got.Equal(start.Add(time.Minute)) {
			t.Errorf("issued until %v, %v", got, err)
		}
		if got, err := s.IssuedUntil(t.Context(), db.Reader(), "x_2"); err != nil || !got.IsZero() {
			t.Errorf("of another: %v, %v", got, err)
		}
	})
}

func TestSessions(t *testing.T) {
	each(t, func(t *testing.T, s *Store, db *sqldb.DB) {
		alice := insert(t, s, db, User, "alice")
		write(t, db, func(ctx context.Context, tx *sqldb.Tx) error {
			for i, end := range []time.Duration{time.Hour, -time.Second, time.Hour} {
				if err := s.InsertSession(ctx, tx, fmt.Sprint("ses_", i), alice.UID, Auth{Time: start, ACR: "a", AMR: []string{"b", "c"}}, start, start.Add(end)); err != nil {
					return err
				}
			}
			if err := s.DeleteSession(ctx, tx, "ses_2"); err != nil {
				return err
			}
			sids, err := s.EndSessions(ctx, tx, alice.UID, start)
			if strings.Join(sids, " ") != "ses_0" {
				t.Errorf("ended %v", sids)
			}
			return err
		})
	})
}
