package fence

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"
)

// rows are those of class SQLFence, with a lock that transactions share.
type rows struct {
	place string
	mu    sync.Mutex
	lock  map[string]*sync.RWMutex
	gone  map[string]chan struct{}
	stuck bool // nothing can be deleted from here
	swept []string
}

func newRows(place string) *rows {
	return &rows{place: place, lock: make(map[string]*sync.RWMutex), gone: make(map[string]chan struct{})}
}

func (r *rows) Place() string { return r.place }

func (r *rows) Insert(_ context.Context, life string) (<-chan struct{}, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lock[life], r.gone[life] = &sync.RWMutex{}, make(chan struct{})
	return r.gone[life], nil
}

func (r *rows) Leave() {}

func (r *rows) of(life string) *sync.RWMutex {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lock[life]
}

func (r *rows) Delete(_ context.Context, life string) error {
	l := r.of(life)
	if l == nil {
		return nil
	}
	if r.stuck || !l.TryLock() { // as a lock timeout would have it
		return errors.New("a transaction holds it")
	}
	defer l.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.lock, life)
	return nil
}

func (r *rows) Sweep(_ context.Context, keep []string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.swept = slices.Clone(keep)
	return nil
}

func strong(store *rows) func(f *Fence) {
	return func(f *Fence) { f.cfg.Class, f.cfg.Rows, f.cfg.Place = SQLFence, store, store.place }
}

// r13 in the strong form: a gone instance is done when its row is deleted, which waits for its open transaction. Of whatever service it is.
func TestRows(t *testing.T) {
	t.Parallel()
	store := newRows("here")
	p := newProxy(t)
	m := join(t, "m", client(t, p), strong(store), func(f *Fence) { f.cfg.Service = "another" })
	v := m.serves()
	open := store.of(v.life.id)
	open.RLock()
	p.cut()
	w := revoke(revoker(t, strong(store)), 1)
	if w.returned(6 * time.Second) {
		t.Error("returned while a transaction was open")
	}
	open.RUnlock() // rolled back or committed: it is decided
	if !w.returned(20 * time.Second) {
		t.Errorf("%+v, %v", w.r, w.err)
	}
	if store.of(v.life.id) != nil {
		t.Error("a commit after it would find its row")
	}
}

// A row that the revoker cannot delete, since its own are elsewhere or it has none, keeps nobody waiting for ever: to him the member is of class sql.
func TestRowsElsewhere(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*Fence){"elsewhere": strong(newRows("there")), "without": func(*Fence) {}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			store := newRows("here")
			p := newProxy(t)
			v := join(t, "m", client(t, p), strong(store)).serves()
			store.of(v.life.id).RLock()
			p.cut()
			begin := time.Now()
			if w := revoke(revoker(t, change), 1); !w.returned(20*time.Second) || time.Since(begin) < time.Second {
				t.Errorf("%+v, %v after %v", w.r, w.err, time.Since(begin))
			}
			if store.of(v.life.id) == nil {
				t.Error("the row was deleted, which this revoker cannot")
			}
		})
	}
}

// A member whose row was taken away has a new life, and a new row.
func TestRowTakenAway(t *testing.T) {
	t.Parallel()
	store := newRows("here")
	m := join(t, "m", client(t, nil), strong(store))
	v := m.serves()
	close(store.gone[v.life.id]) // a transaction did not find it
	<-v.Superseded()
	now := m.serves()
	if now.life == v.life || m.effect(v) || store.of(now.life.id) == nil {
		t.Error("it goes on in the life whose row is gone")
	}
	if store.of(v.life.id) != nil {
		t.Error("the row of a life that is over and drained is left")
	}
}

// What a member leaves that died with its row is taken away by another one, without a change that needs it.
func TestTidy(t *testing.T) {
	t.Parallel()
	store := newRows("here")
	stays := join(t, "stays", client(t, nil), strong(store))
	p := newProxy(t)
	dead := join(t, "dead", client(t, p), strong(store))
	v := dead.serves()
	mark := dead.markOf(v.life.key)
	store.of(v.life.id).RLock() // it cannot take its row away itself
	p.cut()
	dead.stop()
	time.Sleep(3 * time.Second) // its lease, and its last try
	store.of(v.life.id).RUnlock()
	deadline := time.Now().Add(30 * time.Second)
	for {
		resp, err := stays.cfg.Client.Get(t.Context(), mark)
		if err != nil {
			t.Fatal(err)
		}
		if len(resp.Kvs) == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the mark still stands")
		}
		time.Sleep(100 * time.Millisecond)
	}
	if store.of(v.life.id) != nil {
		t.Error("the mark is gone, and the row is not")
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		store.mu.Lock()
		swept := store.swept
		store.mu.Unlock()
		if slices.Equal(swept, []string{stays.serves().life.id}) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("swept but %v", swept)
		}
	}
}
