//go:build !redoubt_break_fence

package workspace

import (
	"context"

	"github.com/redoubt-ml/redoubt/services/workspace/internal/store"
)

// give is grant for what is given: it works everywhere when the call returns. With the build tag redoubt_break_fence it may not, to show that the
// checks on whole installations notice.
func (s *Service) give(ctx context.Context, fn func(ctx context.Context, t *store.Tx) error) error {
	return s.grant(ctx, fn)
}
