package identity

import (
	"context"

	"github.com/redoubt-ml/redoubt/pkg/envelope"
)

// box seals identity's records under its own seal. It asks the keyring for each use, as the keyring wants it.
type box struct{ ring *envelope.Keyring }

// openBox makes sure that there is a key, so that none is made inside a transaction later.
func openBox(ctx context.Context, ring *envelope.Keyring) (*box, error) {
	b := &box{ring}
	_, err := b.key(ctx)
	return b, err
}

func (b *box) key(ctx context.Context) (*envelope.Key, error) {
	return b.ring.Key(ctx, envelope.ServiceOwner)
}

func aad(kind, id string) envelope.AAD {
	return envelope.AAD{Owner: envelope.ServiceOwner, Kind: kind, ID: id}
}

// Seal implements store.Box.
func (b *box) Seal(ctx context.Context, kind, id string, plain []byte) ([]byte, error) {
	k, err := b.key(ctx)
	if err != nil {
		return nil, err
	}
	return k.Seal(aad(kind, id), plain)
}

// Open implements store.Box.
func (b *box) Open(ctx context.Context, kind, id string, sealed []byte) ([]byte, error) {
	k, err := b.key(ctx)
	if err != nil {
		return nil, err
	}
	return k.Open(aad(kind, id), sealed)
}

// MAC implements store.Box.
func (b *box) MAC(ctx context.Context, kind, parent, text string) ([]byte, error) {
	k, err := b.key(ctx)
	if err != nil {
		return nil, err
	}
	return k.MAC(kind, parent, text), nil
}

func (b *box) sealPage(ctx context.Context, query string, cursor []byte) (string, error) {
	k, err := b.key(ctx)
	if err != nil {
		return "", err
	}
	return k.SealPage(query, cursor), nil
}

func (b *box) openPage(ctx context.Context, query, token string) ([]byte, error) {
	k, err := b.key(ctx)
	if err != nil {
		return nil, err
	}
	return k.OpenPage(query, token)
}
