// Package clients keeps what is known of service principals that have proved themselves, so that the next token for one is given without a
// query.
//
// # What it owns
//
// A bounded map in memory, by what was shown: the digest of a secret, or a client and the thumbprint of its key. What it holds was read in one
// transaction, together with the number that identity's security state had in it.
//
// # Invariants
//
//   - Only what was found good is kept: whoever shows something wrong finds nothing, leaves nothing, and costs a query as before.
//   - It follows the security stream. A message that names a principal or a credential drops what is kept of it, before the number rises to the
//     message's. What was read at a lower number than the cache has is not kept.
//   - It decides nothing. What Find gives was so at the number that comes with it; whether it is still is found out in the transaction of the
//     token's record (audit.Ground), against the database. A cache that is behind costs a query there, and honours nothing.
//   - No secret is in it, only digests of secrets of 256 random bits. When something ends by itself, its user looks at the clock.
//
// # How it fails
//
// By having nothing. A stream that starts over empties it.
package clients

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"sync"
	"time"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
)

// Most is how many are kept, some 300 bytes each. One more takes the place of any.
const Most = 16384

// Key is what a client shows.
type Key [sha256.Size]byte

// BySecret is the key of a secret with this digest.
func BySecret(digest []byte) Key {
	return sum("secret", digest)
}

// ByThumbprint is the key of a client's public key.
func ByThumbprint(uid, thumbprint string) Key { return sum("key", []byte(uid), []byte(thumbprint)) }

// ByCertificate is the key of a client's certificate, in DER.
func ByCertificate(uid string, der []byte) Key { return sum("certificate", []byte(uid), der) }

func sum(kind string, parts ...[]byte) Key {
	h := sha256.New()
	h.Write([]byte(kind))
	for _, p := range parts {
		h.Write([]byte{byte(len(p) >> 8), byte(len(p))})
		h.Write(p)
	}
	var k Key
	h.Sum(k[:0])
	return k
}

// Facts are what a grant to a service principal is decided on.
type Facts struct {
	// UID and Name are the service principal's, which was not disabled.
	UID, Name string
	// Credential is the id of the secret or key that was shown, and Expire its end.
	Credential string
	Expire     time.Time
	// Public is the key, nil of a secret.
	Public *ecdsa.PublicKey
	// Until is the moment up to which tokens of the principal are revoked; zero if none are.
	Until time.Time
	// Number is that of the security state in which all this was so.
	Number uint64
}

// Cache is safe for concurrent use. The zero value keeps nothing until the stream has told where it is.
type Cache struct {
	mu     sync.RWMutex
	told   bool
	number uint64
	kept   map[Key]Facts
	named  map[string]map[Key]struct{} // by the uid of the principal, and by the id of the credential
	most   int
}

// New makes a Cache of at most n, Most where n is 0.
func New(n int) *Cache {
	if n == 0 {
		n = Most
	}
	return &Cache{kept: make(map[Key]Facts), named: make(map[string]map[Key]struct{}), most: n}
}

// Find gives what is kept, with the latest number at which it is known to be so.
func (c *Cache) Find(k Key) (Facts, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	f, ok := c.kept[k]
	f.Number = max(f.Number, c.number)
	return f, ok
}

// Keep keeps f, unless it is older than what the stream has told.
func (c *Cache) Keep(k Key, f Facts) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.told || f.Number < c.number || f.UID == "" || f.Credential == "" {
		return
	}
	if old, ok := c.kept[k]; ok {
		c.drop(k, old)
	}
	for one, old := range c.kept {
		if len(c.kept) < c.most {
			break
		}
		c.drop(one, old)
	}
	c.kept[k] = f
	for _, name := range []string{f.UID, f.Credential} {
		if c.named[name] == nil {
			c.named[name] = make(map[Key]struct{}, 1)
		}
		c.named[name][k] = struct{}{}
	}
}

// Apply takes a message of the security stream, in order.
func (c *Cache) Apply(m *identityv1.WatchSecurityResponse) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if m.GetReset_() {
		clear(c.kept)
		clear(c.named)
	}
	for _, r := range m.GetRevocations() {
		c.forget(r.GetSubject())
		c.forget(r.GetSid())
	}
	c.told, c.number = true, m.GetSeq()
}

// Len is how many are kept.
func (c *Cache) Len() int {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return len(c.kept)
}

func (c *Cache) forget(name string) {
	for k := range c.named[name] {
		c.drop(k, c.kept[k])
	}
}

func (c *Cache) drop(k Key, f Facts) {
	delete(c.kept, k)
	for _, name := range []string{f.UID, f.Credential} {
		if delete(c.named[name], k); len(c.named[name]) == 0 {
			delete(c.named, name)
		}
	}
}
