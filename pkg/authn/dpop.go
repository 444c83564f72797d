package authn

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"time"

	"github.com/go-jose/go-jose/v4"
)

const (
	maxProof   = 4 << 10 // bytes
	minProofID = 8
	maxProofID = 256
)

// Prover makes proofs of possession of one key (RFC 9449).
type Prover struct {
	signer     jose.Signer
	thumbprint string
	now        func() time.Time
}

// NewProver makes a Prover. now is the clock; nil means time.Now.
func NewProver(key *ecdsa.PrivateKey, now func() time.Time) (*Prover, error) {
	if key == nil || key.Curve != elliptic.P256() {
		return nil, fmt.Errorf("authn: a prover needs a key on P-256")
	}
	if now == nil {
		now = time.Now
	}
	s, err := jose.NewSigner(
		jose.SigningKey{Algorithm: jose.ES256, Key: key},
		(&jose.SignerOptions{EmbedJWK: true}).WithType(typeProof))
	if err != nil {
		return nil, fmt.Errorf("authn: new prover: %w", err)
	}
	return &Prover{signer: s, thumbprint: Thumbprint(&key.PublicKey), now: now}, nil
}

// ProverOf is NewProver for a key that is known as a signer only. Keys of another kind than P-256 ECDSA are refused.
func ProverOf(key crypto.Signer, now func() time.Time) (*Prover, error) {
	k, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("authn: proofs are made with ECDSA keys, not with a %T", key)
	}
	return NewProver(k, now)
}

// Thumbprint is the thumbprint of the key: the jkt of a token that is bound to it.
func (p *Prover) Thumbprint() string { return p.thumbprint }

// Proof makes a proof for one request. For gRPC the method is POST and the URL the public base URL followed by the full
// method, as "https://host:port/package.Service/Method". accessToken is "" where a token is being asked for, and nonce
// is "" unless the server gave one. A proof is for one use.
func (p *Prover) Proof(method, url, accessToken, nonce string) (string, error) {
	htu, ok := NormalizeURL(url)
	if !ok || method == "" {
		return "", fmt.Errorf("authn: a proof needs a method and an absolute URL")
	}
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails
	payload, err := json.Marshal(struct {
		ID       string `json:"jti"`
		Method   string `json:"htm"`
		URL      string `json:"htu"`
		IssuedAt int64  `json:"iat"`
		Hash     string `json:"ath,omitempty"`
		Nonce    string `json:"nonce,omitempty"`
	}{rawURL.EncodeToString(id[:]), method, htu, p.now().Unix(), tokenHash(accessToken), nonce})
	if err != nil {
		return "", fmt.Errorf("authn: proof: %w", err)
	}
	sig, err := p.signer.Sign(payload)
	if err != nil {
		return "", fmt.Errorf("authn: proof: %w", err)
	}
	return sig.CompactSerialize()
}

// tokenHash is the ath of a token, "" for none.
func tokenHash(token string) string {
	if token == "" {
		return ""
	}
	sum := sha256.Sum256([]byte(token))
	return rawURL.EncodeToString(sum[:])
}

// ProofConfig of a ProofChecker. The zero value is usable.
type ProofConfig struct {
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Window is how long after its iat a proof is good. 0 means 60 s; more than 5 min is refused.
	Window time.Duration
	// MaxEntries bounds the replay cache, some 60 bytes each. When the keys that share a shard have used it up, their
	// further proofs are refused until the window has passed. 0 means 262,144.
	MaxEntries int
	// Shared is what all instances of the service remember, where there can be several. Nil is this process alone.
	Shared SharedProofs
}

// SharedProofs remembers proofs for several instances.
type SharedProofs interface {
	// First reports whether no instance has asked for this digest of a proof before. It may be forgotten after until. It takes a bounded
	// time; where it cannot know, it returns an error.
	First(digest []byte, until time.Time) (bool, error)
}

// ProofChecker checks proofs of possession and remembers those that were used. Its own memory is this process's: a proof
// from before it started is refused, and one that was used at another instance is known where there is a shared one.
type ProofChecker struct {
	now    func() time.Time
	window int64 // s; how old a proof may be
	leeway int64 // s; how far ahead of this clock it may be dated
	start  int64 // s
	replay *replayCache
	shared SharedProofs
}

// NewProofChecker makes a ProofChecker.
func NewProofChecker(cfg ProofConfig) (*ProofChecker, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Window == 0 {
		cfg.Window = time.Minute
	}
	if cfg.MaxEntries == 0 {
		cfg.MaxEntries = 1 << 18
	}
	if cfg.Window < time.Second || cfg.Window > 5*time.Minute || cfg.MaxEntries < 0 {
		return nil, fmt.Errorf("authn: a proof checker's window is 1 s to 5 min, and its size positive")
	}
	window, now := int64(cfg.Window/time.Second), cfg.Now().Unix()
	leeway := min(window, int64(MaxLeeway/time.Second))
	return &ProofChecker{
		now: cfg.Now, window: window, leeway: leeway, start: now,
		replay: newReplayCache(cfg.MaxEntries, window, leeway, now), shared: cfg.Shared,
	}, nil
}

// Check accepts a proof once, if the key with thumbprint wantJKT made it for this method, URL and access token just
// now. All five are required: an empty one is refused. Errors are faults: TOKEN_PROOF_INVALID is Unauthenticated,
// LIMIT_EXCEEDED is ResourceExhausted.
func (p *ProofChecker) Check(proof, htm, htu, accessToken, wantJKT string) error {
	if accessToken == "" || wantJKT == "" {
		return badProof(cause("there is no bound token to prove"))
	}
	now := p.now().Unix()
	jkt, id, iat, err := p.open(proof, htm, htu, accessToken, now)
	if err != nil {
		return badProof(err)
	}
	if subtle.ConstantTimeCompare([]byte(jkt), []byte(wantJKT)) != 1 {
		return badProof(cause("the proof is by another key"))
	}
	if err := p.once(jkt, id, iat, now); err != nil {
		return err
	}
	return p.everywhere(jkt, id, iat)
}

// Bind accepts a proof once that is sent where a token is asked for, so that it names no access token, and returns the
// thumbprint of the key to bind the new token to. Anybody can make such a proof, so it is remembered by this process alone: what it comes
// with (a code, a secret) is what is good once.
func (p *ProofChecker) Bind(proof, htm, htu string) (jkt string, err error) {
	now := p.now().Unix()
	jkt, id, iat, err := p.open(proof, htm, htu, "", now)
	if err != nil {
		return "", badProof(err)
	}
	if err := p.once(jkt, id, iat, now); err != nil {
		return "", err
	}
	return jkt, nil
}

func (p *ProofChecker) once(jkt, id string, iat, now int64) error {
	switch p.replay.use(jkt, id, iat, now) {
	case replayFirst:
		return nil
	case replayNoRoom:
		return replayFull()
	case replayAgain:
		return badProof(cause("the proof was used before"))
	default: // replayForgotten
		return badProof(cause("the proof is from before this clock jumped back"))
	}
}

// sharedFor is how much longer than its window a proof is remembered for all: the clocks of instances may be apart.
const sharedFor = 2 * MaxLeeway

// everywhere is once of all instances.
func (p *ProofChecker) everywhere(jkt, id string, iat int64) error {
	if p.shared == nil {
		return nil
	}
	digest := sha256.Sum256([]byte(jkt + "\x00" + id)) // a thumbprint holds no NUL
	first, err := p.shared.First(digest[:], time.Unix(iat+p.window+p.leeway, 0).Add(sharedFor))
	switch {
	case err != nil:
		return noProofMemory(err)
	case !first:
		return badProof(cause("the proof was used before, at another instance"))
	}
	return nil
}

// open checks all but the single use and the key that it should be.
func (p *ProofChecker) open(proof, htm, htu, accessToken string, now int64) (jkt, id string, iat int64, err error) {
	fail := func(err error) (string, string, int64, error) { return "", "", 0, err }
	if proof == "" {
		return fail(cause("there is no proof"))
	}
	if len(proof) > maxProof {
		return fail(cause("the proof is too long"))
	}
	header, _, _, err := parseCompact(proof)
	if err != nil {
		return fail(err)
	}
	key, err := parseProofHeader(header)
	if err != nil {
		return fail(err)
	}
	payload, err := verifyES256(proof, key)
	if err != nil {
		return fail(err)
	}
	m, err := parseObject(payload)
	if err != nil {
		return fail(err)
	}
	id, _, err = m.text("jti")
	if err != nil || len(id) < minProofID || len(id) > maxProofID {
		return fail(cause("the proof has no usable jti"))
	}
	if s, _, err := m.text("htm"); err != nil || s == "" || s != htm {
		return fail(cause("the proof is for another method"))
	}
	if s, _, err := m.text("htu"); err != nil || !sameURL(s, htu) {
		return fail(cause("the proof is for another URL"))
	}
	hash, has, err := m.text("ath")
	if err != nil || has != (accessToken != "") ||
		subtle.ConstantTimeCompare([]byte(hash), []byte(tokenHash(accessToken))) != 1 {
		return fail(cause("the proof is for another token"))
	}
	at, _, err := m.instant("iat")
	if err != nil {
		return fail(err)
	}
	iat = at.Unix()
	switch {
	case iat < now-p.window:
		return fail(cause("the proof is too old"))
	case iat > now+p.leeway:
		return fail(cause("the proof is from the future: the caller's clock or this one is wrong"))
	case iat < p.start:
		return fail(cause("the proof is from before this instance started"))
	}
	return Thumbprint(key), id, iat, nil
}

func sameURL(have, want string) bool {
	a, okA := NormalizeURL(have)
	b, okB := NormalizeURL(want)
	return okA && okB && a == b
}

// parseProofHeader accepts alg, typ and jwk, nothing else, and a jwk that is public.
func parseProofHeader(segment string) (*ecdsa.PublicKey, error) {
	raw, err := decodeSegment(segment)
	if err != nil {
		return nil, err
	}
	h, err := parseObject(raw)
	if err != nil {
		return nil, err
	}
	if err := h.only("alg", "typ", "jwk"); err != nil {
		return nil, err
	}
	for name, want := range map[string]string{"alg": "ES256", "typ": typeProof} {
		if s, _, err := h.text(name); err != nil || s != want {
			return nil, cause("the header is not that of an ES256 proof")
		}
	}
	k, err := parseObject(h["jwk"])
	if err != nil {
		return nil, err
	}
	// Nothing private is on the list. ext and key_ops come from browsers' exports.
	if err := k.only("kty", "crv", "x", "y", "alg", "use", "kid", "ext", "key_ops"); err != nil {
		return nil, err
	}
	if !k.isOr("alg", "ES256") || !k.isOr("use", "sig") {
		return nil, cause("the proof's key is for another use")
	}
	return parseECKey(k)
}
