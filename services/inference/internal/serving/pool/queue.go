package pool

// waiter is a request that waits for a worker.
type waiter struct {
	ready      chan given // has room for one
	prev, next *waiter
	in         bool
}

// given is what a waiter gets.
type given struct {
	conn *Conn
	err  error
}

// queue is who waits, the first first. The Pool's lock guards it.
type queue struct {
	first, last *waiter
	len         int
}

func (q *queue) push(w *waiter) {
	w.in, w.prev = true, q.last
	if q.last != nil {
		q.last.next = w
	} else {
		q.first = w
	}
	q.last = w
	q.len++
}

func (q *queue) remove(w *waiter) {
	if w.prev != nil {
		w.prev.next = w.next
	} else {
		q.first = w.next
	}
	if w.next != nil {
		w.next.prev = w.prev
	} else {
		q.last = w.prev
	}
	w.in, w.prev, w.next = false, nil, nil
	q.len--
}

func (q *queue) pop() *waiter {
	w := q.first
	q.remove(w)
	return w
}

func (q *queue) fail(err error) {
	for q.len > 0 {
		q.pop().ready <- given{err: err}
	}
}
