package password

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/argon2"
	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
)

// MaxBytes is the length of the longest password.
const MaxBytes = 1024

const (
	saltBytes = 16
	keyBytes  = 32

	maxPasses = 16
	maxMemory = 1 << 20 // KiB
	maxLanes  = 16
)

// Config of a Hasher. The zero value is OWASP's first choice for argon2id (19 MiB, 2 passes, 1 lane), on half of the cores.
type Config struct {
	// Passes over the memory, 1 to 16. 0 means 2.
	Passes uint32
	// MemoryKiB is the memory of one hash, 8 KiB to 1 GiB per lane. 0 means 19,456.
	MemoryKiB uint32
	// Lanes computed in parallel, 1 to 16. 0 means 1.
	Lanes uint8
	// Concurrent is how many hashes may run at once. 0 means one, or two on four cores and more: what checks tokens beside them needs the others.
	Concurrent int
	// Waiting is how many more may wait for their turn before others are turned away. 0 means 64.
	Waiting int
}

// Hasher hashes and verifies passwords.
type Hasher struct {
	cost    cost
	turn    chan struct{}
	limit   int64
	pending atomic.Int64
}

// cost is the parameters of one hash.
type cost struct {
	memory, passes uint32
	lanes          uint8
}

func (c cost) ok() bool {
	return c.passes >= 1 && c.passes <= maxPasses && c.lanes >= 1 && c.lanes <= maxLanes &&
		c.memory >= 8*uint32(c.lanes) && c.memory <= maxMemory
}

// New makes a Hasher.
func New(cfg Config) (*Hasher, error) {
	c := cost{memory: cfg.MemoryKiB, passes: cfg.Passes, lanes: cfg.Lanes}
	if c.memory == 0 {
		c.memory = 19456
	}
	if c.passes == 0 {
		c.passes = 2
	}
	if c.lanes == 0 {
		c.lanes = 1
	}
	if cfg.Concurrent == 0 {
		cfg.Concurrent = max(1, min(2, runtime.GOMAXPROCS(0)/2))
	}
	if cfg.Waiting == 0 {
		cfg.Waiting = 64
	}
	if !c.ok() || cfg.Concurrent < 0 || cfg.Waiting < 0 {
		return nil, fmt.Errorf("password: the cost is out of bounds")
	}
	return &Hasher{cost: c, turn: make(chan struct{}, cfg.Concurrent), limit: int64(cfg.Concurrent + cfg.Waiting)}, nil
}

// Hash gives the PHC string to store for a password of 1 to MaxBytes bytes.
func (h *Hasher) Hash(ctx context.Context, pw redact.Secret) (string, error) {
	if pw.Empty() || pw.Len() > MaxBytes {
		return "", fault.InvalidArgument("a password has 1 to %d bytes", MaxBytes)
	}
	salt := make([]byte, saltBytes)
	_, _ = rand.Read(salt) // never fails
	key, err := h.derive(ctx, pw.Reveal(), salt, h.cost, keyBytes)
	if err != nil {
		return "", err
	}
	return phc{cost: h.cost, salt: salt, key: key}.String(), nil
}

// Verify reports whether pw is the password that stored was made from. again says that stored has another cost than
// this Hasher's and should be replaced by a new Hash now that the password is at hand; it is only set with ok.
func (h *Hasher) Verify(ctx context.Context, stored string, pw redact.Secret) (ok, again bool, err error) {
	p, err := parse(stored)
	if err != nil {
		return false, false, fault.Internal(err, "the stored credential cannot be read: set a new one")
	}
	key, err := h.derive(ctx, bounded(pw), p.salt, p.cost, uint32(len(p.key)))
	if err != nil {
		return false, false, err
	}
	ok = subtle.ConstantTimeCompare(key, p.key) == 1 && !pw.Empty() && pw.Len() <= MaxBytes
	return ok, ok && p.cost != h.cost, nil
}

// Dummy takes as long as Verify and matches nothing: call it where there is no such user.
func (h *Hasher) Dummy(ctx context.Context, pw redact.Secret) error {
	var salt [saltBytes]byte
	var never [keyBytes]byte
	key, err := h.derive(ctx, bounded(pw), salt[:], h.cost, keyBytes)
	if err != nil {
		return err
	}
	subtle.ConstantTimeCompare(key, never[:])
	return nil
}

// bounded cuts what is too long to be right, so that it costs what any other wrong one does.
func bounded(pw redact.Secret) []byte {
	b := pw.Reveal()
	return b[:min(len(b), MaxBytes)]
}

func (h *Hasher) derive(ctx context.Context, pw, salt []byte, c cost, n uint32) ([]byte, error) {
	if h.pending.Add(1) > h.limit {
		h.pending.Add(-1)
		return nil, fault.New(codes.ResourceExhausted, faultv1.Reason_RATE_LIMITED,
			"too many sign-ins at once: try again in a moment").Retry(time.Second)
	}
	defer h.pending.Add(-1)
	select {
	case h.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-h.turn }()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return argon2.IDKey(pw, salt, c.passes, c.memory, c.lanes, n), nil
}

// phc is a hash in the PHC string format.
type phc struct {
	cost
	salt, key []byte
}

var b64 = base64.RawStdEncoding.Strict()

func (p phc) String() string {
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s",
		argon2.Version, p.memory, p.passes, p.lanes, b64.EncodeToString(p.salt), b64.EncodeToString(p.key))
}

var errMalformed = errors.New("password: the hash is not argon2id in PHC form, or out of bounds")

func parse(s string) (phc, error) {
	f := strings.Split(s, "$")
	if len(s) > 256 || len(f) != 6 || f[0] != "" || f[1] != "argon2id" || f[2] != "v="+strconv.Itoa(argon2.Version) {
		return phc{}, errMalformed
	}
	var n [3]uint64
	params := strings.Split(f[3], ",")
	if len(params) != len(n) {
		return phc{}, errMalformed
	}
	for i, name := range []string{"m=", "t=", "p="} {
		digits, ok := strings.CutPrefix(params[i], name)
		v, err := strconv.ParseUint(digits, 10, 32)
		if !ok || err != nil {
			return phc{}, errMalformed
		}
		n[i] = v
	}
	if n[2] > maxLanes { // before it is cut to 8 bits
		return phc{}, errMalformed
	}
	p := phc{cost: cost{memory: uint32(n[0]), passes: uint32(n[1]), lanes: uint8(n[2])}}
	var err error
	if p.salt, err = b64.DecodeString(f[4]); err != nil || len(p.salt) < 8 || len(p.salt) > 64 {
		return phc{}, errMalformed
	}
	if p.key, err = b64.DecodeString(f[5]); err != nil || len(p.key) < 16 || len(p.key) > 64 {
		return phc{}, errMalformed
	}
	if !p.ok() {
		return phc{}, errMalformed
	}
	return p, nil
}
