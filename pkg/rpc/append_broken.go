//go:build redoubt_break_audit

package rpc

import (
	"context"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/redoubt-ml/redoubt/pkg/audit"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
)

// append is broken on purpose: the record is written a little later, in a transaction of its own. With this build tag test/fault must fail.
func (c *Call) append(ctx context.Context, _ *sqldb.Tx, ev *audit.Event) (audited bool, err error) {
	recorder, whole := c.m.chain.cfg.Recorder, proto.CloneOf(ev)
	go func() {
		time.Sleep(10 * time.Millisecond) // so that it shows soon
		_ = recorder.Record(context.WithoutCancel(ctx), whole)
	}()
	return true, nil
}
