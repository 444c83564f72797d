package node

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/services/identity"
)

// ResetFactors removes a user's factors in identity's state, for whoever has its database and its seal. data is the folder of an installation of one process, ""
// for identity by itself. Nothing is made where there is no state, and nothing is done while a process has it.
func ResetFactors(ctx context.Context, cfg Config, data, user string, opts Options) (identity.Reset, error) {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	for _, name := range []string{"seal.id", "db.sqlite"} {
		if name == "db.sqlite" && cfg.Service.PostgresFile != "" {
			continue
		}
		if _, err := os.Stat(filepath.Join(cfg.Service.Dir, name)); err != nil {
			return identity.Reset{}, fault.FailedPrecondition("%s is not the folder of identity (%v)", cfg.Service.Dir, reason(err))
		}
	}
	if data != "" {
		unlock, err := LockFolder(data)
		if err != nil {
			return identity.Reset{}, err
		}
		defer unlock()
	}
	n := newNode(ctx, cfg, opts)
	defer n.Stop()
	st, err := n.openState(ctx, identity.Migrations())
	if err != nil {
		return identity.Reset{}, err
	}
	return identity.Offline{DB: st.db, Outbox: st.outbox, Own: st.own, Now: opts.Now}.ResetFactors(ctx, user)
}
