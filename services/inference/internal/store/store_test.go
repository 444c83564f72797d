package store

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	sealpkg "github.com/redoubt-ml/redoubt/pkg/seal"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/pkg/sqldb/sqldbtest"
)

type lab struct {
	*Store
	t   *testing.T
	ws  string
	now time.Time
}

// run runs fn on each engine.
func run(t *testing.T, fn func(t *testing.T, l *lab)) {
	sqldbtest.Run(t, []sqldb.MigrationSet{envelope.Migrations(), Migrations()}, func(t *testing.T, db *sqldb.DB) {
		sl, err := sealpkg.OpenFile(filepath.Join(t.TempDir(), "seal.key"), true)
		must(t, err)
		keys, err := envelope.New(envelope.Config{Source: envelope.SealSource(sl, "inference"), DB: db})
		must(t, err)
		fn(t, &lab{Store: New(db, keys), t: t, ws: resource.NewUID("ws"), now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)})
	})
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func want(t testing.TB, name string, err error, code codes.Code, reason faultv1.Reason) {
	t.Helper()
	if fault.Code(err) != code || reason != 0 && fault.ReasonOf(err) != reason {
		t.Errorf("%s: got %v, want %v %v", name, err, code, reason)
	}
}

func nothing(context.Context, *sqldb.Tx) error { return nil }

func (l *lab) exec(text string, args ...any) {
	l.t.Helper()
	must(l.t, l.db.Write(l.t.Context(), func(ctx context.Context, tx *sqldb.Tx) error {
		_, err := tx.ExecContext(ctx, text, args...)
		return err
	}))
}

func (l *lab) count(table string) (n int) {
	l.t.Helper()
	must(l.t, l.db.Reader().QueryRowContext(l.t.Context(), "SELECT COUNT(*) FROM "+table).Scan(&n))
	return n
}

func (l *lab) newModel(id string) *Model {
	return &Model{UID: resource.NewUID("mod"), Workspace: l.ws, ID: id, Body: &inferencev1.Model{Description: "d", Tags: map[string]string{"k": "v"}}, Created: l.now, CreatedBy: "usr_1"}
}

func (l *lab) model(id string) *Model {
	l.t.Helper()
	m := l.newModel(id)
	must(l.t, l.InsertModel(l.t.Context(), m, nothing))
	return m
}

// newVersion is a version to be, whose place is noted.
func (l *lab) newVersion(model string) NewVersion {
	l.t.Helper()
	uid := resource.NewUID("mver")
	must(l.t, l.BeginVersion(l.t.Context(), Leftover{Version: uid, Workspace: l.ws, Folder: l.ws + "/" + uid}, l.now))
	return NewVersion{
		Version: Version{UID: uid, Workspace: l.ws, Body: &inferencev1.ModelVersion{Description: "d"}, Created: l.now, CreatedBy: "usr_1"}, Into: model,
		Sign: func(m *Model, v *Version) ([]byte, error) {
			v.Body.Digest = []byte{1, 2}
			return fmt.Appendf(nil, "%s %s %d", m.UID, v.UID, v.Number), nil
		},
	}
}

func recorded(context.Context, *sqldb.Tx, *Model, *Version) error { return nil }

func (l *lab) version(model string) *Version {
	l.t.Helper()
	_, v, _, err := l.AddVersion(l.t.Context(), l.newVersion(model), recorded)
	must(l.t, err)
	return v
}

func TestModels(t *testing.T) {
	run(t, func(t *testing.T, l *lab) {
		ctx := t.Context()
		m := l.model("m")
		got, err := l.Model(ctx, l.ws, "m")
		must(t, err)
		if got.UID != m.UID || got.ID != "m" || got.Body.GetDescription() != "d" || got.Body.GetTags()["k"] != "v" || got.Revision != 1 || got.Latest != 0 || !got.Created.Equal(l.now) || !got.Updated.Equal(l.now) || got.CreatedBy != "usr_1" {
			t.Errorf("%+v", got)
		}
		want(t, "the same id", l.InsertModel(ctx, l.newModel("m"), nothing), codes.AlreadyExists, 0)
		_, err = l.Model(ctx, resource.NewUID("ws"), "m")
		want(t, "another workspace", err, codes.NotFound, 0)
		_, err = l.Model(ctx, l.ws, "M")
		want(t, "in capitals", err, codes.NotFound, 0)

		later := l.now.Add(time.Hour)
		rename := func(id string) (*Model, error) {
			return l.ChangeModel(ctx, l.ws, m.UID, later, func(_ context.Context, _ *Change, m *Model) error {
				m.ID = id
				m.Body.Aliases = map[string]int64{"a": 1}
				return nil
			}, nothing)
		}
		l.model("taken")
		_, err = rename("taken")
		want(t, "a taken id", err, codes.AlreadyExists, 0)
		got, err = rename("n")
		must(t, err)
		read, err := l.Model(ctx, l.ws, "n")
		must(t, err)
		for _, g := range []*Model{got, read} {
			if g.ID != "n" || g.Revision != 2 || !g.Updated.Equal(later) || !g.Created.Equal(l.now) || !maps.Equal(g.Body.GetAliases(), map[string]int64{"a": 1}) {
				t.Errorf("%+v", g)
			}
		}
		_, err = l.Model(ctx, l.ws, "m")
		want(t, "the old id", err, codes.NotFound, 0)
		refused := fault.Aborted("no")
		_, err = l.ChangeModel(ctx, l.ws, m.UID, later, func(_ context.Context, _ *Change, m *Model) error { m.ID = "x"; return refused }, nothing)
		want(t, "a change that fails", err, codes.Aborted, 0)
		_, err = l.ChangeModel(ctx, l.ws, m.UID, later, func(_ context.Context, _ *Change, m *Model) error { m.ID = "x"; return nil }, func(context.Context, *sqldb.Tx) error { return refused })
		want(t, "a record that fails", err, codes.Aborted, 0)
		if read, err = l.Model(ctx, l.ws, "n"); err != nil || read.Revision != 2 {
			t.Errorf("what failed changed it: %+v %v", read, err)
		}
		_, err = l.ChangeModel(ctx, resource.NewUID("ws"), m.UID, later, func(context.Context, *Change, *Model) error { return nil }, nothing)
		want(t, "as another workspace's", err, codes.DataLoss, faultv1.Reason_DATA_DAMAGED)
	})
}

// TestModelsNewestFirst has models of one instant among others.
func TestModelsNewestFirst(t *testing.T) {
	run(t, func(t *testing.T, l *lab) {
		var all []string
		for i := range 7 {
			if i%3 == 0 {
				l.now = l.now.Add(time.Second)
			}
			all = append(all, l.model(fmt.Sprint(i)).UID)
		}
		var got []string
		var cur Cursor
		for last := time.Unix(1<<40, 0); ; {
			page, err := l.ListModels(t.Context(), l.ws, cur, 2)
			must(t, err)
			if len(page) == 0 {
				break
			}
			for _, m := range page {
				if m.Created.After(last) {
					t.Errorf("%v comes after %v", m.Created, last)
				}
				last = m.Created
				got = append(got, m.UID)
				cur = Cursor{Time: m.Created.UnixMicro(), UID: m.UID}
			}
		}
		slices.Sort(all)
		slices.Sort(got)
		if !slices.Equal(got, all) {
			t.Errorf("%d of %d came, or one twice", len(got), len(all))
		}
	})
}

func TestVersions(t *testing.T) {
	run(t, func(t *testing.T, l *lab) {
		ctx := t.Context()
		in := l.newVersion("m")
		_, _, _, err := l.AddVersion(ctx, in, recorded)
		want(t, "no such model", err, codes.NotFound, 0)
		in.Create = l.newModel("m")
		_, _, _, err = l.AddVersion(ctx, in, func(context.Context, *sqldb.Tx, *Model, *Version) error { return fault.Unavailable("no record") })
		want(t, "a record that fails", err, codes.Unavailable, 0)
		again := l.newVersion("m")
		m, v, added, err := l.AddVersion(ctx, in, recorded)
		must(t, err)
		if !added || v.Number != 1 || v.Model != m.UID || m.Latest != 1 || m.UID != in.Create.UID {
			t.Errorf("%+v", v)
		}
		again.Create = l.newModel("m")
		if m, v, _, err = l.AddVersion(ctx, again, recorded); err != nil || v.Number != 2 || m.UID != in.Create.UID {
			t.Errorf("create_model of what is there: %+v %v", v, err)
		}
		_, _, _, err = l.AddVersion(ctx, again, recorded)
		want(t, "whose place was taken away", err, codes.FailedPrecondition, 0)
		if m, err = l.Model(ctx, l.ws, "m"); err != nil || m.Latest != 2 || l.count("model_leftovers") != 0 {
			t.Errorf("%+v %v, %d left over", m, err, l.count("model_leftovers"))
		}
		got, err := l.Version(ctx, m, 1)
		must(t, err)
		signed, err := l.Manifest(ctx, got)
		must(t, err)
		if got.UID != in.UID || got.Revision != 1 || string(got.Body.GetDigest()) != "\x01\x02" || got.Body.GetDescription() != "d" || string(signed) != fmt.Sprintf("%s %s 1", m.UID, in.UID) {
			t.Errorf("%+v, %q", got, signed)
		}
		_, err = l.Version(ctx, m, 3)
		want(t, "no such number", err, codes.NotFound, 0)
		changed, err := l.ChangeVersion(ctx, m, 1, l.now.Add(time.Hour), func(v *Version) error { v.Body.Description = "e"; return nil }, nothing)
		must(t, err)
		if got, err = l.Version(ctx, m, 1); err != nil || got.Revision != 2 || changed.Revision != 2 || got.Body.GetDescription() != "e" || !got.Updated.Equal(l.now.Add(time.Hour)) {
			t.Errorf("%+v %v", got, err)
		}
		l.version("m")
		var numbers []int64
		for below := int64(0); ; {
			page, err := l.ListVersions(ctx, m, below, 2)
			must(t, err)
			if len(page) == 0 {
				break
			}
			for _, v := range page {
				numbers = append(numbers, v.Number)
				below = v.Number
			}
		}
		if !slices.Equal(numbers, []int64{3, 2, 1}) {
			t.Errorf("%v", numbers)
		}
	})
}

// TestNumbersAreGivenOnce registers side by side, and deletes in between.
func TestNumbersAreGivenOnce(t *testing.T) {
	run(t, func(t *testing.T, l *lab) {
		m := l.model("m")
		const each = 8
		var in []NewVersion
		for range each {
			in = append(in, l.newVersion("m"))
		}
		var mu sync.Mutex
		var numbers []int64
		var wg sync.WaitGroup
		for _, v := range in {
			wg.Go(func() {
				_, v, _, err := l.AddVersion(t.Context(), v, recorded)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				defer mu.Unlock()
				numbers = append(numbers, v.Number)
			})
		}
		wg.Wait()
		slices.Sort(numbers)
		if !slices.Equal(numbers, []int64{1, 2, 3, 4, 5, 6, 7, 8}) {
			t.Errorf("%v", numbers)
		}
		last, err := l.Version(t.Context(), m, each)
		must(t, err)
		_, err = l.DeleteVersion(t.Context(), last, "f", l.now, nothing)
		must(t, err)
		if v := l.version("m"); v.Number != each+1 {
			t.Errorf("the number %d was given again", v.Number)
		}
	})
}

func TestRequests(t *testing.T) {
	run(t, func(t *testing.T, l *lab) {
		ctx := t.Context()
		l.model("m")
		in := l.newVersion("m")
		in.Request = Request{ID: "r", Principal: "usr_1", Content: "c"}
		_, first, _, err := l.AddVersion(ctx, in, recorded)
		must(t, err)
		ask := func(r Request, now time.Time) (*Version, bool, error) {
			_, v, found, err := l.Earlier(ctx, l.ws, r, now)
			return v, found, err
		}
		if v, found, err := ask(in.Request, l.now.Add(23*time.Hour)); err != nil || !found || v.UID != first.UID {
			t.Errorf("%+v %v %v", v, found, err)
		}
		for name, r := range map[string]Request{"none": {}, "another id": {ID: "s", Principal: "usr_1", Content: "c"}, "another's": {ID: "r", Principal: "usr_2", Content: "c"}} {
			if _, found, err := ask(r, l.now); err != nil || found {
				t.Errorf("%s: %v %v", name, found, err)
			}
		}
		_, _, err = ask(Request{ID: "r", Principal: "usr_1", Content: "other"}, l.now)
		want(t, "other content", err, codes.AlreadyExists, faultv1.Reason_REQUEST_ID_REUSED)
		if _, found, err := ask(in.Request, l.now.Add(25*time.Hour)); err != nil || found {
			t.Errorf("a day later: %v %v", found, err)
		}
		// The same request, when its content has been stored a second time already.
		second := l.newVersion("m")
		second.Request = in.Request
		_, v, added, err := l.AddVersion(ctx, second, recorded)
		must(t, err)
		left, err := l.IsLeftover(ctx, second.UID)
		must(t, err)
		if added || v.UID != first.UID || !left {
			t.Errorf("%+v, added %v, left over %v", v, added, left)
		}
	})
}

func TestUses(t *testing.T) {
	run(t, func(t *testing.T, l *lab) {
		ctx := t.Context()
		m := l.model("m")
		v, free := l.version("m"), l.version("m")
		hold := func(version, user string) error {
			return l.db.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error { return l.Hold(ctx, tx, version, user, "name of "+user) })
		}
		want(t, "what is not there", hold("mver_x", "dep_1"), codes.NotFound, 0)
		for _, u := range []string{"dep_2", "dep_1", "dep_1"} {
			must(t, hold(v.UID, u))
		}
		who, err := l.Users(ctx, m)
		must(t, err)
		if !slices.Equal(who, []User{{v.UID, "dep_1", "name of dep_1"}, {v.UID, "dep_2", "name of dep_2"}}) {
			t.Errorf("%v", who)
		}
		used := func(name string, err error) {
			t.Helper()
			want(t, name, err, codes.FailedPrecondition, faultv1.Reason_RESOURCE_IN_USE)
			if err == nil || !strings.Contains(err.Error(), "name of dep_1") {
				t.Errorf("%s: %v", name, err)
			}
		}
		folder := func(_ *envelope.Key, version string) string { return "f/" + version }
		_, err = l.DeleteVersion(ctx, v, "f", l.now, nothing)
		used("version", err)
		_, err = l.DeleteModel(ctx, l.ws, m.UID, l.now, folder, nothing)
		used("model", err)
		_, err = l.DeleteVersion(ctx, free, "f", l.now, nothing)
		must(t, err)
		for _, u := range []string{"dep_1", "dep_2", "dep_2"} {
			must(t, l.db.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error { return Release(ctx, tx, u) }))
		}
		left, err := l.DeleteModel(ctx, l.ws, m.UID, l.now, folder, nothing)
		must(t, err)
		if !slices.Equal(left, []Leftover{{v.UID, l.ws, "f/" + v.UID}}) {
			t.Errorf("%v", left)
		}
		list, err := l.Leftovers(ctx)
		must(t, err)
		if len(list) != 2 || !slices.Contains(list, left[0]) || l.count("models")+l.count("model_versions") != 0 {
			t.Errorf("%v", list)
		}
		must(t, l.ForgetLeftover(ctx, v.UID))
		must(t, l.ForgetLeftover(ctx, v.UID))
		if l.count("model_leftovers") != 1 {
			t.Errorf("%d left over", l.count("model_leftovers"))
		}
	})
}

// TestAnAliasGoesWithItsVersion is the part of the model that DeleteVersion changes.
func TestAnAliasGoesWithItsVersion(t *testing.T) {
	run(t, func(t *testing.T, l *lab) {
		ctx := t.Context()
		m := l.model("m")
		v := l.version("m")
		l.version("m")
		_, err := l.ChangeModel(ctx, l.ws, m.UID, l.now, func(ctx context.Context, c *Change, m *Model) error {
			for n, there := range map[int64]bool{1: true, 2: true, 3: false} {
				if got, err := c.HasVersion(ctx, m, n); err != nil || got != there {
					t.Errorf("has version %d: %v %v", n, got, err)
				}
			}
			m.Body.Aliases = map[string]int64{"a": 1, "b": 2, "c": 1}
			return nil
		}, nothing)
		must(t, err)
		_, err = l.DeleteVersion(ctx, v, "f", l.now, nothing)
		must(t, err)
		m, err = l.Model(ctx, l.ws, "m")
		must(t, err)
		if !maps.Equal(m.Body.GetAliases(), map[string]int64{"b": 2}) || m.Revision != 3 {
			t.Errorf("%+v", m)
		}
		_, err = l.DeleteVersion(ctx, v, "f", l.now, nothing)
		want(t, "again", err, codes.NotFound, 0)
	})
}

// TestARowIsBoundToItsPlace moves rows and parts of them.
func TestARowIsBoundToItsPlace(t *testing.T) {
	for name, text := range map[string]string{
		"model names":   "UPDATE models SET name = (SELECT o.name FROM models o WHERE o.uid <> models.uid)",
		"model bodies":  "UPDATE models SET body = (SELECT o.body FROM models o WHERE o.uid <> models.uid)",
		"revision":      "UPDATE models SET revision = revision + 1",
		"version body":  "UPDATE model_versions SET body = manifest",
		"version model": "UPDATE model_versions SET number = number + 10, model_uid = (SELECT o.uid FROM models o WHERE o.uid <> model_versions.model_uid)",
		"number":        "UPDATE model_versions SET number = number + 1",
		"manifest":      "UPDATE model_versions SET manifest = body",
		"user":          "UPDATE model_uses SET user_uid = 'dep_2'",
	} {
		t.Run(name, func(t *testing.T) {
			run(t, func(t *testing.T, l *lab) {
				ctx := t.Context()
				l.model("m")
				l.model("n")
				v := l.version("m")
				must(t, l.db.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error { return l.Hold(ctx, tx, v.UID, "dep_1", "d") }))
				look := func() error {
					m, err := l.Model(ctx, l.ws, "m")
					if err != nil {
						return err
					}
					n, err := l.Model(ctx, l.ws, "n")
					if err != nil {
						return err
					}
					for _, m := range []*Model{m, n} {
						list, err := l.ListVersions(ctx, m, 0, 10)
						if err != nil {
							return err
						}
						for _, v := range list {
							if name != "manifest" {
								break // the rows alone must show it
							}
							if _, err := l.Manifest(ctx, v); err != nil {
								return err
							}
						}
					}
					_, err = l.Users(ctx, m)
					return err
				}
				must(t, look())
				l.exec(text)
				want(t, "after the change", look(), codes.DataLoss, faultv1.Reason_DATA_DAMAGED)
			})
		})
	}
}

func TestPurgeModels(t *testing.T) {
	run(t, func(t *testing.T, l *lab) {
		ctx := t.Context()
		l.model("m")
		v := l.version("m")
		must(t, l.db.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error { return l.Hold(ctx, tx, v.UID, "dep_1", "d") }))
		open := l.newVersion("m")
		ours := l.ws
		l.ws = resource.NewUID("ws")
		l.model("m")
		l.version("m")
		for range 2 {
			must(t, l.db.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error { return PurgeModels(ctx, tx, ours, l.now) }))
		}
		_, _, _, err := l.AddVersion(ctx, open, recorded)
		want(t, "what was under way", err, codes.FailedPrecondition, 0)
		left, err := l.Leftovers(ctx)
		must(t, err)
		if l.count("models") != 1 || l.count("model_versions") != 1 || l.count("model_uses") != 0 || !slices.Equal(left, []Leftover{{ours, ours, ours}}) {
			t.Errorf("%d models, %d versions, %d uses, %v", l.count("models"), l.count("model_versions"), l.count("model_uses"), left)
		}
	})
}

// TestOneFirstSigningKey makes it side by side.
func TestOneFirstSigningKey(t *testing.T) {
	run(t, func(t *testing.T, l *lab) {
		var mu sync.Mutex
		var stored []string
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Go(func() {
				ok, err := l.FirstSigningKey(t.Context(), SigningKey{ID: fmt.Sprint(i), Sealed: []byte{byte(i)}, Created: l.now})
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					t.Error(err)
				}
				if ok {
					stored = append(stored, fmt.Sprint(i))
				}
			})
		}
		wg.Wait()
		list, err := l.SigningKeys(t.Context())
		must(t, err)
		if len(stored) != 1 || len(list) != 1 || list[0].ID != stored[0] || !list[0].Created.Equal(l.now) {
			t.Errorf("%v, %v", stored, list)
		}
	})
}
