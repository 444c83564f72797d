package login

import (
	"net/netip"
	"sync"
	"time"
)

// Limits of a Guard. Zero fields take the defaults.
type Limits struct {
	// PerAccount is how many tries an account has before it is locked for a while, and PerAddress those of one client address.
	// 5 and 50 when 0.
	PerAccount, PerAddress int
	// FirstLock is the first lock's length; each further try doubles it, up to MaxLock. 1 s and 1 min when 0.
	FirstLock, MaxLock time.Duration
	// Forget is the time without a try after which the count starts over. 1 h when 0.
	Forget time.Duration
	// Entries bounds the table. 50,000 when 0.
	Entries int
	// Guards says how many guards there are now among which tries are spread, this one too: each gives its part of the tries and locks so many
	// times as long, so that all together give what one would. Nil says 1.
	Guards func() int
}

// part is what one of n guards gives of so many tries.
func part(tries, n int) int { return max(1, (tries+n-1)/n) }

func (l Limits) withDefaults() Limits {
	if l.PerAccount <= 0 {
		l.PerAccount = 5
	}
	if l.PerAddress <= 0 {
		l.PerAddress = 50
	}
	if l.FirstLock <= 0 {
		l.FirstLock = time.Second
	}
	if l.MaxLock <= 0 {
		l.MaxLock = time.Minute
	}
	if l.Forget <= 0 {
		l.Forget = time.Hour
	}
	if l.Entries <= 0 {
		l.Entries = 50_000
	}
	if l.Guards == nil {
		l.Guards = func() int { return 1 }
	}
	return l
}

// Guard counts tries. It is safe for concurrent use.
type Guard struct {
	limits Limits
	mu     sync.Mutex
	seen   map[subject]*tries
}

// subject is an account or an address; the two cannot collide.
type subject struct {
	address bool
	name    string
}

type tries struct {
	failed int
	last   time.Time
	until  time.Time // locked
}

// NewGuard makes a Guard.
func NewGuard(l Limits) *Guard {
	return &Guard{limits: l.withDefaults(), seen: make(map[subject]*tries)}
}

// Try asks for one try at account from address, at the time now, and counts it as failed until Succeeded says otherwise.
// When the account or the address is locked, it returns how long to wait, and counts nothing. An empty address is not limited.
func (g *Guard) Try(now time.Time, account, address string) (wait time.Duration, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	subjects := []subject{{name: account}}
	if address != "" {
		subjects = append(subjects, subject{address: true, name: network(address)})
	}
	for _, s := range subjects {
		if t := g.seen[s]; t != nil && now.Before(t.until) {
			wait = max(wait, t.until.Sub(now))
		}
	}
	if wait > 0 {
		return wait, false
	}
	for _, s := range subjects {
		g.count(now, s)
	}
	return 0, true
}

// Succeeded forgets the failures of account, and the try that was counted for address.
func (g *Guard) Succeeded(account, address string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.seen, subject{name: account})
	if t := g.seen[subject{address: true, name: network(address)}]; t != nil && t.failed > 0 {
		t.failed--
		t.until = time.Time{}
	}
}

// Withdraw takes a try back that found out nothing, since the password was not looked at: nobody is locked because the service was busy.
func (g *Guard) Withdraw(account, address string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, s := range []subject{{name: account}, {address: true, name: network(address)}} {
		if t := g.seen[s]; t != nil && t.failed > 0 {
			t.failed--
			t.until = time.Time{}
		}
	}
}

func (g *Guard) count(now time.Time, s subject) {
	t := g.seen[s]
	switch {
	case t == nil:
		if len(g.seen) >= g.limits.Entries {
			g.evict(now)
		}
		t = &tries{}
		g.seen[s] = t
	case now.Sub(t.last) >= g.limits.Forget:
		*t = tries{}
	}
	t.failed++
	t.last = now
	free := g.limits.PerAccount
	if s.address {
		free = g.limits.PerAddress
	}
	guards := max(1, g.limits.Guards())
	if over := t.failed - part(free, guards); over >= 0 {
		lock := g.limits.MaxLock
		if over < 20 {
			lock = min(lock, g.limits.FirstLock<<over)
		}
		t.until = now.Add(lock * time.Duration(guards))
	}
}

// evict makes room: of a few entries, which a map gives in random order, the one that is over or has failed least.
func (g *Guard) evict(now time.Time) {
	var victim subject
	least, looked := -1, 0
	for s, t := range g.seen {
		failed := t.failed
		if now.Sub(t.last) >= g.limits.Forget {
			failed = 0
		}
		if least < 0 || failed < least {
			victim, least = s, failed
		}
		if looked++; looked == 32 {
			break
		}
	}
	delete(g.seen, victim)
}

// network is what one client can choose addresses in: the address itself, of IPv6 the /64.
func network(address string) string {
	if ap, err := netip.ParseAddrPort(address); err == nil {
		address = ap.Addr().String()
	}
	ip, err := netip.ParseAddr(address)
	if err != nil {
		return address
	}
	ip = ip.Unmap().WithZone("")
	if ip.Is6() {
		if p, err := ip.Prefix(64); err == nil {
			return p.String()
		}
	}
	return ip.String()
}
