package openid

import (
	"context"
	"encoding/base64"
	"errors"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/internal/cli/settings"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
)

const (
	// renewAhead is how long before its end a token is renewed, and for one that lives less than four times that its last quarter.
	renewAhead = time.Minute
	// renewLimit bounds a renewal, which goes on when the call that began it is given up.
	renewLimit = 15 * time.Second
)

// Config of a Session. Everything is required.
type Config struct {
	Context settings.Context
	Folder  settings.Folder
	Now     func() time.Time
}

// Session is a kept session whose calls carry proofs. It implements credentials.PerRPCCredentials, and is safe for concurrent use.
type Session struct {
	cfg    Config
	prover *authn.Prover
	key    string

	mu    sync.Mutex // held while a token is renewed: one is enough for all who wait
	token settings.Token
}

var _ credentials.PerRPCCredentials = (*Session)(nil)

// NewSession makes a Session of what is kept.
func NewSession(cfg Config, t settings.Token) (*Session, error) {
	key, err := keyOf(t)
	if err != nil {
		return nil, err
	}
	prover, err := proverOf(key, cfg.Now)
	if err != nil {
		return nil, err
	}
	return &Session{cfg: cfg, prover: prover, key: t.Key, token: t}, nil
}

// Renew renews the token now if its time has come, so that a session that is over is noticed before the first call.
func (s *Session) Renew(ctx context.Context) error {
	_, err := s.current(ctx)
	return err
}

// Raise puts a token in the place of the present one, until its time to be renewed has come: one of the same session and key, that a step up gave. It is
// kept for the commands that follow, unless somebody renewed or signed in anew meanwhile.
func (s *Session) Raise(ctx context.Context, token string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.token.Value
	s.token.Value = token
	c := s.cfg.Context
	if c.Name == "" {
		return nil
	}
	return s.cfg.Folder.Exchange(ctx, c.Name, c.Server, s.cfg.Now(), func(kept settings.Token) (settings.Token, error) {
		if kept.Key == s.key && kept.Value == before {
			kept.Value = token
		}
		return kept, nil
	})
}

// keyOf is the key of a session.
func keyOf(t settings.Token) (redact.Secret, error) {
	der, err := base64.StdEncoding.DecodeString(t.Key)
	if err != nil || len(der) == 0 {
		return redact.Secret{}, fault.FailedPrecondition("the session's key cannot be used: sign in again with `redoubt login`")
	}
	return redact.New(der), nil
}

// GetRequestMetadata implements credentials.PerRPCCredentials: the token and a fresh proof, for each try of each call.
func (s *Session) GetRequestMetadata(ctx context.Context, _ ...string) (map[string]string, error) {
	token, err := s.current(ctx)
	if err != nil {
		if _, ok := status.FromError(err); !ok {
			err = status.Error(codes.Unauthenticated, clean(client.Describe(err).Message))
		}
		return nil, err
	}
	info, ok := credentials.RequestInfoFromContext(ctx)
	if !ok {
		return nil, status.Error(codes.Internal, "a call without a method")
	}
	// Services know the installation's own address, by which they are named in proofs also where they are called directly.
	proof, err := s.prover.Proof("POST", s.cfg.Context.Server+info.Method, token, "")
	if err != nil {
		return nil, status.Error(codes.Internal, "no proof could be made")
	}
	return map[string]string{"authorization": "DPoP " + token, "dpop": proof}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (*Session) RequireTransportSecurity() bool { return true }

// current is a token that is taken for a while yet.
func (s *Session) current(ctx context.Context) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.cfg.Now()
	if now.Before(s.token.Renew) {
		return s.token.Value, nil
	}
	if s.token.Refresh == "" {
		if now.Before(s.token.Expires) {
			return s.token.Value, nil
		}
		return "", denied("the session is over, and a program's is not renewed")
	}
	err := s.renew(ctx)
	switch {
	case err == nil:
		return s.token.Value, nil
	case now.Before(s.token.Expires) && (fault.Is(err, codes.Unavailable) || errors.Is(err, context.DeadlineExceeded)):
		return s.token.Value, nil // the present one is good yet; the next call asks again
	}
	return "", err
}

// renew uses the refresh token, unless another process has done so meanwhile.
func (s *Session) renew(ctx context.Context) error {
	c := s.cfg.Context
	return s.cfg.Folder.Exchange(ctx, c.Name, c.Server, s.cfg.Now(), func(kept settings.Token) (settings.Token, error) {
		switch {
		case kept == (settings.Token{}):
			return kept, denied("the session was ended meanwhile")
		case kept.Key != s.key:
			return kept, denied("somebody signed in anew meanwhile; repeat the command")
		case s.cfg.Now().Before(kept.Renew):
			s.token = kept
			return kept, nil
		}
		key, err := keyOf(kept)
		if err != nil {
			return kept, err
		}
		// What was begun is ended: an answer that nobody waits for would be a refresh token lost.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), renewLimit)
		defer cancel()
		p, err := Find(ctx, c.Client(), key, s.cfg.Now)
		if err != nil {
			return kept, err
		}
		defer p.Close()
		next, err := p.refresh(ctx, kept)
		if errors.Is(err, errOver) {
			return settings.Token{}, denied("the session is over")
		}
		if err != nil {
			return kept, err
		}
		s.token = next
		return next, nil
	})
}

// End ends a session at the installation, if it can be, and forgets it here, in any case. ended tells whether there was a session.
func End(ctx context.Context, cfg Config) (ended bool, err error) {
	c := cfg.Context
	err = cfg.Folder.Exchange(ctx, c.Name, c.Server, cfg.Now(), func(kept settings.Token) (settings.Token, error) {
		if ended = kept.Bound(); !ended {
			return kept, nil
		}
		if kept.Refresh == "" {
			return settings.Token{}, nil // whoever called us has ended what there was
		}
		key, err := keyOf(kept)
		if err != nil {
			return settings.Token{}, err
		}
		p, err := Find(ctx, c.Client(), key, cfg.Now)
		if err != nil {
			return settings.Token{}, err
		}
		defer p.Close()
		return settings.Token{}, p.Revoke(ctx, kept.Refresh)
	})
	return ended, err
}
