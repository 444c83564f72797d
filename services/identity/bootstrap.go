package identity

import (
	"context"

	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/pkg/audit"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/identity/internal/store"
)

// BootstrapRequest says who the first administrator is.
type BootstrapRequest struct {
	// User is the id, as in users/{user}.
	User string
	// Password is not looked at if there is a first administrator already.
	Password redact.Secret
}

// Principal names an account.
type Principal struct {
	UID  string // usr_…
	Name string // users/{user}
}

// Bootstrap makes the first administrator of the installation. There is one, ever: repeating it, with whatever request, gives the one
// that was made, and created is false. What he may do is workspace's to say.
//
// Errors: INVALID_ARGUMENT for an id or a password that is not allowed.
func (s *Service) Bootstrap(ctx context.Context, req BootstrapRequest) (p Principal, created bool, err error) {
	first := func(ctx context.Context, q sqldb.DBTX) (Principal, bool, error) {
		uid, err := s.store.FirstAdmin(ctx, q)
		if err != nil || uid == "" {
			return Principal{}, false, err
		}
		p, ok, err := s.store.Principal(ctx, q, uid)
		return Principal{UID: p.UID, Name: p.Name()}, ok, err
	}
	if p, ok, err := first(ctx, s.cfg.DB.Reader()); ok || err != nil {
		return p, false, err
	}
	if err := resource.ValidIDField("user", req.User); err != nil {
		return Principal{}, false, err
	}
	phc, err := s.newPassword(ctx, req.User, req.Password)
	if err != nil {
		return Principal{}, false, err
	}
	now := s.cfg.Now()
	user := store.Principal{UID: resource.NewUID("usr"), Kind: store.User, ID: req.User, DisplayName: req.User, CreateTime: now}
	err = s.cfg.DB.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		var ok bool
		if p, ok, err = first(ctx, tx); ok || err != nil {
			return err
		}
		if err := s.store.InsertPrincipal(ctx, tx, user); err != nil {
			return err
		}
		if err := s.store.SetPassword(ctx, tx, user.UID, phc, now); err != nil {
			return err
		}
		if err := s.store.SetFirstAdmin(ctx, tx, user.UID); err != nil {
			return err
		}
		p, created = Principal{UID: user.UID, Name: user.Name()}, true
		return s.recordOwn(ctx, tx, "first administrator", "user", p.Name, "uid", p.UID)
	})
	if err != nil {
		return Principal{}, false, err
	}
	return p, created, nil
}

// recordOwn writes the record of something that the operator of the process did, outside any call.
func (s *Service) recordOwn(ctx context.Context, tx *sqldb.Tx, what string, details ...string) error {
	ev := &audit.Event{
		Method: "/" + Name + "/" + what, Scope: resource.Root, Peer: s.td.IDString() + "/service/" + Name,
		Result: telemetryv1.ActivityEvent_RESULT_SUCCEEDED, Code: "OK", Count: 1, Details: make(map[string]string, len(details)/2),
	}
	for i := 0; i+1 < len(details); i += 2 {
		ev.Details[details[i]] = details[i+1]
	}
	return s.cfg.Outbox.Append(ctx, tx, ev)
}

// principalTypes are the names of kinds in tokens. A group has none: nobody signs in as one.
var principalTypes = map[any]string{
	store.User: authn.User, store.ServicePrincipal: authn.ServicePrincipal, store.ManagedIdentity: authn.ManagedIdentity,
}
