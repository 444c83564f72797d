package store_test

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"testing"

	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/pkg/sqldb/sqldbtest"
	"github.com/redoubt-ml/redoubt/services/telemetry/internal/store/db"
)

// explained asks how a query would be answered, and answers nothing.
type explained struct {
	sqldb.DBTX
	dialect sqldb.Dialect
	plan    string
}

var errExplained = errors.New("explained")

func (e *explained) QueryContext(ctx context.Context, query string, args ...any) (_ *sql.Rows, err error) {
	explain := "EXPLAIN QUERY PLAN "
	if e.dialect == sqldb.Postgres {
		explain = "EXPLAIN "
	}
	rows, err := e.DBTX.QueryContext(ctx, explain+query, args...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	columns, err := rows.Columns()
	if err != nil {
		return nil, err
	}
	e.plan = ""
	for rows.Next() {
		line := make([]any, len(columns))
		for i := range line {
			line[i] = new(any)
		}
		if err := rows.Scan(line...); err != nil {
			return nil, err
		}
		text, _ := (*line[len(line)-1].(*any)).(string)
		e.plan += text + "\n"
	}
	return nil, errors.Join(rows.Err(), errExplained)
}

// Every selection of the log uses its index, though the indexes hold only the rows that can be asked for by them.
func TestEverySelectionHasItsIndex(t *testing.T) {
	sqldbtest.Run(t, sets(), func(t *testing.T, database *sqldb.DB) {
		err := database.Read(t.Context(), func(ctx context.Context, tx *sqldb.Tx) error {
			if database.Dialect() == sqldb.Postgres { // which would read the few rows of a test whole, and may not see what is empty
				if _, err := tx.ExecContext(ctx, "SET LOCAL enable_seqscan = off"); err != nil {
					return err
				}
				if _, err := tx.ExecContext(ctx, "SET LOCAL plan_cache_mode = force_generic_plan"); err != nil {
					return err
				}
			}
			e := &explained{DBTX: tx, dialect: database.Dialect()}
			q := db.New(e)
			for index, ask := range map[string]func() error{
				"activity_subscription": func() error {
					_, err := q.ListBySubscription(ctx, db.ListBySubscriptionParams{Scope: "sub_1", Before: 9, Stop: 9, AnyResult: 1, Most: 3})
					return err
				},
				"activity_group": func() error {
					_, err := q.ListByGroup(ctx, db.ListByGroupParams{Scope: "rgp_1", Before: 9, Stop: 9, AnyResult: 1, Most: 3})
					return err
				},
				"activity_workspace": func() error {
					_, err := q.ListByWorkspace(ctx, db.ListByWorkspaceParams{Scope: "wsp_1", Before: 9, Stop: 9, AnyResult: 1, Most: 3})
					return err
				},
				"activity_resource": func() error {
					_, err := q.ListByResource(ctx, db.ListByResourceParams{Scope: "wsp_1", ResourceMac: []byte{1}, Before: 9, Stop: 9, AnyResult: 1, Most: 3})
					return err
				},
				"activity_request": func() error {
					_, err := q.ListByRequest(ctx, db.ListByRequestParams{RequestMac: []byte{1}, Before: 9, Stop: 9, AnyResult: 1, AnySubscription: 1, AnyGroup: 1, AnyWorkspace: 1, AnyResource: 1, Most: 3})
					return err
				},
			} {
				if err := ask(); !errors.Is(err, errExplained) {
					t.Fatalf("%s: %v", index, err)
				}
				if !strings.Contains(e.plan, index+" ") {
					t.Errorf("%s is not used:\n%s", index, e.plan)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}
