package seal

import (
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"sync"

	"gocloud.dev/secrets"
	"gocloud.dev/secrets/localsecrets"
	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

const (
	keySize = 32
	// MaxPlaintext is the most, in bytes, that Wrap takes: a seal is for keys.
	MaxPlaintext = 64 << 10
	// maxWrapped bounds what Unwrap looks at.
	maxWrapped = MaxPlaintext + 1<<10
	// framed is the first byte of what the keeper encrypts; another layout will have another.
	framed = 1
)

// Seal wraps and unwraps under one key. It is safe for concurrent use.
type Seal struct {
	fingerprint string

	mu     sync.RWMutex
	key    *[keySize]byte
	keeper *secrets.Keeper // nil once closed
}

// newSeal takes the key over.
func newSeal(key *[keySize]byte) *Seal {
	return &Seal{fingerprint: fingerprint(key), key: key, keeper: localsecrets.NewKeeper(*key)}
}

// fingerprint is derived one way, with a label that nothing else uses.
func fingerprint(key *[keySize]byte) string {
	sum, err := hkdf.Key(sha256.New, key[:], nil, "redoubt seal fingerprint v1", 16)
	if err != nil {
		panic("seal: " + err.Error()) // only for more than 255 blocks
	}
	return hex.EncodeToString(sum)
}

// Fingerprint names the key: 32 hexadecimal digits that tell nothing of it. The service stores it beside what it seals.
func (s *Seal) Fingerprint() string { return s.fingerprint }

// Check compares the fingerprint that is stored beside the data, and says in words for the operator when it is another one. An empty one
// is refused too: a service that has none yet stores Fingerprint first.
func (s *Seal) Check(stored string) error {
	if subtle.ConstantTimeCompare([]byte(stored), []byte(s.fingerprint)) == 1 {
		return nil
	}
	return fault.FailedPrecondition("this data folder was sealed by another seal key (data: %.8s…, seal: %.8s…). Nothing was changed. Bring back the seal file that belongs to it",
		stored, s.fingerprint)
}

// Wrap encrypts a key, at most MaxPlaintext bytes, and binds it to aad, which is needed again to open it and is not stored.
func (s *Seal) Wrap(ctx context.Context, plaintext, aad []byte) ([]byte, error) {
	if len(plaintext) > MaxPlaintext {
		return nil, fault.InvalidArgument("a seal wraps at most %d bytes", MaxPlaintext)
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.keeper == nil {
		return nil, errClosed()
	}
	// Keepers know no additional data: its digest stands inside, under the keeper's authentication.
	digest := sha256.Sum256(aad)
	frame := make([]byte, 0, 1+len(digest)+len(plaintext))
	frame = append(append(append(frame, framed), digest[:]...), plaintext...)
	defer clear(frame)
	wrapped, err := s.keeper.Encrypt(ctx, frame)
	if err != nil {
		return nil, s.failed(ctx, err)
	}
	return wrapped, nil
}

// Unwrap opens what Wrap returned for the same aad. Anything else is DATA_DAMAGED, whatever is wrong with it.
func (s *Seal) Unwrap(ctx context.Context, wrapped, aad []byte) ([]byte, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.keeper == nil {
		return nil, errClosed()
	}
	if len(wrapped) > maxWrapped {
		return nil, errDamaged()
	}
	frame, err := s.keeper.Decrypt(ctx, wrapped)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, errDamaged() // the file's keeper fails for no other reason
	}
	digest := sha256.Sum256(aad)
	if len(frame) < 1+len(digest) || frame[0] != framed || subtle.ConstantTimeCompare(frame[1:1+len(digest)], digest[:]) != 1 {
		clear(frame)
		return nil, errDamaged()
	}
	return frame[1+len(digest):], nil
}

// Close wipes the key. Later calls of Wrap and Unwrap fail.
func (s *Seal) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.keeper == nil {
		return nil
	}
	clear(s.key[:])
	keeper := s.keeper
	s.keeper = nil
	if err := keeper.Close(); err != nil {
		return fault.Internal(err, "the seal could not be closed")
	}
	return nil
}

func (s *Seal) failed(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return fault.Wrap(err, codes.Unavailable, faultv1.Reason_SERVICE_UNAVAILABLE, "the seal cannot be used; repeat the call")
}

func errClosed() error { return fault.Unavailable("the seal is closed; the service is stopping") }

func errDamaged() error {
	return fault.New(codes.DataLoss, faultv1.Reason_DATA_DAMAGED, "a sealed key is damaged or belongs elsewhere")
}
