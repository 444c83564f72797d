package authn

import (
	"errors"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// cause is a reason for the log. It is a constant text: nothing that a stranger sent is repeated.
type cause string

func (c cause) Error() string { return string(c) }

func invalid(why error) error {
	return fault.Wrap(why, codes.Unauthenticated, faultv1.Reason_TOKEN_INVALID,
		"the access token is not valid here: sign in again for a new one")
}

func badProof(why error) error {
	return fault.Wrap(why, codes.Unauthenticated, faultv1.Reason_TOKEN_PROOF_INVALID,
		"the proof of possession is not valid for this request: make a new one with the key that the token is bound to, and check the clock")
}

func missing() error {
	return fault.New(codes.Unauthenticated, faultv1.Reason_TOKEN_MISSING,
		"this call needs an access token: sign in and send it in the authorization header")
}

func tooLarge(limit int) error {
	return fault.New(codes.Unauthenticated, faultv1.Reason_TOKEN_TOO_LARGE, "the access token is longer than %d bytes", limit)
}

func expired() error {
	return fault.New(codes.Unauthenticated, faultv1.Reason_TOKEN_EXPIRED, "the access token has expired: refresh it or sign in again")
}

func wrongAudience() error {
	return fault.New(codes.Unauthenticated, faultv1.Reason_TOKEN_AUDIENCE,
		"the access token was made for another audience: ask for one for this service")
}

func revoked() error {
	return fault.New(codes.Unauthenticated, faultv1.Reason_TOKEN_REVOKED, "the access token was revoked: sign in again")
}

func stale(why error) error {
	return fault.Wrap(why, codes.Unavailable, faultv1.Reason_AUTHZ_STATE_STALE,
		"this instance cannot tell which tokens are revoked right now: try again")
}

func noKeys(why error) error {
	return fault.Wrap(why, codes.Unavailable, faultv1.Reason_SERVICE_UNAVAILABLE,
		"this instance cannot reach the signing keys right now: try again")
}

func noProofMemory(why error) error {
	return fault.Wrap(why, codes.Unavailable, faultv1.Reason_SERVICE_UNAVAILABLE,
		"this instance cannot tell right now whether the proof of possession was used at another one: try again with a new proof")
}

func replayFull() error {
	return fault.New(codes.ResourceExhausted, faultv1.Reason_LIMIT_EXCEEDED,
		"too many proofs of possession at once: try again in a moment")
}

// known is the refusal of a token that the issuer has signed, all the same.
type known struct {
	error
	claims *Claims
}

func (k *known) Unwrap() error { return k.error }

// BearerOf says for whom a token was made that Verify has refused with err: one of the issuer's, but over, revoked or for another audience. It
// is nil where the token proves nothing. For the record alone: nothing is allowed by it.
func BearerOf(err error) *Claims {
	var k *known
	if errors.As(err, &k) {
		return k.claims
	}
	return nil
}
