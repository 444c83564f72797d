package audit

import (
	"context"

	"github.com/redoubt-ml/redoubt/pkg/envelope"
)

// box seals the events of one service. The key is asked for at each use, so that it follows the keyring.
type box struct {
	keys    *envelope.Keyring
	service string
}

// newBox opens the service's key, so that it exists before the first transaction: a keyring may not make one inside.
func newBox(ctx context.Context, keys *envelope.Keyring, service string) (*box, error) {
	if _, err := keys.Key(ctx, service); err != nil {
		return nil, err
	}
	return &box{keys, service}, nil
}

// aad binds an event of the outbox to its number and uid.
func (b *box) aad(seq int64, uid string) envelope.AAD {
	return envelope.AAD{Owner: b.service, Kind: "outbox", ID: uid, Version: seq}
}

// burstAAD binds the event of a burst to its uid and to how many calls its row counts.
func (b *box) burstAAD(uid string, calls int64) envelope.AAD {
	return envelope.AAD{Owner: b.service, Kind: "outbox-burst", ID: uid, Version: calls}
}

func (b *box) seal(ctx context.Context, aad envelope.AAD, plain []byte) ([]byte, error) {
	key, err := b.keys.Key(ctx, b.service)
	if err != nil {
		return nil, err
	}
	return key.Seal(aad, plain)
}

func (b *box) open(ctx context.Context, aad envelope.AAD, sealed []byte) ([]byte, error) {
	key, err := b.keys.Key(ctx, b.service)
	if err != nil {
		return nil, err
	}
	return key.Open(aad, sealed)
}
