package sqldump

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
)

// Types of columns, as they stand in migrations.
const (
	BigInt = "BIGINT"
	Text   = "TEXT"
	Bytea  = "BYTEA"
)

// Column of a table.
type Column struct {
	Name string
	// Type is BigInt, Text or Bytea.
	Type string
}

// Table is what is known of a table.
type Table struct {
	Name    string
	Columns []Column
	// Key are the columns of the primary key, in its order.
	Key []string

	refers []string
}

// Equal reports whether two tables hold the same rows in the same order.
func (t Table) Equal(o Table) bool {
	return t.Name == o.Name && slices.Equal(t.Columns, o.Columns) && slices.Equal(t.Key, o.Key)
}

// Tables are all tables of the store but those that keep its versions, each after those that it refers to.
func Tables(ctx context.Context, tx *sqldb.Tx) ([]Table, error) {
	read := sqliteTables
	if tx.Dialect() == sqldb.Postgres {
		read = postgresTables
	}
	all, err := read(ctx, tx)
	if err != nil {
		return nil, sqldb.Fault(err)
	}
	all = slices.DeleteFunc(all, func(t Table) bool { return strings.HasPrefix(t.Name, "goose_") || t.Name == "redoubt_restoring" })
	for _, t := range all {
		for i, c := range t.Columns {
			c.Type = strings.ToUpper(c.Type)
			if c.Type != BigInt && c.Type != Text && c.Type != Bytea {
				return nil, fault.Internal(nil, "the column %s.%s has the type %s, which a backup does not know", t.Name, c.Name, c.Type)
			}
			t.Columns[i] = c
		}
		if len(t.Key) == 0 {
			return nil, fault.Internal(nil, "the table %s has no primary key, so that its rows have no order", t.Name)
		}
	}
	return ordered(all)
}

// ordered puts tables after those that they refer to, and by name where that leaves a choice.
func ordered(all []Table) ([]Table, error) {
	slices.SortFunc(all, func(a, b Table) int { return strings.Compare(a.Name, b.Name) })
	var out []Table
	placed := make(map[string]bool, len(all))
	for len(out) < len(all) {
		before := len(out)
		for _, t := range all {
			free := !slices.ContainsFunc(t.refers, func(r string) bool { return r != t.Name && !placed[r] })
			if !placed[t.Name] && free {
				placed[t.Name] = true
				out = append(out, t)
			}
		}
		if len(out) == before {
			return nil, fault.Internal(nil, "the tables of the store refer to each other in a circle")
		}
	}
	return out, nil
}

// rows runs a query of texts.
func rows(ctx context.Context, tx *sqldb.Tx, width int, query string, args ...any) (_ [][]string, err error) {
	r, err := tx.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	var out [][]string
	for r.Next() {
		row := make([]string, width)
		to := make([]any, width)
		for i := range row {
			to[i] = &row[i]
		}
		if err := r.Scan(to...); err != nil {
			return nil, err
		}
		out = append(out, row)
	}
	return out, r.Err()
}

func sqliteTables(ctx context.Context, tx *sqldb.Tx) ([]Table, error) {
	names, err := rows(ctx, tx, 1, "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'")
	if err != nil {
		return nil, err
	}
	var out []Table
	for _, n := range names {
		t := Table{Name: n[0]}
		columns, err := rows(ctx, tx, 2, "SELECT name, type FROM pragma_table_info($1) ORDER BY cid", t.Name)
		if err != nil {
			return nil, err
		}
		for _, c := range columns {
			t.Columns = append(t.Columns, Column{c[0], c[1]})
		}
		keys, err := rows(ctx, tx, 1, "SELECT name FROM pragma_table_info($1) WHERE pk > 0 ORDER BY pk", t.Name)
		if err != nil {
			return nil, err
		}
		for _, k := range keys {
			t.Key = append(t.Key, k[0])
		}
		refers, err := rows(ctx, tx, 1, `SELECT DISTINCT "table" FROM pragma_foreign_key_list($1)`, t.Name)
		if err != nil {
			return nil, err
		}
		for _, r := range refers {
			t.refers = append(t.refers, r[0])
		}
		out = append(out, t)
	}
	return out, nil
}

func postgresTables(ctx context.Context, tx *sqldb.Tx) ([]Table, error) {
	const mine = "c.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = current_schema()) AND c.relkind IN ('r', 'p')"
	columns, err := rows(ctx, tx, 3, `SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod) FROM pg_class c
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped WHERE `+mine+` ORDER BY c.relname, a.attnum`)
	if err != nil {
		return nil, err
	}
	var out []Table
	index := make(map[string]int)
	for _, c := range columns {
		i, ok := index[c[0]]
		if !ok {
			i = len(out)
			index[c[0]] = i
			out = append(out, Table{Name: c[0]})
		}
		out[i].Columns = append(out[i].Columns, Column{c[1], c[2]})
	}
	keys, err := rows(ctx, tx, 2, `SELECT c.relname, a.attname FROM pg_class c JOIN pg_index x ON x.indrelid = c.oid AND x.indisprimary
CROSS JOIN LATERAL unnest(x.indkey::int2[]) WITH ORDINALITY AS k (num, at)
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.num WHERE `+mine+` ORDER BY c.relname, k.at`)
	if err != nil {
		return nil, err
	}
	for _, k := range keys {
		if i, ok := index[k[0]]; ok {
			out[i].Key = append(out[i].Key, k[1])
		}
	}
	refers, err := rows(ctx, tx, 2, `SELECT c.relname, o.relname FROM pg_constraint f JOIN pg_class c ON c.oid = f.conrelid
JOIN pg_class o ON o.oid = f.confrelid WHERE f.contype = 'f' AND `+mine)
	if err != nil {
		return nil, err
	}
	for _, r := range refers {
		if i, ok := index[r[0]]; ok && !slices.Contains(out[i].refers, r[1]) {
			out[i].refers = append(out[i].refers, r[1])
		}
	}
	return out, nil
}

// quote makes an identifier of a name of the catalogue.
func quote(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }

// selection reads a table in the order of its key.
func (t Table) selection(dialect sqldb.Dialect) string {
	columns := make([]string, len(t.Columns))
	text := make(map[string]bool, len(t.Columns))
	for i, c := range t.Columns {
		columns[i] = quote(c.Name)
		text[c.Name] = c.Type == Text
	}
	order := make([]string, len(t.Key))
	for i, k := range t.Key {
		order[i] = quote(k)
		if text[k] && dialect == sqldb.Postgres {
			order[i] += ` COLLATE "C"` // SQLite's order
		}
	}
	return fmt.Sprintf("SELECT %s FROM %s ORDER BY %s", strings.Join(columns, ", "), quote(t.Name), strings.Join(order, ", "))
}
