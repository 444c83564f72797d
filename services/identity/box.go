package identity

import (
	"context"
	"encoding/base64"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
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

// A page token is the sealed place where a list goes on: who has it learns nothing of uids, and cannot make up another.
const kindPage = "page token"

func (b *box) sealPage(ctx context.Context, query string, cursor []byte) (string, error) {
	sealed, err := b.Seal(ctx, kindPage, query, cursor)
	return base64.RawURLEncoding.EncodeToString(sealed), err
}

func (b *box) openPage(ctx context.Context, query, token string) ([]byte, error) {
	sealed, err := base64.RawURLEncoding.Strict().DecodeString(token)
	if err != nil {
		return nil, badPage(err)
	}
	cursor, err := b.Open(ctx, kindPage, query, sealed)
	if fault.Is(err, codes.DataLoss) {
		return nil, badPage(err)
	}
	return cursor, err
}

func badPage(cause error) error {
	return fault.Wrap(cause, codes.InvalidArgument, faultv1.Reason_PAGE_TOKEN_INVALID, "the page token is not one of this list; start without one")
}
