package installation

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/redoubt-ml/redoubt/internal/node"
)

// resetFactors removes a user's factors in the state of identity, which does not run. It says what comes next.
func (a verbs) resetFactors(ctx context.Context, config, data, user string) (string, error) {
	cfg := node.Config{Service: node.Service{Name: "identity", Instance: "a"}}
	if config != "" {
		var err error
		if cfg, err = a.serviceConfig("identity", config, settingFlags{}); err != nil {
			return "", err
		}
	} else {
		data, err := filepath.Abs(data)
		if err != nil {
			return "", err
		}
		cfg.Service.Dir = filepath.Join(data, "identity")
	}
	r, err := node.ResetFactors(ctx, cfg, data, user, a.options())
	if err != nil {
		return "", err
	}
	next := "he signs in by his password alone, and should enrol a factor at once: redoubt login, then redoubt factor add"
	switch {
	case r.Disabled:
		next = "he is disabled, and signs in when somebody has enabled him"
	case r.Enrols:
		next = "he signs in by his password, and enrols a factor as he does: redoubt login"
	}
	return fmt.Sprintf("%s has no factor any more (removed: %d), and his sessions are over (%d); the record goes to the activity log when identity runs.\nStart it again. Then %s", r.User, r.Removed, r.Ended, next), nil
}
