package svid

import (
	"context"
	"crypto"
	"encoding/base64"
	"encoding/json"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// jwtIssuer is the other end of JWTConfig.Issue: the newest of its keys signs, for one ID; it can be away, and counts.
type jwtIssuer struct {
	t   *testing.T
	id  spiffeid.ID
	ttl time.Duration
	now func() time.Time

	mu   sync.Mutex
	keys []JWTKey
	away atomic.Pointer[error]
	n    atomic.Int64
}

func newJWTIssuer(t *testing.T, id spiffeid.ID) *jwtIssuer {
	t.Helper()
	i := &jwtIssuer{t: t, id: id, ttl: 5 * time.Minute, now: time.Now}
	i.next("first")
	return i
}

func (i *jwtIssuer) next(kid string) JWTKey {
	i.mu.Lock()
	defer i.mu.Unlock()
	k := JWTKey{Key: newKey(i.t), ID: kid}
	i.keys = append(i.keys, k)
	return k
}

func (i *jwtIssuer) drop() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.keys = i.keys[1:]
}

func (i *jwtIssuer) bundle() []byte {
	i.t.Helper()
	i.mu.Lock()
	defer i.mu.Unlock()
	public := make(map[string]crypto.PublicKey)
	for _, k := range i.keys {
		public[k.ID] = &k.Key.PublicKey
	}
	b, err := spiffebundle.FromJWTAuthorities(i.id.TrustDomain(), public).Marshal()
	if err != nil {
		i.t.Fatal(err)
	}
	return b
}

func (i *jwtIssuer) issue(_ context.Context, audience []string) (string, error) {
	i.n.Add(1)
	if err := i.away.Load(); err != nil {
		return "", *err
	}
	i.mu.Lock()
	k := i.keys[len(i.keys)-1]
	i.mu.Unlock()
	token, _, err := k.Sign(i.id, audience, i.ttl, i.now())
	return token, err
}

func (i *jwtIssuer) jwts(change ...func(*JWTConfig)) *JWTs {
	i.t.Helper()
	cfg := JWTConfig{ID: i.id, Issue: i.issue, Now: i.now}
	for _, c := range change {
		c(&cfg)
	}
	j, err := NewJWTs(cfg)
	if err != nil {
		i.t.Fatal(err)
	}
	if err := j.SetBundle(i.bundle()); err != nil {
		i.t.Fatal(err)
	}
	return j
}

func b64JSON(t testing.TB, v any) string {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return base64.RawURLEncoding.EncodeToString(raw)
}

// signJWS signs any payload under any header that go-jose writes.
func signJWS(t testing.TB, alg jose.SignatureAlgorithm, key any, header map[jose.HeaderKey]any, payload string) string {
	t.Helper()
	opts := &jose.SignerOptions{ExtraHeaders: header}
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, opts)
	if err != nil {
		t.Fatal(err)
	}
	jws, err := s.Sign([]byte(payload))
	if err != nil {
		t.Fatal(err)
	}
	out, err := jws.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return out
}
