package edge

import (
	"container/list"
	"sync"
)

// Waiting keeps what others are waited for in bounds, in all and by key: when there is too much of it, the oldest is dropped. So who is
// quick gets through a crowd of those who are not. It is safe for concurrent use.
type Waiting struct {
	most, mostOfOne int

	mu  sync.Mutex
	all *list.List // of *waiter, the oldest first
	of  map[string]int
}

type waiter struct {
	key  string
	drop func()
}

// NewWaiting bounds what may wait, in all and of one key. The key "" has no bound of its own.
func NewWaiting(most, mostOfOne int) *Waiting {
	return &Waiting{most: most, mostOfOne: mostOfOne, all: list.New(), of: make(map[string]int)}
}

// Enter lets one more wait; the returned function, which may be called twice, says that it is over. drop is called at most once, if others
// press from behind; it must not block.
func (w *Waiting) Enter(key string, drop func()) (leave func()) {
	w.mu.Lock()
	if key != "" && w.of[key] >= w.mostOfOne {
		w.oldest(key)
	}
	if w.all.Len() >= w.most {
		w.oldest("")
	}
	at := w.all.PushBack(&waiter{key, drop})
	w.of[key]++
	w.mu.Unlock()
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.remove(at)
	}
}

// Oldest drops the oldest of all.
func (w *Waiting) Oldest() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.oldest("")
}

// Drop drops all.
func (w *Waiting) Drop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.all.Len() > 0 {
		w.oldest("")
	}
}

// oldest drops the oldest of a key, or of all. mu is held.
func (w *Waiting) oldest(key string) {
	for at := w.all.Front(); at != nil; at = at.Next() {
		if one := at.Value.(*waiter); key == "" || one.key == key {
			w.remove(at)
			one.drop()
			return
		}
	}
}

// remove forgets one, if it is there still. mu is held.
func (w *Waiting) remove(at *list.Element) {
	one := at.Value.(*waiter)
	if one.key == gone {
		return
	}
	w.all.Remove(at)
	if w.of[one.key]--; w.of[one.key] == 0 {
		delete(w.of, one.key)
	}
	one.key = gone
}

// gone is the key of what waits no more; it is nobody's.
const gone = "\x00gone"
