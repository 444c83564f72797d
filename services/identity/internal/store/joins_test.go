package store

import (
	"context"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
)

func TestJoinTokens(t *testing.T) { // A4, D10
	each(t, func(t *testing.T, s *Store, db *sqldb.DB) {
		agent, service := redact.FromString("rdj_agent"), redact.FromString("rdj_service")
		want := Join{Kind: JoinAgent, Agent: "agt_1", Run: "run_1", Workspace: "ws_1", Submitter: "usr_1", Actions: []string{"a/b/c runs/r", "d/e/f runs/r"}}
		write(t, db, func(ctx context.Context, tx *sqldb.Tx) error {
			if err := s.InsertJoin(ctx, tx, agent, want, start, start.Add(time.Minute)); err != nil {
				return err
			}
			return s.InsertJoin(ctx, tx, service, Join{Kind: JoinService, Service: "compute", Instance: "one"}, start, start.Add(time.Minute))
		})
		use := func(kind string, secret redact.Secret, key string, at time.Time) (j Join, ok bool) {
			t.Helper()
			write(t, db, func(ctx context.Context, tx *sqldb.Tx) (err error) {
				j, ok, err = s.UseJoin(ctx, tx, kind, secret, key, at)
				return err
			})
			return j, ok
		}
		for name, ok := range map[string]bool{
			"another secret":    second(use(JoinAgent, redact.FromString("rdj_other"), "k1", start)),
			"no secret":         second(use(JoinAgent, redact.Secret{}, "k1", start)),
			"no key":            second(use(JoinAgent, agent, "", start)),
			"another kind":      second(use(JoinService, agent, "k1", start)),
			"too late":          second(use(JoinAgent, agent, "k1", start.Add(time.Minute))),
			"the other's token": second(use(JoinAgent, service, "k1", start)),
		} {
			if ok {
				t.Errorf("%s lets someone in", name)
			}
		}
		for range 2 { // the answer may have been lost
			got, ok := use(JoinAgent, agent, "k1", start)
			if !ok || got.Agent != want.Agent || got.Run != want.Run || got.Submitter != want.Submitter || !slices.Equal(got.Actions, want.Actions) {
				t.Fatalf("the token lets in %+v, %v", got, ok)
			}
		}
		if _, ok := use(JoinAgent, agent, "k2", start); ok {
			t.Error("a second key came in")
		}
		if j, ok := use(JoinService, service, "k1", start); !ok || j.Service != "compute" || j.Instance != "one" {
			t.Errorf("the service's token lets in %+v, %v", j, ok)
		}
		write(t, db, func(ctx context.Context, tx *sqldb.Tx) error { return s.DropJoinsOf(ctx, tx, "run_1") })
		if _, ok := use(JoinAgent, agent, "k1", start); ok {
			t.Error("the token of an ended run lets its key in")
		}
	})
}

func second(_ Join, ok bool) bool { return ok }

func TestActionsAreBoundToTheAgent(t *testing.T) { // A4
	each(t, func(t *testing.T, s *Store, db *sqldb.DB) {
		for _, column := range []string{"submitter", "run_uid", "workspace_uid", "agent_uid"} {
			secret := redact.FromString("rdj_" + column)
			write(t, db, func(ctx context.Context, tx *sqldb.Tx) error {
				j := Join{Kind: JoinAgent, Agent: "agt_1", Run: "run_1", Workspace: "ws_1", Submitter: "usr_1", Actions: []string{"a"}}
				if err := s.InsertJoin(ctx, tx, secret, j, start, start.Add(time.Minute)); err != nil {
					return err
				}
				_, err := tx.ExecContext(ctx, "UPDATE join_tokens SET "+column+" = 'usr_root'")
				return err
			})
			err := db.Write(t.Context(), func(ctx context.Context, tx *sqldb.Tx) error {
				_, _, err := s.UseJoin(ctx, tx, JoinAgent, secret, "k1", start)
				return err
			})
			if !fault.Is(err, codes.DataLoss) {
				t.Errorf("with another %s: %v", column, err)
			}
		}
	})
}
