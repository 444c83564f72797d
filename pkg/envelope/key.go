package envelope

import (
	"bytes"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base32"
	"strings"
	"sync/atomic"

	"github.com/tink-crypto/tink-go/v2/tink"
	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
)

const (
	// KeySize is the length of a data key in bytes.
	KeySize = 32
	// MaxRecord is the longest plaintext of one Seal in bytes; longer content is a stream.
	MaxRecord = 16 << 20

	subkeySize  = 32
	idSize      = 8
	headerSize  = 1 + idSize
	segmentSize = 64 << 10

	formatRecord = 1
	formatStream = 2
)

// Overhead is at most how many bytes longer a sealed record is than its plaintext.
const Overhead = headerSize + 12 + 12 + 16

// Key seals and opens what one owner has. Get it from Keyring.Key for each use and do not keep it: it follows Forget and Destroy, and
// not the source. It is safe for concurrent use.
type Key struct {
	owner   string
	id      [idSize]byte
	record  tink.AEAD
	stream  tink.StreamingAEAD
	mac     []byte
	blob    []byte
	dropped *atomic.Bool // shared by all keys of the owner since the last Forget
}

// derive makes the keys of an owner out of its data key.
func derive(owner string, data redact.Secret) (*Key, error) {
	if data.Len() != KeySize {
		return nil, errDamaged()
	}
	k := &Key{owner: owner, dropped: new(atomic.Bool)}
	copy(k.id[:], subkey(data, "id", idSize))
	k.mac = subkey(data, "mac", subkeySize)
	k.blob = subkey(data, "blob", subkeySize)
	record, stream := subkey(data, "record", subkeySize), subkey(data, "stream", subkeySize)
	defer clear(record)
	defer clear(stream)
	var err error
	if k.record, err = newRecordAEAD(record); err != nil {
		return nil, fault.Internal(err, "a data key could not be used")
	}
	if k.stream, err = newStreamAEAD(stream); err != nil {
		return nil, fault.Internal(err, "a data key could not be used")
	}
	return k, nil
}

func subkey(data redact.Secret, label string, size int) []byte {
	out, err := hkdf.Key(sha256.New, data.Reveal(), nil, "redoubt envelope v1 "+label, size)
	if err != nil {
		panic("envelope: " + err.Error()) // only for more than 255 blocks
	}
	return out
}

// Owner is whose key it is.
func (k *Key) Owner() string { return k.owner }

func (k *Key) alive() error {
	if k.dropped.Load() {
		return fault.Unavailable("the data key is not in force any more; repeat the call")
	}
	return nil
}

func (k *Key) header(format byte) []byte { return append([]byte{format}, k.id[:]...) }

// Seal encrypts one field of a record, at most MaxRecord bytes. Sealing the same twice gives different ciphertexts.
func (k *Key) Seal(aad AAD, plain []byte) ([]byte, error) {
	if err := k.usable(aad); err != nil {
		return nil, err
	}
	if len(plain) > MaxRecord {
		return nil, fault.New(codes.InvalidArgument, faultv1.Reason_MESSAGE_TOO_LARGE, "one field of a record holds at most %d bytes", MaxRecord)
	}
	header := k.header(formatRecord)
	sealed, err := k.record.Encrypt(plain, bind(aad, header))
	if err != nil {
		return nil, fault.Internal(err, "a record could not be encrypted")
	}
	return append(header, sealed...), nil
}

// Open decrypts what Seal returned for the same AAD. The result is never nil without an error.
func (k *Key) Open(aad AAD, sealed []byte) ([]byte, error) {
	if err := k.usable(aad); err != nil {
		return nil, err
	}
	header := k.header(formatRecord)
	if len(sealed) < headerSize || len(sealed) > MaxRecord+Overhead || !bytes.Equal(sealed[:headerSize], header) {
		return nil, errDamaged()
	}
	plain, err := k.record.Decrypt(sealed[headerSize:], bind(aad, header))
	if err != nil {
		return nil, errDamaged()
	}
	return plain, nil
}

// SealString is Seal for text.
func (k *Key) SealString(aad AAD, plain string) ([]byte, error) { return k.Seal(aad, []byte(plain)) }

// OpenString is Open for text.
func (k *Key) OpenString(aad AAD, sealed []byte) (string, error) {
	plain, err := k.Open(aad, sealed)
	return string(plain), err
}

// MAC is what a column holds to find equal texts of one kind under one parent: 32 bytes that depend on all three and on the owner's
// key. It tells nothing else of the text to whoever has no key, and is the same for ever.
func (k *Key) MAC(kind, parent, text string) []byte {
	return keyed(k.mac, "mac", kind, parent, text)
}

// BlobName is the name under which a blob is stored: 52 characters of [a-z2-7] that depend on kind and id and on the owner's key.
func (k *Key) BlobName(kind, id string) string {
	return strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(keyed(k.blob, "blob", kind, id)))
}

func keyed(key []byte, parts ...string) []byte {
	h := hmac.New(sha256.New, key)
	_, _ = h.Write(appendParts(nil, parts...))
	return h.Sum(nil)
}

func (k *Key) usable(aad AAD) error {
	if err := aad.check(); err != nil {
		return err
	}
	return k.alive()
}

func errDamaged() error {
	return fault.New(codes.DataLoss, faultv1.Reason_DATA_DAMAGED, "stored data is damaged or does not belong here")
}
