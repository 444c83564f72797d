package endpoints

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/inference/internal/store"
)

const (
	keyPrefix   = "rdk_"
	tokenPrefix = "rde_"

	tokenTTL    = time.Hour
	minTokenTTL = 5 * time.Minute
	maxTokenTTL = 24 * time.Hour
	// maxTokens is how many tokens of an endpoint may live at once: each is compared when one is shown.
	maxTokens = 1000
)

// newSecret is 256 bits after a prefix that says what they open.
func newSecret(prefix string) redact.Secret {
	var b [32]byte
	_, _ = rand.Read(b[:]) // crypto/rand never fails
	return redact.FromString(prefix + base64.RawURLEncoding.EncodeToString(b[:]))
}

func hash(s redact.Secret) [32]byte { return sha256.Sum256(s.Reveal()) }

// GetCredentials implements inferencev1.EndpointServiceServer.
func (h api) GetCredentials(ctx context.Context, req *inferencev1.GetCredentialsRequest) (*inferencev1.Credentials, error) {
	e, err := h.s.endpoint(ctx, rpc.From(ctx))
	if err != nil {
		return nil, err
	}
	return credentials(e), nil
}

func credentials(e *store.Endpoint) *inferencev1.Credentials {
	return &inferencev1.Credentials{PrimaryKey: e.Primary.RevealString(), SecondaryKey: e.Secondary.RevealString()}
}

// RegenerateKey implements inferencev1.EndpointServiceServer.
func (h api) RegenerateKey(ctx context.Context, req *inferencev1.RegenerateKeyRequest) (*inferencev1.Credentials, error) {
	call := rpc.From(ctx)
	var out *inferencev1.Credentials
	err := h.s.changeNamed(ctx, func(ctx context.Context, tx *sqldb.Tx, x store.Endpoints, e *store.Endpoint) error {
		switch req.GetKeyType() {
		case inferencev1.KeyType_KEY_TYPE_PRIMARY:
			e.Primary = newSecret(keyPrefix)
		case inferencev1.KeyType_KEY_TYPE_SECONDARY:
			e.Secondary = newSecret(keyPrefix)
		default:
			return fault.InvalidArgument("say which of the two keys is to be replaced").Field("key_type", "is neither primary nor secondary")
		}
		out = credentials(e)
		if err := x.Update(ctx, e, h.s.cfg.Now()); err != nil {
			return err
		}
		return call.Audit(ctx, tx, "key", req.GetKeyType().String())
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// IssueEndpointToken implements inferencev1.EndpointServiceServer.
func (h api) IssueEndpointToken(ctx context.Context, _ *inferencev1.IssueEndpointTokenRequest) (*inferencev1.EndpointToken, error) {
	call := rpc.From(ctx)
	token := newSecret(tokenPrefix)
	var begin, end time.Time
	err := h.s.changeNamed(ctx, func(ctx context.Context, tx *sqldb.Tx, x store.Endpoints, e *store.Endpoint) error {
		if e.Body.GetAuth() != inferencev1.Endpoint_AUTH_TOKEN {
			return fault.FailedPrecondition("the endpoint's authentication is %s, which takes no tokens; use that, or have an owner switch it to AUTH_TOKEN", e.Body.GetAuth())
		}
		begin = h.s.cfg.Now()
		live, err := x.Tokens(ctx, e.UID, begin)
		if err != nil {
			return err
		}
		if len(live) >= maxTokens {
			return fault.ResourceExhausted("the endpoint has %d tokens that have not expired, which is the most; use one of them until its end, or give the endpoint a shorter token_ttl", len(live))
		}
		end = begin.Add(e.Body.GetTokenTtl().AsDuration()).Truncate(time.Microsecond)
		if err := x.AddToken(ctx, e.UID, store.Token{Hash: hash(token), Principal: call.Principal, Expires: end}); err != nil {
			return err
		}
		return call.Audit(ctx, tx, "expires", end.UTC().Format(time.RFC3339))
	})
	if err != nil {
		return nil, err
	}
	return &inferencev1.EndpointToken{
		AccessToken: token.RevealString(), ExpireTime: timestamppb.New(end), RefreshAfterTime: timestamppb.New(begin.Add(end.Sub(begin) / 2)),
	}, nil
}
