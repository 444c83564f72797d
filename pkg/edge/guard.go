package edge

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/time/rate"
)

const (
	// mostBlock is how long the headers of one request may be as they are sent.
	mostBlock = 256 << 10
	// remembered is how many of the streams that a client has ended are known as such.
	remembered = 256
	// mostFrame is how large a frame may be: what a server takes that says nothing else.
	mostFrame = 16 << 10
	// mostSettings is how many settings one frame may have.
	mostSettings = 64
	// lingers is for how long a connection that has ended is read from still.
	lingers = 200 * time.Millisecond
	// freeHeaders is how large the headers of a request may be, as they are counted by RFC 9113 section 6.5.2, at no cost: a token, a proof of possession
	// and a trace have room.
	freeHeaders = 6 << 10
	// windowBytes is how many bytes that went to a client give him a frame of his allowance back: he answers to them with WINDOW_UPDATE.
	windowBytes = 4 << 10
)

// Guarded is an HTTP/2 connection that ends at the first frame that no client may send: grpc-go's server passes many of them over, and
// answers to floods of frames that cost it work and the client nothing.
type Guarded struct {
	net.Conn
	now    func() time.Time
	onEnd  func()
	frames *rate.Limiter // frames that ask for work and carry nothing
	begins func(n int) bool
	sent   atomic.Int64 // bytes to the client
	paid   int64        // of sent, those that have given allowance back

	// What has been read of the frame that is coming.
	preface int // bytes of the client's preface to come
	head    [9]byte
	have    int    // of head
	left    uint32 // of the payload
	keep    []byte // what has come of a payload that is looked at whole
	frame   http2.FrameHeader

	settled bool   // the first SETTINGS has come
	newest  uint32 // the highest stream of the client's
	window  int64  // what has been added to that of the connection
	block   block
	ended   [remembered]uint32 // streams that the client has ended, a ring
	next    int
	bodies  map[uint32]int64 // bytes that are still to come, of streams that said how many
	broken  error
}

// Guard looks after a client's side of HTTP/2 on c, from its first byte. perSecond is how many frames that carry nothing (PING, SETTINGS, PRIORITY,
// RST_STREAM, WINDOW_UPDATE beyond what it was sent, empty DATA) it may send, with twice that in a burst. begins is asked for each stream that it
// begins, with 1, and for headers that are large, with each KiB beyond freeHeaders: a server refuses what is more than it takes at a time before
// anybody can count it, and each refusal is work. onEnd is told of a connection that had to be ended.
func Guard(c net.Conn, perSecond float64, begins func(n int) bool, now func() time.Time, onEnd func()) *Guarded {
	g := &Guarded{Conn: c, now: now, onEnd: onEnd, frames: rate.NewLimiter(rate.Limit(perSecond), int(2*perSecond)+1), begins: begins, preface: len(http2.ClientPreface), bodies: make(map[uint32]int64)}
	g.block.init()
	return g
}

// Read implements net.Conn. It is for one reader at a time.
func (g *Guarded) Read(b []byte) (int, error) {
	if g.broken != nil {
		return 0, g.broken
	}
	n, err := g.Conn.Read(b)
	if v := g.look(b[:n]); v != nil {
		g.broken = v
		g.onEnd()
		g.away(v.code)
		return 0, v
	}
	return n, err
}

// Write implements net.Conn.
func (g *Guarded) Write(b []byte) (int, error) {
	n, err := g.Conn.Write(b)
	g.sent.Add(int64(n))
	return n, err
}

// violation is why a connection ends.
type violation struct {
	code http2.ErrCode
	what string
}

// Error implements error.
func (v *violation) Error() string { return fmt.Sprintf("edge: %s: %s", v.code, v.what) }

func wrong(code http2.ErrCode, what string) *violation { return &violation{code, what} }

// away tells the client, as far as that works, why its connection ends.
func (g *Guarded) away(code http2.ErrCode) {
	f := make([]byte, 0, 17)
	f = append(f, 0, 0, 8, byte(http2.FrameGoAway), 0, 0, 0, 0, 0)
	f = binary.BigEndian.AppendUint32(f, g.newest)
	f = binary.BigEndian.AppendUint32(f, uint32(code))
	_ = g.Conn.SetWriteDeadline(time.Now().Add(time.Second)) // a socket's deadline is on the system's clock
	_, _ = g.Conn.Write(f)
	// A socket that is closed with something unread in it resets, and the client would not see what was just said.
	_ = g.Conn.SetReadDeadline(time.Now().Add(lingers))
	_, _ = io.CopyN(io.Discard, g.Conn, 4*mostFrame)
}

// look takes the frames in what was read apart.
func (g *Guarded) look(b []byte) *violation {
	if n := min(g.preface, len(b)); n > 0 { // the server checks it
		g.preface -= n
		b = b[n:]
	}
	for len(b) > 0 {
		if g.have < len(g.head) {
			n := copy(g.head[g.have:], b)
			g.have += n
			b = b[n:]
			if g.have < len(g.head) {
				return nil
			}
			if v := g.begin(); v != nil {
				return v
			}
		}
		n := min(len(b), int(g.left))
		if n > 0 || g.left == 0 {
			last := uint32(n) == g.left
			g.left -= uint32(n)
			if v := g.payload(b[:n], last); v != nil {
				return v
			}
			b = b[n:]
		}
		if g.left > 0 {
			return nil
		}
		g.have = 0
	}
	return nil
}

// begin judges a frame by its head.
func (g *Guarded) begin() *violation {
	f := http2.FrameHeader{
		Length: uint32(g.head[0])<<16 | uint32(g.head[1])<<8 | uint32(g.head[2]), Type: http2.FrameType(g.head[3]), Flags: http2.Flags(g.head[4]),
		StreamID: binary.BigEndian.Uint32(g.head[5:]) &^ (1 << 31),
	}
	g.frame, g.left, g.keep = f, f.Length, g.keep[:0]
	if f.Length > mostFrame {
		return wrong(http2.ErrCodeFrameSize, "a frame larger than was asked for")
	}
	if !g.settled && f.Type != http2.FrameSettings {
		return wrong(http2.ErrCodeProtocol, "the first frame is not SETTINGS")
	}
	if g.block.stream != 0 && (f.Type != http2.FrameContinuation || f.StreamID != g.block.stream) {
		return wrong(http2.ErrCodeProtocol, "headers are interrupted")
	}
	idle := f.StreamID > g.newest
	switch f.Type {
	case http2.FrameData:
		if idle || f.StreamID == 0 {
			return wrong(http2.ErrCodeProtocol, "DATA on an idle stream")
		}
		if g.over(f.StreamID) {
			return wrong(http2.ErrCodeStreamClosed, "DATA on a closed stream")
		}
		if f.Length == 0 && !f.Flags.Has(http2.FlagDataEndStream) {
			return g.costs()
		}
	case http2.FrameHeaders:
		if f.StreamID%2 == 0 {
			return wrong(http2.ErrCodeProtocol, "HEADERS on a stream that is not the client's")
		}
		if g.over(f.StreamID) {
			return wrong(http2.ErrCodeStreamClosed, "HEADERS on a closed stream")
		}
		if idle && !g.begins(1) {
			return wrong(http2.ErrCodeEnhanceYourCalm, "a flood of streams")
		}
		g.block.begin(f.StreamID, !idle, f.Flags.Has(http2.FlagHeadersEndStream))
		g.newest = max(g.newest, f.StreamID)
	case http2.FrameContinuation:
		if g.block.stream == 0 {
			return wrong(http2.ErrCodeProtocol, "CONTINUATION of nothing")
		}
		if f.Length == 0 {
			return g.costs()
		}
	case http2.FramePriority:
		if f.Length != 5 {
			return wrong(http2.ErrCodeFrameSize, "PRIORITY of another size")
		}
		return g.costs()
	case http2.FrameRSTStream:
		if idle || f.StreamID == 0 {
			return wrong(http2.ErrCodeProtocol, "RST_STREAM on an idle stream")
		}
		g.end(f.StreamID)
		return g.costs()
	case http2.FrameSettings:
		if f.Length > 6*mostSettings {
			return wrong(http2.ErrCodeEnhanceYourCalm, "too many settings")
		}
		g.settled = true
		return g.costs()
	case http2.FramePushPromise:
		return wrong(http2.ErrCodeProtocol, "a client pushes nothing")
	case http2.FramePing:
		return g.costs()
	case http2.FrameWindowUpdate:
		if f.Length != 4 {
			return wrong(http2.ErrCodeFrameSize, "WINDOW_UPDATE of another size")
		}
		if idle {
			return wrong(http2.ErrCodeProtocol, "WINDOW_UPDATE on an idle stream")
		}
		return g.costs()
	default: // of an extension: it is passed over
		if f.Length == 0 {
			return g.costs()
		}
	}
	return nil
}

// costs takes a frame off the client's allowance.
func (g *Guarded) costs() *violation {
	if g.frames.AllowN(g.now(), 1) {
		return nil
	}
	if sent := g.sent.Load(); sent-g.paid >= windowBytes {
		g.paid += windowBytes
		return nil
	}
	return wrong(http2.ErrCodeEnhanceYourCalm, "a flood of frames that carry nothing")
}

// payload judges what has come of a frame's content.
func (g *Guarded) payload(b []byte, last bool) *violation {
	f := g.frame
	switch f.Type {
	case http2.FrameData:
		return g.data(len(b), last)
	case http2.FrameHeaders, http2.FrameContinuation:
		return g.headers(b, last)
	case http2.FramePriority, http2.FrameSettings, http2.FrameWindowUpdate:
		g.keep = append(g.keep, b...) // begin has bounded it
	}
	if !last {
		return nil
	}
	switch f.Type {
	case http2.FramePriority:
		if binary.BigEndian.Uint32(g.keep)&^(1<<31) == f.StreamID {
			return wrong(http2.ErrCodeProtocol, "a stream depends on itself")
		}
	case http2.FrameSettings:
		return settings(g.keep)
	case http2.FrameWindowUpdate:
		if f.StreamID == 0 {
			g.window += int64(binary.BigEndian.Uint32(g.keep) &^ (1 << 31))
			if g.window+65535-g.sent.Load() > 1<<31-1 { // more has been sent than took of the window
				return wrong(http2.ErrCodeFlowControl, "the window is larger than may be")
			}
		}
	}
	return nil
}

// settings judges the values in a SETTINGS frame.
func settings(b []byte) *violation {
	for ; len(b) >= 6; b = b[6:] {
		id, v := http2.SettingID(binary.BigEndian.Uint16(b)), binary.BigEndian.Uint32(b[2:])
		if err := (http2.Setting{ID: id, Val: v}).Valid(); err != nil {
			if code, ok := err.(http2.ConnectionError); ok { //nolint:errorlint // what Valid returns is not wrapped
				return wrong(http2.ErrCode(code), "a setting out of range")
			}
			return wrong(http2.ErrCodeProtocol, "a setting out of range")
		}
	}
	return nil
}

// over tells whether a client has ended a stream, as far as that is remembered.
func (g *Guarded) over(stream uint32) bool {
	for _, s := range g.ended {
		if s == stream {
			return true
		}
	}
	return false
}

// end notes that a client sends no more on a stream.
func (g *Guarded) end(stream uint32) {
	delete(g.bodies, stream)
	if g.over(stream) {
		return
	}
	g.ended[g.next] = stream
	g.next = (g.next + 1) % remembered
}

// data counts a body against the length that its headers gave. Padding counts: who pads gives no length.
func (g *Guarded) data(n int, last bool) *violation {
	id := g.frame.StreamID
	left, told := g.bodies[id]
	if told && g.frame.Flags.Has(http2.FlagDataPadded) {
		delete(g.bodies, id)
		told = false
	}
	if told {
		if left -= int64(n); left < 0 {
			return wrong(http2.ErrCodeProtocol, "a body longer than it said")
		}
		g.bodies[id] = left
	}
	if last && g.frame.Flags.Has(http2.FlagDataEndStream) {
		g.end(id)
		if told && left > 0 {
			return wrong(http2.ErrCodeProtocol, "a body shorter than it said")
		}
	}
	return nil
}
