package models

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/services/inference/internal/store"
)

// payloadType says what is signed.
const payloadType = "application/vnd.redoubt.model-manifest.v1+json"

// manifest is what a version is. Its fields stand in the order of their names, since that is the order in its canonical form.
type manifest struct {
	Files     []file `json:"files"`
	Model     string `json:"model"`
	Source    source `json:"source"`
	UID       string `json:"uid"`
	Version   int64  `json:"version"`
	Workspace string `json:"workspace"`
}

// file is one file of a version. SHA256 is in hexadecimal digits.
type file struct {
	Path   string `json:"path"`
	SHA256 string `json:"sha256"`
	Size   int64  `json:"size"`
}

// source is the run whose outputs they were, with what was known of it. It is empty for what was uploaded.
type source struct {
	Path     string `json:"path,omitempty"`
	Run      string `json:"run,omitempty"`
	RunUID   string `json:"run_uid,omitempty"`
	Snapshot string `json:"snapshot,omitempty"`
}

// encode is the canonical form: no space, no escapes but those that JSON needs.
func (m *manifest) encode() ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(m); err != nil {
		return nil, fault.Internal(err, "the manifest cannot be written")
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

func (m *manifest) total() (n int64) {
	for _, f := range m.Files {
		n += f.Size
	}
	return n
}

func (f file) digest() []byte {
	b, _ := hex.DecodeString(f.SHA256) // checked by decode, or made by us
	return b
}

// decode reads what encode wrote, and refuses all else.
func decode(payload []byte) (*manifest, error) {
	m := &manifest{}
	if err := json.Unmarshal(payload, m); err != nil {
		return nil, errDamaged()
	}
	again, err := m.encode()
	if err != nil || !bytes.Equal(again, payload) {
		return nil, errDamaged()
	}
	for _, f := range m.Files {
		if len(f.digest()) != sha256.Size || f.Size < 0 || badPath(f.Path) != "" {
			return nil, errDamaged()
		}
	}
	return m, nil
}

func errDamaged() error {
	return fault.New(codes.DataLoss, faultv1.Reason_DATA_DAMAGED, "the stored model version is not what was signed when it was registered; register it again")
}

// signer makes what AddVersion calls for the signed manifest of files.
func (s *Service) signer(by *envelope.Signer, files []file, from source) func(m *store.Model, v *store.Version) ([]byte, error) {
	slices.SortFunc(files, func(a, b file) int { return cmp.Compare(a.Path, b.Path) })
	return func(m *store.Model, v *store.Version) ([]byte, error) {
		mf := &manifest{Files: files, Model: m.UID, Source: from, UID: v.UID, Version: v.Number, Workspace: v.Workspace}
		payload, err := mf.encode()
		if err != nil {
			return nil, err
		}
		sum := sha256.Sum256(payload)
		v.Body.Digest, v.Body.TotalBytes = sum[:], mf.total()
		v.Body.SourceRun, v.Body.SourceSnapshot, v.Body.SourcePath = from.Run, from.Snapshot, from.Path
		return by.SignDocument(payloadType, payload)
	}
}

// verified reads a version's manifest and proves that it was signed for this version.
func (s *Service) verified(ctx context.Context, m *store.Model, v *store.Version) (*manifest, []byte, error) {
	signed, err := s.store.Manifest(ctx, v)
	if err != nil {
		return nil, nil, err
	}
	id, err := envelope.SignedBy(signed)
	if err != nil {
		return nil, nil, err
	}
	by, err := s.signing.by(ctx, id)
	if err != nil {
		return nil, nil, err
	}
	payload, err := by.VerifyDocument(payloadType, signed)
	if err != nil {
		return nil, nil, err
	}
	mf, err := decode(payload)
	if err != nil {
		return nil, nil, err
	}
	sum := sha256.Sum256(payload)
	if mf.Model != m.UID || mf.UID != v.UID || mf.Version != v.Number || mf.Workspace != v.Workspace || !bytes.Equal(sum[:], v.Body.GetDigest()) {
		return nil, nil, errDamaged()
	}
	return mf, signed, nil
}

// signing keeps the keys that sign manifests. It is safe for concurrent use.
type signing struct {
	own   *envelope.Keyring
	store *store.Store
	now   func() time.Time

	mu      sync.Mutex
	signers map[string]*envelope.Signer
}

func signingAAD(id string) envelope.AAD {
	return envelope.AAD{Owner: envelope.ServiceOwner, Kind: "model_signing_key", ID: id}
}

// by gives the signer of that key id; DATA_DAMAGED if there is none.
func (g *signing) by(ctx context.Context, id string) (*envelope.Signer, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if s, ok := g.signers[id]; ok {
		return s, nil
	}
	if _, err := g.load(ctx); err != nil {
		return nil, err
	}
	if s, ok := g.signers[id]; ok {
		return s, nil
	}
	return nil, errDamaged()
}

// load reads the stored keys. The caller holds mu.
func (g *signing) load(ctx context.Context) ([]store.SigningKey, error) {
	list, err := g.store.SigningKeys(ctx)
	if err != nil {
		return nil, err
	}
	key, err := g.own.Key(ctx, envelope.ServiceOwner)
	if err != nil {
		return nil, err
	}
	for _, k := range list {
		if g.signers[k.ID] != nil {
			continue
		}
		s, err := key.OpenSigner(signingAAD(k.ID), k.Sealed)
		if err != nil {
			return nil, err
		}
		if s.KeyID() != k.ID {
			return nil, errDamaged()
		}
		g.signers[k.ID] = s
	}
	return list, nil
}

// all lists the stored keys, the oldest first. The first use makes one.
func (g *signing) all(ctx context.Context) ([]store.SigningKey, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	list, err := g.load(ctx)
	if err != nil || len(list) > 0 {
		return list, err
	}
	key, err := g.own.Key(ctx, envelope.ServiceOwner)
	if err != nil {
		return nil, err
	}
	s, err := envelope.NewSigner()
	if err != nil {
		return nil, err
	}
	sealed, err := key.SealSigner(signingAAD(s.KeyID()), s)
	if err != nil {
		return nil, err
	}
	if _, err := g.store.FirstSigningKey(ctx, store.SigningKey{ID: s.KeyID(), Sealed: sealed, Created: g.now()}); err != nil {
		return nil, err
	}
	return g.load(ctx)
}

// current gives the signer of new versions: the newest.
func (g *signing) current(ctx context.Context) (*envelope.Signer, error) {
	list, err := g.all(ctx)
	if err != nil {
		return nil, err
	}
	return g.by(ctx, list[len(list)-1].ID)
}

// ListSigningKeys implements inferencev1.ModelServiceServer.
func (s *Service) ListSigningKeys(ctx context.Context, _ *inferencev1.ListSigningKeysRequest) (*inferencev1.ListSigningKeysResponse, error) {
	list, err := s.signing.all(ctx)
	if err != nil {
		return nil, err
	}
	out := &inferencev1.ListSigningKeysResponse{}
	for _, k := range list {
		by, err := s.signing.by(ctx, k.ID)
		if err != nil {
			return nil, err
		}
		out.Keys = append(out.Keys, &inferencev1.SigningKey{KeyId: k.ID, PublicKeyPem: string(by.PublicKeyPEM()), CreateTime: timestamppb.New(k.Created)})
	}
	return out, nil
}
