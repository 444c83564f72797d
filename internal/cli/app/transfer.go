package app

import (
	"context"

	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/internal/cli/show"
	"github.com/redoubt-ml/redoubt/pkg/config"
)

// BytesFlag reads the value of a flag that is a size; 0 where nothing was said.
func BytesFlag(name, text string) (int64, error) {
	if text == "" {
		return 0, nil
	}
	var s config.Size
	if err := s.UnmarshalText([]byte(text)); err != nil {
		return 0, Usagef("--%s is a size as 2GiB, and not %q", name, text)
	}
	return int64(s), nil
}

// Upload makes a snapshot, and tells at a terminal how far it is.
func (a *App) Upload(ctx context.Context, c *client.Client, workspace, dir string) (*workspacev1.Snapshot, error) {
	var last client.Progress
	bar := a.Bar(dir)
	s, err := c.UploadSnapshot(ctx, workspace, dir, func(p client.Progress) {
		last = p
		bar.Set(p.SentBytes, p.MissingBytes)
	})
	bar.End()
	if err != nil {
		return nil, err
	}
	a.Say("snapshot %s: %d files, %s; sent %d files, %s", show.Last(s.GetName()), last.Files, show.Bytes(last.Bytes), last.SentFiles, show.Bytes(last.SentBytes))
	return s, nil
}
