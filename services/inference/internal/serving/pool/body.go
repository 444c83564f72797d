package pool

// room is how long the head of a request may be. It stands in front of the body, so that both leave in one write.
const room = 1 << 10

// Body is the body of a request, with room in front of it.
type Body struct{ buf []byte }

// NewBody makes an empty body that takes n bytes before it has to grow.
func NewBody(n int) *Body { return &Body{buf: make([]byte, room, room+n)} }

// Bytes are what the body holds. They belong to it.
func (b *Body) Bytes() []byte { return b.buf[room:] }

// Len is how much it holds.
func (b *Body) Len() int { return len(b.buf) - room }

// Cap is how much it holds before it has to grow.
func (b *Body) Cap() int { return cap(b.buf) - room }

// Spare is the free space behind what it holds, for Advance.
func (b *Body) Spare() []byte { return b.buf[len(b.buf):cap(b.buf)] }

// Advance takes n bytes of Spare as held.
func (b *Body) Advance(n int) { b.buf = b.buf[:len(b.buf)+n] }

// Reset empties it.
func (b *Body) Reset() { b.buf = b.buf[:room] }

// Grow makes it take n bytes in all.
func (b *Body) Grow(n int) {
	if n <= b.Cap() {
		return
	}
	buf := make([]byte, len(b.buf), room+n)
	copy(buf[room:], b.buf[room:])
	b.buf = buf
}

// Append adds bytes.
func (b *Body) Append(p []byte) { b.buf = append(b.buf, p...) }

// Fill adds what write appends.
func (b *Body) Fill(write func([]byte) []byte) { b.buf = write(b.buf) }

// Clone is a copy.
func (b *Body) Clone() *Body {
	c := NewBody(b.Len())
	c.Append(b.Bytes())
	return c
}
