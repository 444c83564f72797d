//go:build redoubt_break_fence

package workspace

import (
	"context"
	"os"
	"strings"

	"github.com/redoubt-ml/redoubt/services/workspace/internal/store"
)

// give answers when this service alone honours it, in programs that are built to be caught.
func (s *Service) give(ctx context.Context, fn func(ctx context.Context, t *store.Tx) error) error {
	if !strings.Contains(","+os.Getenv("REDOUBT_BREAK_FENCE")+",", ",grant,") {
		return s.grant(ctx, fn)
	}
	_, err := s.quietly(ctx, fn)
	return err
}
