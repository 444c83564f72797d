package password

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/argon2"
	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/authn/password/apart"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
)

// MaxBytes is the length of the longest password.
const MaxBytes = apart.MaxPassword

const (
	saltBytes = 16
	keyBytes  = 32
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
	// Waiting is how many more may wait for their turn before others are turned away. 0 means 512.
	Waiting int
	// LongestWait is how long one may have to wait, as far as can be told from the hashes before: who would have to for longer is turned away at
	// once. 0 means 10 s.
	LongestWait time.Duration

	// Apart has hashes computed by workers, processes of their own that give way to this one (package apart): what checks tokens does not feel
	// them. The program must have called apart.Maybe. Without it they are computed here. There is no way from the one to the other but this
	// setting: where workers cannot start, nobody signs in by password.
	Apart bool
	// Logger says when workers fail. Silent when nil.
	Logger *slog.Logger
}

// Hasher hashes and verifies passwords.
type Hasher struct {
	cost    apart.Cost
	turn    chan struct{}
	limit   int64
	longest time.Duration
	pending atomic.Int64
	took    atomic.Int64 // a hash of late, in ns: a moving average
	workers *apart.Pool  // nil: hashes are computed in this process
	begun   time.Time
	told    atomic.Int64 // when the last who was turned away should come back, in ns after begun
}

// Stats says what a Hasher does, and what its workers did: those it started, and jobs that failed with one.
type Stats struct{ Pending, Started, Failed int64 }

// New makes a Hasher. Close it.
func New(cfg Config) (*Hasher, error) {
	c := apart.Cost{Memory: cfg.MemoryKiB, Passes: cfg.Passes, Lanes: cfg.Lanes}
	if c.Memory == 0 {
		c.Memory = 19456
	}
	if c.Passes == 0 {
		c.Passes = 2
	}
	if c.Lanes == 0 {
		c.Lanes = 1
	}
	if cfg.Concurrent == 0 {
		cfg.Concurrent = max(1, min(2, runtime.GOMAXPROCS(0)/2))
	}
	if cfg.Waiting == 0 {
		cfg.Waiting = 512
	}
	if cfg.LongestWait == 0 {
		cfg.LongestWait = 10 * time.Second
	}
	if !c.OK() || cfg.Concurrent < 0 || cfg.Waiting < 0 || cfg.LongestWait < 0 {
		return nil, fmt.Errorf("password: the cost is out of bounds")
	}
	h := &Hasher{cost: c, turn: make(chan struct{}, cfg.Concurrent), limit: int64(cfg.Concurrent + cfg.Waiting), longest: cfg.LongestWait, begun: time.Now()}
	if cfg.Apart {
		var err error
		if h.workers, err = apart.New(apart.Config{Lanes: c.Lanes, Logger: cfg.Logger}); err != nil {
			return nil, err
		}
	}
	return h, nil
}

// Close ends the workers. Hashes under way fail.
func (h *Hasher) Close() {
	if h.workers != nil {
		h.workers.Close()
	}
}

// Stats gives the counts of now.
func (h *Hasher) Stats() Stats {
	s := Stats{Pending: h.pending.Load()}
	if h.workers != nil {
		w := h.workers.Stats()
		s.Started, s.Failed = w.Started, w.Failed
	}
	return s
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
	return phc{Cost: h.cost, salt: salt, key: key}.String(), nil
}

// Verify reports whether pw is the password that stored was made from. again says that stored has another cost than
// this Hasher's and should be replaced by a new Hash now that the password is at hand; it is only set with ok.
func (h *Hasher) Verify(ctx context.Context, stored string, pw redact.Secret) (ok, again bool, err error) {
	p, err := parse(stored)
	if err != nil {
		return false, false, fault.Internal(err, "the stored credential cannot be read: set a new one")
	}
	key, err := h.derive(ctx, bounded(pw), p.salt, p.Cost, uint32(len(p.key)))
	if err != nil {
		return false, false, err
	}
	ok = subtle.ConstantTimeCompare(key, p.key) == 1 && !pw.Empty() && pw.Len() <= MaxBytes
	return ok, ok && p.Cost != h.cost, nil
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

func (h *Hasher) derive(ctx context.Context, pw, salt []byte, c apart.Cost, n uint32) ([]byte, error) {
	defer h.pending.Add(-1)
	if err := h.admit(ctx, h.pending.Add(1)); err != nil {
		return nil, err
	}
	select {
	case h.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-h.turn }()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	begun := time.Now()
	job := apart.Job{Cost: c, KeyBytes: n, Password: pw, Salt: salt}
	var key []byte
	if h.workers == nil {
		key = job.Compute()
	} else {
		var err error
		if key, err = h.workers.Compute(ctx, job); err != nil {
			return nil, err
		}
	}
	if before := h.took.Load(); before == 0 {
		h.took.Store(int64(time.Since(begun)))
	} else {
		h.took.Store(before + (int64(time.Since(begun))-before)/8)
	}
	return key, nil
}

// admit turns away who would have to wait for too long, as the last of so many.
func (h *Hasher) admit(ctx context.Context, pending int64) error {
	atOnce := int64(cap(h.turn))
	wait := time.Duration(max(0, pending-atOnce) * h.took.Load() / atOnce)
	until, bounded := ctx.Deadline()
	if pending <= h.limit && wait <= h.longest && (!bounded || time.Until(until) > wait) {
		return nil
	}
	again := h.comeBack(min(wait, h.longest))
	return fault.New(codes.ResourceExhausted, faultv1.Reason_RATE_LIMITED,
		"too many sign-ins at once: try again in %v", again.Round(time.Second)).Retry(again)
}

// latest is the latest that one who is turned away is asked to come back.
const latest = time.Minute

// comeBack says in what time one who is turned away should come back: not before soon, and each as much after the one before as a hash takes, so
// that there is a place for him. Nobody holds it for him.
func (h *Hasher) comeBack(soon time.Duration) time.Duration {
	each := h.took.Load() / int64(cap(h.turn))
	now := int64(time.Since(h.begun))
	for {
		last := h.told.Load()
		next := max(last, now+int64(soon)) + each
		if next > now+int64(latest) {
			return latest + mathrand.N(latest/10)
		}
		if h.told.CompareAndSwap(last, next) {
			return max(time.Second, time.Duration(next-now)) + mathrand.N(time.Second)
		}
	}
}

// phc is a hash in the PHC string format.
type phc struct {
	apart.Cost
	salt, key []byte
}

var b64 = base64.RawStdEncoding.Strict()

func (p phc) String() string {
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s",
		argon2.Version, p.Memory, p.Passes, p.Lanes, b64.EncodeToString(p.salt), b64.EncodeToString(p.key))
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
	if n[2] > apart.MaxLanes { // before it is cut to 8 bits
		return phc{}, errMalformed
	}
	p := phc{Cost: apart.Cost{Memory: uint32(n[0]), Passes: uint32(n[1]), Lanes: uint8(n[2])}}
	var err error
	if p.salt, err = b64.DecodeString(f[4]); err != nil || len(p.salt) < 8 || len(p.salt) > 64 {
		return phc{}, errMalformed
	}
	if p.key, err = b64.DecodeString(f[5]); err != nil || len(p.key) < 16 || len(p.key) > 64 {
		return phc{}, errMalformed
	}
	if !p.OK() {
		return phc{}, errMalformed
	}
	return p, nil
}
