package edge

import "sync"

// Open counts what is open at a time, in all and by key: streams by the address that they came from. It is safe for concurrent use.
type Open struct {
	most, mostOfOne int

	mu  sync.Mutex
	all int
	of  map[string]int
}

// NewOpen bounds what may be open, in all and of one key.
func NewOpen(most, mostOfOne int) *Open {
	return &Open{most: most, mostOfOne: mostOfOne, of: make(map[string]int)}
}

// Enter counts one more of key, unless that is too many. Leave has to follow each that was let in.
func (o *Open) Enter(key string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.all >= o.most || o.of[key] >= o.mostOfOne {
		return false
	}
	o.all++
	o.of[key]++
	return true
}

// Leave counts one less.
func (o *Open) Leave(key string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.all--
	if o.of[key]--; o.of[key] == 0 {
		delete(o.of, key)
	}
}

// Count is how many are open.
func (o *Open) Count() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.all
}
