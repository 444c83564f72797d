package authz

import (
	"hash/maphash"
	"iter"
	"maps"
)

// shards bounds what a change copies: one part in so many of a table.
const shards = 256

// table is an immutable map from ids, compared byte for byte. Readers share it without locks; a writer edits a copy of which
// only the touched shards are new. The zero value is not usable: it has no seed.
type table[V any] struct {
	seed  maphash.Seed
	parts [shards]map[string]V
}

func (t *table[V]) get(key string) (V, bool) {
	v, ok := t.parts[maphash.String(t.seed, key)%shards][key]
	return v, ok
}

func (t *table[V]) all() iter.Seq2[string, V] {
	return func(yield func(string, V) bool) {
		for _, part := range t.parts {
			for k, v := range part {
				if !yield(k, v) {
					return
				}
			}
		}
	}
}

// edit is a table that is being written. It is for one goroutine.
type edit[V any] struct {
	table[V]
	own [shards]bool
}

func newEdit[V any](from *table[V]) *edit[V] { return &edit[V]{table: *from} }

func (e *edit[V]) part(key string) map[string]V {
	i := maphash.String(e.seed, key) % shards
	if !e.own[i] {
		e.own[i] = true
		e.parts[i] = maps.Clone(e.parts[i])
		if e.parts[i] == nil {
			e.parts[i] = map[string]V{}
		}
	}
	return e.parts[i]
}

func (e *edit[V]) set(key string, v V)         { e.part(key)[key] = v }
func (e *edit[V]) del(key string)              { delete(e.part(key), key) }
func (e *edit[V]) done() *table[V]             { return &e.table }
func (e *edit[V]) clear()                      { e.parts, e.own = [shards]map[string]V{}, [shards]bool{} }
func empty[V any](seed maphash.Seed) *table[V] { return &table[V]{seed: seed} }
