package sqldump

import (
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
)

// Kinds of values in packed rows.
const (
	isNull  = 0
	isInt   = 1
	isText  = 2
	isBytes = 3
)

const (
	// packSize is from when on packed rows are handed over, in bytes.
	packSize = 256 << 10
	// sqliteParams and postgresParams bound the parameters of one INSERT. SQLite's driver looks each one up among all of them; PostgreSQL
	// takes 65,535, and counts round trips.
	sqliteParams, postgresParams = 48, 8_000
	// insertBytes bounds the values of one INSERT.
	insertBytes = 4 << 20
)

// Read gives the rows of a table to emit, some at a time; packed is emit's only until it returns.
func Read(ctx context.Context, tx *sqldb.Tx, t Table, emit func(rows int, packed []byte) error) (err error) {
	r, err := tx.QueryContext(ctx, t.selection(tx.Dialect()))
	if err != nil {
		return sqldb.Fault(err)
	}
	defer func() { err = errors.Join(err, sqldb.Fault(r.Close())) }()
	values, to := make([]any, len(t.Columns)), make([]any, len(t.Columns))
	for i := range values {
		to[i] = &values[i]
	}
	var packed []byte
	n := 0
	for r.Next() {
		if err := r.Scan(to...); err != nil {
			return sqldb.Fault(err)
		}
		for i, v := range values {
			if packed, err = pack(packed, t.Columns[i], v); err != nil {
				return fault.Wrap(err, codes.DataLoss, faultv1.Reason_DATA_DAMAGED, "the column %s.%s holds a value of another type than its own", t.Name, t.Columns[i].Name)
			}
		}
		if n++; len(packed) >= packSize {
			if err := emit(n, packed); err != nil {
				return err
			}
			n, packed = 0, packed[:0]
		}
	}
	if err := r.Err(); err != nil {
		return sqldb.Fault(err)
	}
	if n == 0 {
		return nil
	}
	return emit(n, packed)
}

func pack(b []byte, c Column, v any) ([]byte, error) {
	switch v := v.(type) {
	case nil:
		return append(b, isNull), nil
	case int64:
		if c.Type == BigInt {
			return binary.AppendVarint(append(b, isInt), v), nil
		}
	case string:
		if c.Type == Text {
			return append(binary.AppendUvarint(append(b, isText), uint64(len(v))), v...), nil
		}
	case []byte:
		if c.Type == Bytea {
			return append(binary.AppendUvarint(append(b, isBytes), uint64(len(v))), v...), nil
		}
	}
	return b, fmt.Errorf("%T in a column of type %s", v, c.Type)
}

// Damaged is the error of packed rows that are not whole.
func Damaged() error {
	return fault.New(codes.DataLoss, faultv1.Reason_DATA_DAMAGED, "the rows in the backup do not fit their table")
}

// unpack reads one value, which refers to b.
func unpack(b []byte, c Column) (v any, rest []byte, err error) {
	if len(b) == 0 {
		return nil, nil, Damaged()
	}
	kind, b := b[0], b[1:]
	switch {
	case kind == isNull:
		return nil, b, nil
	case kind == isInt && c.Type == BigInt:
		i, n := binary.Varint(b)
		if n <= 0 {
			return nil, nil, Damaged()
		}
		return i, b[n:], nil
	case kind == isText && c.Type == Text, kind == isBytes && c.Type == Bytea:
		size, n := binary.Uvarint(b)
		if n <= 0 || size > uint64(len(b)-n) {
			return nil, nil, Damaged()
		}
		b = b[n:]
		if kind == isText {
			return string(b[:size]), b[size:], nil
		}
		return b[:size:size], b[size:], nil
	}
	return nil, nil, Damaged()
}

// Count checks that packed holds so many rows of the table.
func Count(t Table, rows int, packed []byte) error {
	var err error
	for range rows {
		for _, c := range t.Columns {
			if _, packed, err = unpack(packed, c); err != nil {
				return err
			}
		}
	}
	if len(packed) > 0 {
		return Damaged()
	}
	return nil
}

// Each calls f for every packed row. Values refer to packed.
func Each(t Table, rows int, packed []byte, f func(values []any) error) error {
	values := make([]any, len(t.Columns))
	var err error
	for range rows {
		for i, c := range t.Columns {
			if values[i], packed, err = unpack(packed, c); err != nil {
				return err
			}
		}
		if err := f(values); err != nil {
			return err
		}
	}
	if len(packed) > 0 {
		return Damaged()
	}
	return nil
}

// Clear removes what migrations have put into the tables, in the reverse of their order.
func Clear(ctx context.Context, tx *sqldb.Tx, tables []Table) error {
	for i := len(tables) - 1; i >= 0; i-- {
		if _, err := tx.ExecContext(ctx, "DELETE FROM "+quote(tables[i].Name)); err != nil {
			return sqldb.Fault(err)
		}
	}
	return nil
}

// Inserter puts packed rows into a table, inside one transaction.
type Inserter struct {
	tx   *sqldb.Tx
	t    Table
	most int // rows of one statement
	full *sql.Stmt
	args []any
	size int // bytes of args
}

// NewInserter makes one. It must be closed before the transaction ends.
func NewInserter(tx *sqldb.Tx, t Table) *Inserter {
	params := postgresParams
	if tx.Dialect() == sqldb.SQLite {
		params = sqliteParams
	}
	return &Inserter{tx: tx, t: t, most: max(1, params/len(t.Columns))}
}

// Insert stores the rows.
func (in *Inserter) Insert(ctx context.Context, rows int, packed []byte) error {
	if rows < 0 || len(packed) < rows*len(in.t.Columns) { // each value has a byte at least
		return Damaged()
	}
	err := Each(in.t, rows, packed, func(values []any) error {
		for _, v := range values {
			switch v := v.(type) {
			case string:
				in.size += len(v)
			case []byte:
				in.size += len(v)
			}
		}
		in.args = append(in.args, values...)
		if len(in.args) < in.most*len(in.t.Columns) && in.size < insertBytes {
			return nil
		}
		return in.flush(ctx)
	})
	if err != nil {
		return err
	}
	return in.flush(ctx) // packed is not ours any longer
}

func (in *Inserter) flush(ctx context.Context) (err error) {
	n := len(in.args) / len(in.t.Columns)
	switch {
	case n == 0:
		return nil
	case n < in.most:
		_, err = in.tx.ExecContext(ctx, in.t.insertion(n), in.args...)
	default:
		if in.full == nil {
			if in.full, err = in.tx.PrepareContext(ctx, in.t.insertion(n)); err != nil {
				return sqldb.Fault(err)
			}
		}
		_, err = in.full.ExecContext(ctx, in.args...)
	}
	clear(in.args)
	in.args, in.size = in.args[:0], 0
	return sqldb.Fault(err)
}

// Close lets the statement go.
func (in *Inserter) Close() error {
	if in.full == nil {
		return nil
	}
	return sqldb.Fault(in.full.Close())
}

// insertion is an INSERT of n rows.
func (t Table) insertion(n int) string {
	var b strings.Builder
	b.WriteString("INSERT INTO " + quote(t.Name) + " (")
	for i, c := range t.Columns {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(quote(c.Name))
	}
	b.WriteString(") VALUES ")
	param := 0
	for i := range n {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteByte('(')
		for j := range t.Columns {
			if j > 0 {
				b.WriteString(", ")
			}
			param++
			fmt.Fprintf(&b, "$%d", param)
		}
		b.WriteByte(')')
	}
	return b.String()
}
