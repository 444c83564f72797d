package keyvault

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"strconv"

	"github.com/tink-crypto/tink-go/v2/aead/subtle"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	keyvaultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/keyvault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/services/keyvault/internal/store"
)

type keys struct {
	keyvaultv1.UnsafeKeyServiceServer
	s *Service
}

var _ keyvaultv1.KeyServiceServer = keys{}

// keyBytes is the length of an AES-256 key.
const keyBytes = 32

func newKey() redact.Secret {
	b := make([]byte, keyBytes)
	_, _ = rand.Read(b) // crypto/rand never fails
	return redact.New(b)
}

// CreateKey implements keyvaultv1.KeyServiceServer.
func (h keys) CreateKey(ctx context.Context, req *keyvaultv1.CreateKeyRequest) (*keyvaultv1.KeyVersion, error) {
	if err := resource.ValidIDField("key_id", req.GetKeyId()); err != nil {
		return nil, err
	}
	item, err := h.s.store.Add(ctx, rpc.From(ctx).Scope.WorkspaceUID, store.Key, req.GetKeyId(), true, newKey(), "", record("key", req.GetKeyId()))
	if err != nil {
		return nil, err
	}
	return keyVersion(req.GetParent()+"/keys/"+item.Name, item), nil
}

// ListKeys implements keyvaultv1.KeyServiceServer.
func (h keys) ListKeys(ctx context.Context, req *keyvaultv1.ListKeysRequest) (*keyvaultv1.ListKeysResponse, error) {
	ws := rpc.From(ctx).Scope.WorkspaceUID
	cur, n, pages, err := h.s.page(ctx, ws, store.Key, req.GetPageToken(), req.GetPageSize())
	if err != nil {
		return nil, err
	}
	items, cur, err := h.s.store.List(ctx, ws, store.Key, cur, n)
	if err != nil {
		return nil, err
	}
	out := &keyvaultv1.ListKeysResponse{}
	for _, it := range items {
		out.Keys = append(out.Keys, keyVersion(req.GetParent()+"/keys/"+it.Name, it))
	}
	out.NextPageToken, err = pages.next(cur, len(items), n)
	return out, err
}

// RotateKey implements keyvaultv1.KeyServiceServer.
func (h keys) RotateKey(ctx context.Context, req *keyvaultv1.RotateKeyRequest) (*keyvaultv1.KeyVersion, error) {
	call := rpc.From(ctx)
	item, err := h.s.store.Rotate(ctx, call.Scope.WorkspaceUID, store.Key, call.Scope.Name.ID(), newKey(), record())
	if err != nil {
		return nil, absent(err, req.GetName())
	}
	return keyVersion(req.GetName(), item), nil
}

// SetKeyDisabled implements keyvaultv1.KeyServiceServer.
func (h keys) SetKeyDisabled(ctx context.Context, req *keyvaultv1.SetKeyDisabledRequest) (*keyvaultv1.KeyVersion, error) {
	call := rpc.From(ctx)
	item, err := h.s.store.SetDisabled(ctx, call.Scope.WorkspaceUID, store.Key, call.Scope.Name.ID(), req.GetVersion(), req.GetDisabled(), record(disabledDetail(req.GetDisabled(), req.GetVersion())...))
	if err != nil {
		return nil, absent(err, req.GetName())
	}
	return keyVersion(req.GetName(), item), nil
}

// A ciphertext is: format (1 byte, 1), version (8 bytes, big endian), then what AES-256-GCM gave, with its nonce in front.
const (
	cipherFormat = 1
	cipherHead   = 9
)

// Encrypt implements keyvaultv1.KeyServiceServer. A key version with a random 96-bit nonce a message is good for 2^32 of them
// (NIST SP 800-38D, 8.3); rotate it before.
func (h keys) Encrypt(ctx context.Context, req *keyvaultv1.EncryptRequest) (*keyvaultv1.EncryptResponse, error) {
	call := rpc.From(ctx)
	item, value, err := h.s.store.Open(ctx, call.Scope.WorkspaceUID, store.Key, call.Scope.Name.ID(), 0, faultv1.Reason_KEY_DISABLED)
	if err != nil {
		return nil, absent(err, req.GetName())
	}
	defer value.Wipe()
	aead, err := subtle.NewAESGCM(value.Reveal())
	if err != nil {
		return nil, fault.Internal(err, "the key cannot be used")
	}
	sealed, err := aead.Encrypt(req.GetPlaintext(), bind(item, req.GetAssociatedData()))
	if err != nil {
		return nil, fault.Internal(err, "the key cannot encrypt")
	}
	out := binary.BigEndian.AppendUint64([]byte{cipherFormat}, uint64(item.Version))
	return &keyvaultv1.EncryptResponse{Ciphertext: append(out, sealed...), Version: item.Version}, nil
}

// Decrypt implements keyvaultv1.KeyServiceServer.
func (h keys) Decrypt(ctx context.Context, req *keyvaultv1.DecryptRequest) (*keyvaultv1.DecryptResponse, error) {
	ct := req.GetCiphertext()
	bad := fault.InvalidArgument("this key cannot open the ciphertext: another key, other associated data, or damaged").Field("ciphertext", "does not open")
	if len(ct) <= cipherHead || ct[0] != cipherFormat {
		return nil, bad
	}
	version := binary.BigEndian.Uint64(ct[1:cipherHead])
	if version == 0 || version > 1<<62 {
		return nil, bad
	}
	call := rpc.From(ctx)
	item, value, err := h.s.store.Open(ctx, call.Scope.WorkspaceUID, store.Key, call.Scope.Name.ID(), int64(version), faultv1.Reason_KEY_DISABLED)
	if errors.Is(err, store.ErrNoVersion) { // the caller may know the key: it is the ciphertext that is wrong
		return nil, bad
	}
	if err != nil {
		return nil, absent(err, req.GetName())
	}
	defer value.Wipe()
	aead, err := subtle.NewAESGCM(value.Reveal())
	if err != nil {
		return nil, fault.Internal(err, "the key cannot be used")
	}
	plain, err := aead.Decrypt(ct[cipherHead:], bind(item, req.GetAssociatedData()))
	if err != nil {
		return nil, bad
	}
	return &keyvaultv1.DecryptResponse{Plaintext: plain, Version: item.Version}, nil
}

// bind is the associated data of a ciphertext: the key, its version and what the caller gave, each with its length.
func bind(item store.Item, data []byte) []byte {
	out := binary.BigEndian.AppendUint32(nil, uint32(len(item.UID)))
	out = append(out, item.UID...)
	out = binary.BigEndian.AppendUint64(out, uint64(item.Version))
	return append(out, data...)
}

func keyVersion(name string, it store.Item) *keyvaultv1.KeyVersion {
	return &keyvaultv1.KeyVersion{Name: name, Version: it.Version, Disabled: it.Disabled, CreateTime: timestamppb.New(it.Created)}
}

func disabledDetail(disabled bool, version int64) []string {
	state := "enabled"
	if disabled {
		state = "disabled"
	}
	return []string{"version", strconv.FormatInt(version, 10), "state", state}
}

// notYours is the answer to a data key of another service or workspace.
func notYours() error {
	return fault.New(codes.PermissionDenied, faultv1.Reason_KEY_NOT_YOURS, "the data key was made for another service or workspace")
}
