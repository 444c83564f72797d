package svid

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"io/fs"
	"log/slog"
	mathrand "math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// SVID is one identity with its key and the roots that it came with. It is never changed after it was published.
type SVID struct {
	ID     spiffeid.ID
	Chain  []*x509.Certificate // leaf first, without the root
	Key    *ecdsa.PrivateKey
	Bundle []*x509.Certificate // every root of the trust domain
	Issued time.Time           // by the clock of who asked
}

// NotAfter is when the SVID ends.
func (s *SVID) NotAfter() time.Time { return s.Chain[0].NotAfter }

// Issuer is the pin of the root that has signed the leaf, "" if none of the bundle has.
func (s *SVID) Issuer() string {
	for _, root := range s.Bundle {
		if s.Chain[0].CheckSignatureFrom(root) == nil {
			return Pin(root)
		}
	}
	return ""
}

// IssueFunc asks the authority for an SVID: csrDER is signed by key, which the authority has pinned. chain and bundle are
// DER. It must return when ctx ends. Whatever it returns is checked before it is used.
type IssueFunc func(ctx context.Context, key crypto.Signer, csrDER []byte) (chain, bundle [][]byte, err error)

// KeeperConfig is what a Keeper needs. Dir, ID and Issue must be set.
type KeeperConfig struct {
	Dir   string      // holds key.pem and svid.pem; made 0700 when absent, refused when others may write to it
	ID    spiffeid.ID // what the SVID must say
	Issue IssueFunc

	// OnRotate, if set, is called after each new SVID is in use, from one goroutine at a time. It must be quick.
	OnRotate func(*SVID)
	// OnError, if set, is called after each attempt that failed.
	OnError func(error)

	IssueTimeout           time.Duration // of one attempt; 10 s when 0
	MinBackoff, MaxBackoff time.Duration // between attempts; 100 ms and 30 s when 0

	Now    func() time.Time // time.Now when nil
	Logger *slog.Logger     // silent when nil
}

// maxUrgentBackoff bounds the wait between attempts while there is no valid SVID: everything waits for it.
const maxUrgentBackoff = 2 * time.Second

// clockCheck bounds a wait: timers stand still while a machine sleeps, certificates do not.
const clockCheck = 10 * time.Second

// Keeper holds the identity of one workload and keeps it fresh. It is safe for concurrent use.
type Keeper struct {
	cfg  KeeperConfig
	key  *ecdsa.PrivateKey
	csr  []byte
	kick chan struct{}

	mu      sync.Mutex
	svid    *SVID               // last good one, perhaps ended
	bundle  []*x509.Certificate // of the last good one, kept when it could not be
	left    []string            // pins of roots that were in it once
	lastErr error
	changed chan struct{} // closed and replaced with each change of svid or lastErr
}

// NewKeeper opens Dir, makes the key if there is none, and takes up the SVID that was stored there. It issues nothing: Run
// does. It fails when the stored key cannot be read: a new key would not be the pinned one.
func NewKeeper(cfg KeeperConfig) (*Keeper, error) {
	switch {
	case cfg.Dir == "":
		return nil, fault.InvalidArgument("a keeper needs a folder for its key")
	case cfg.ID.IsZero() || cfg.ID.Path() == "":
		return nil, fault.InvalidArgument("a keeper needs the SPIFFE ID of its workload")
	case cfg.Issue == nil:
		return nil, fault.InvalidArgument("a keeper needs a way to have SVIDs issued")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	cfg.IssueTimeout = positive(cfg.IssueTimeout, 10*time.Second)
	cfg.MinBackoff = positive(cfg.MinBackoff, 100*time.Millisecond)
	cfg.MaxBackoff = max(positive(cfg.MaxBackoff, 30*time.Second), cfg.MinBackoff)
	if err := privateDir(cfg.Dir); err != nil {
		return nil, err
	}
	key, err := loadOrMakeKey(cfg.Dir)
	if err != nil {
		return nil, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, fault.Internal(err, "the certificate request could not be made")
	}
	k := &Keeper{cfg: cfg, key: key, csr: csr, kick: make(chan struct{}, 1), changed: make(chan struct{})}
	if k.left, err = loadLeft(cfg.Dir); err != nil {
		return nil, err
	}
	stored, err := loadSVID(cfg.Dir)
	switch {
	case errors.Is(err, fs.ErrNotExist): // first start
	case err != nil:
		cfg.Logger.Warn("the stored SVID was dropped", "error", err)
	default:
		k.bundle = stored.Bundle
		stored.Key = key
		if err := stored.check(cfg.ID, &k.key.PublicKey, cfg.Now()); err != nil {
			cfg.Logger.Info("the stored SVID cannot be used any more", "error", err)
		} else {
			k.svid = stored
		}
	}
	return k, nil
}

func positive(d, def time.Duration) time.Duration {
	if d <= 0 {
		return def
	}
	return d
}

// Key is the workload's own: made once, pinned at enrolment.
func (k *Keeper) Key() crypto.Signer { return k.key }

// Bundle is the last set of roots that was seen, also when the SVID that came with it has ended; nil before the first.
func (k *Keeper) Bundle() []*x509.Certificate {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.bundle
}

// Left are the pins of roots that were in the bundle once and are not any more: an enrolment does not believe them, whoever pins them.
func (k *Keeper) Left() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.left)
}

// gone gives the pins that left names when next follows on the bundle of the moment.
func (k *Keeper) gone(next []*x509.Certificate) []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	left := slices.Clone(k.left)
	for _, old := range k.bundle {
		if !slices.ContainsFunc(next, old.Equal) && !slices.Contains(left, Pin(old)) {
			left = append(left, Pin(old))
		}
	}
	return left[max(0, len(left)-maxLeft):]
}

// Current is the SVID of the moment, or UNAVAILABLE when there is no valid one.
func (k *Keeper) Current() (*SVID, error) {
	_, s, err := k.observe()
	return s, err
}

// observe returns a channel that closes with the next change, and the valid SVID or why there is none.
func (k *Keeper) observe() (<-chan struct{}, *SVID, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.svid != nil && k.cfg.Now().Before(k.svid.NotAfter()) {
		return k.changed, k.svid, nil
	}
	why := k.lastErr
	if why == nil {
		why = errors.New("none was issued yet")
	}
	return k.changed, nil, fault.Wrap(why, codes.Unavailable, faultv1.Reason_SERVICE_UNAVAILABLE,
		"%s has no valid SVID: see that identity answers and that this workload is enrolled", k.cfg.ID)
}

// Ready waits for a valid SVID. When ctx ends first, its error says why the last attempt failed.
func (k *Keeper) Ready(ctx context.Context) error {
	for {
		changed, _, err := k.observe()
		if err == nil {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return err
		}
	}
}

// Refresh has the SVID renewed at once, for instance because roots have changed. It does not wait.
func (k *Keeper) Refresh() {
	select {
	case k.kick <- struct{}{}:
	default:
	}
}

// Run keeps the SVID fresh until ctx ends, and returns nil then. Run it once.
func (k *Keeper) Run(ctx context.Context) error {
	if s, err := k.Current(); err == nil && k.cfg.OnRotate != nil {
		k.cfg.OnRotate(s)
	}
	for failures := 0; ; {
		var awake bool
		if failures > 0 {
			awake = k.wait(ctx, k.backoff(failures)) != ended
		} else {
			awake = k.waitUntilDue(ctx)
		}
		if !awake {
			return nil
		}
		err := k.renew(ctx)
		switch {
		case err == nil:
			failures = 0
		case ctx.Err() != nil:
			return nil //nolint:nilerr // it was asked to stop
		default:
			failures++
			k.failed(err, failures)
		}
	}
}

type wake int

const (
	elapsed wake = iota
	kicked
	ended
)

// wait lets d pass by the machine's own timer.
func (k *Keeper) wait(ctx context.Context, d time.Duration) wake {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return elapsed
	case <-k.kick:
		return kicked
	case <-ctx.Done():
		return ended
	}
}

// waitUntilDue returns when the SVID is to be renewed by the configured clock, or on Refresh; false when ctx has ended.
func (k *Keeper) waitUntilDue(ctx context.Context) bool {
	for {
		left := k.renewAt().Sub(k.cfg.Now())
		if left <= 0 {
			return ctx.Err() == nil
		}
		switch k.wait(ctx, min(left, clockCheck)) {
		case kicked:
			return true
		case ended:
			return false
		case elapsed:
		}
	}
}

// renewAt is half way through what was left when the SVID was issued, up to a tenth earlier, so that workloads which
// started together do not ask together. It is not counted from NotBefore, which is backdated.
func (k *Keeper) renewAt() time.Time {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.svid == nil {
		return k.cfg.Now()
	}
	life := k.svid.NotAfter().Sub(k.svid.Issued)
	if life <= 0 {
		return k.cfg.Now()
	}
	return k.svid.Issued.Add(life/2 - mathrand.N(life/20+1))
}

// backoff is the wait after n failures: doubled each time, of which half is random, and short while nothing is valid.
func (k *Keeper) backoff(n int) time.Duration {
	limit := k.cfg.MaxBackoff
	if s, err := k.Current(); err != nil {
		limit = min(limit, maxUrgentBackoff)
	} else if left := s.NotAfter().Sub(k.cfg.Now()); left/8 < limit {
		limit = left / 8
	}
	limit = max(limit, k.cfg.MinBackoff)
	d := limit
	if n < 16 {
		d = min(k.cfg.MinBackoff<<(n-1), limit)
	}
	return d/2 + mathrand.N(d/2+1)
}

func (k *Keeper) renew(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, k.cfg.IssueTimeout)
	defer cancel()
	asked := k.cfg.Now()
	chain, bundle, err := k.cfg.Issue(ctx, k.key, k.csr)
	if err != nil {
		return err
	}
	s := &SVID{Key: k.key, Issued: asked}
	if s.Chain, err = parseCerts(chain); err != nil {
		return err
	}
	if s.Bundle, err = parseCerts(bundle); err != nil {
		return err
	}
	if err := s.check(k.cfg.ID, &k.key.PublicKey, k.cfg.Now()); err != nil {
		return err
	}
	left := k.gone(s.Bundle)
	// A failure to store is not one to serve: the next start will simply have to ask. What has left is stored first: were it forgotten, a
	// pin of it would be believed again.
	if err := storeLeft(k.cfg.Dir, left); err != nil {
		k.cfg.Logger.Error("the roots that are not believed any more could not be stored", "error", err)
	}
	if err := storeSVID(k.cfg.Dir, s); err != nil {
		k.cfg.Logger.Error("the SVID could not be stored", "error", err)
	}
	k.mu.Lock()
	k.svid, k.bundle, k.left, k.lastErr = s, s.Bundle, left, nil
	close(k.changed)
	k.changed = make(chan struct{})
	k.mu.Unlock()
	k.cfg.Logger.Debug("SVID renewed", "id", s.ID.String(), "not_after", s.NotAfter())
	if k.cfg.OnRotate != nil {
		k.cfg.OnRotate(s)
	}
	return nil
}

func (k *Keeper) failed(err error, failures int) {
	k.mu.Lock()
	k.lastErr = err
	close(k.changed)
	k.changed = make(chan struct{})
	k.mu.Unlock()
	level := slog.LevelWarn
	if _, cerr := k.Current(); cerr != nil && failures > 3 {
		level = slog.LevelError
	}
	k.cfg.Logger.Log(context.Background(), level, "no new SVID", "id", k.cfg.ID.String(), "failures", failures, "error", err)
	if k.cfg.OnError != nil {
		k.cfg.OnError(err)
	}
}
