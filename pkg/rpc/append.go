//go:build !redoubt_break_audit

package rpc

import (
	"context"

	"github.com/redoubt-ml/redoubt/pkg/audit"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
)

// append writes the record of a change in its transaction.
func (c *Call) append(ctx context.Context, tx *sqldb.Tx, ev *audit.Event) (audited bool, err error) {
	err = c.m.chain.cfg.Recorder.Append(ctx, tx, ev)
	return err == nil, err
}
