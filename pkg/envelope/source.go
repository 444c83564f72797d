package envelope

import (
	"context"
	"crypto/rand"

	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/seal"
)

// Source is where data keys come from. Both methods are called with a context that is not a caller's, so an implementation speaks for its
// service and never for whoever happened to ask first. The secrets that they return belong to the keyring, which wipes them.
type Source interface {
	// Generate makes a new data key of KeySize bytes for the owner, with its wrapped form.
	Generate(ctx context.Context, owner string) (plain redact.Secret, wrapped []byte, err error)
	// Unwrap opens a wrapped form that Generate made for the same owner, as long as the key above it may be used.
	Unwrap(ctx context.Context, owner string, wrapped []byte) (redact.Secret, error)
}

// SealSource makes the data keys of a service's own records: random, and wrapped by the service's seal, bound to service and owner.
func SealSource(s *seal.Seal, service string) Source { return sealSource{s, service} }

type sealSource struct {
	seal    *seal.Seal
	service string
}

func (s sealSource) aad(owner string) []byte {
	return appendParts(nil, "redoubt envelope data key v1", s.service, owner)
}

func (s sealSource) Generate(ctx context.Context, owner string) (redact.Secret, []byte, error) {
	plain := make([]byte, KeySize)
	_, _ = rand.Read(plain) // never fails (Go 1.24)
	wrapped, err := s.seal.Wrap(ctx, plain, s.aad(owner))
	if err != nil {
		return redact.Secret{}, nil, err
	}
	return redact.New(plain), wrapped, nil
}

func (s sealSource) Unwrap(ctx context.Context, owner string, wrapped []byte) (redact.Secret, error) {
	plain, err := s.seal.Unwrap(ctx, wrapped, s.aad(owner))
	if err != nil {
		return redact.Secret{}, err
	}
	return redact.New(plain), nil
}
