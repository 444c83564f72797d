package edge

import (
	"encoding/binary"
	"strconv"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// block is the headers of a request on their way, which may come in several frames.
type block struct {
	stream  uint32 // 0: none is coming
	trailer bool
	end     bool // of the stream
	bytes   int
	size    int  // of what has been read of them
	began   bool // past the padding's length and the priority of HEADERS
	skip    []byte
	pad     int

	decoder *hpack.Decoder
	seen    map[string]int // pseudo headers
	regular bool           // one that is not pseudo has come
	length  int64          // content-length, -1: none
	fault   string
}

func (b *block) init() {
	b.seen = make(map[string]int, 4)
	b.decoder = hpack.NewDecoder(4096, b.field)
	b.decoder.SetMaxStringLength(mostBlock)
}

func (b *block) begin(stream uint32, trailer, end bool) {
	clear(b.seen)
	b.stream, b.trailer, b.end, b.bytes, b.began, b.skip, b.pad = stream, trailer, end, 0, false, b.skip[:0], 0
	b.regular, b.length, b.fault, b.size = false, -1, "", 0
}

// field judges one header (RFC 9113 section 8).
func (b *block) field(f hpack.HeaderField) {
	if b.size += int(f.Size()); b.size > mostBlock {
		b.fault = "headers that are larger than they look"
		return
	}
	switch {
	case f.IsPseudo():
		b.seen[f.Name]++
		if b.trailer || b.regular || b.seen[f.Name] > 1 || f.Name != ":method" && f.Name != ":scheme" && f.Name != ":path" && f.Name != ":authority" {
			b.fault = "a pseudo header that may not be there"
		}
		if f.Value == "" && f.Name != ":authority" {
			b.fault = "an empty pseudo header"
		}
		return
	case f.Name == "te" && f.Value != "trailers":
		b.fault = "TE of another value"
	case f.Name == "connection", f.Name == "keep-alive", f.Name == "proxy-connection", f.Name == "transfer-encoding", f.Name == "upgrade":
		b.fault = "a header of the connection"
	case f.Name == "content-length":
		n, err := strconv.ParseInt(f.Value, 10, 64)
		if err != nil || n < 0 || b.length >= 0 && b.length != n {
			b.fault = "a content-length that is none"
		}
		b.length = n
	}
	b.regular = true
	for i := range len(f.Name) {
		if c := f.Name[i]; c >= 'A' && c <= 'Z' {
			b.fault = "a header in capitals"
		}
	}
}

// whole judges what is complete.
func (b *block) whole() string {
	if b.fault == "" && !b.trailer && (b.seen[":method"] != 1 || b.seen[":scheme"] != 1 || b.seen[":path"] != 1) {
		return "a request without method, scheme or path"
	}
	if b.fault == "" && b.trailer && !b.end {
		return "trailers that are not the end"
	}
	return b.fault
}

// headers takes a piece of HEADERS or CONTINUATION.
func (g *Guarded) headers(b []byte, last bool) *violation {
	k, f := &g.block, g.frame
	if k.bytes += len(b); k.bytes > mostBlock {
		return wrong(http2.ErrCodeEnhanceYourCalm, "headers without an end")
	}
	if f.Type == http2.FrameHeaders && !k.began {
		var v *violation
		if b, v = g.opening(b, last); v != nil || !k.began {
			return v
		}
	}
	if f.Type == http2.FrameHeaders && k.pad > 0 { // padding is the frame's last; what is left of the frame says where it begins
		b = b[:max(0, min(len(b), len(b)+int(g.left)-k.pad))]
	}
	if _, err := k.decoder.Write(b); err != nil {
		return wrong(http2.ErrCodeCompression, "headers that cannot be read")
	}
	if !last || !f.Flags.Has(http2.FlagHeadersEndHeaders) { // the same bit in CONTINUATION
		return nil
	}
	if err := k.decoder.Close(); err != nil {
		return wrong(http2.ErrCodeCompression, "headers that break off")
	}
	stream := k.stream
	k.stream = 0
	if fault := k.whole(); fault != "" {
		return wrong(http2.ErrCodeProtocol, fault)
	}
	if n := (k.size - freeHeaders) >> 10; n > 0 && !g.begins(n) {
		return wrong(http2.ErrCodeEnhanceYourCalm, "a flood of large headers")
	}
	switch {
	case k.end:
		left := g.bodies[stream]
		g.end(stream)
		if left > 0 || k.length > 0 && !k.trailer {
			return wrong(http2.ErrCodeProtocol, "a body shorter than it said")
		}
	case k.length >= 0 && !k.trailer:
		if len(g.bodies) >= 4096 { // the server has ended them long ago
			clear(g.bodies)
		}
		g.bodies[stream] = k.length
	}
	return nil
}

// opening takes the padding's length and the priority off the beginning of HEADERS, whose first bytes may come one by one.
func (g *Guarded) opening(b []byte, last bool) ([]byte, *violation) {
	k, f := &g.block, g.frame
	want := 0
	if f.Flags.Has(http2.FlagHeadersPadded) {
		want++
	}
	if f.Flags.Has(http2.FlagHeadersPriority) {
		want += 5
	}
	n := min(want-len(k.skip), len(b))
	k.skip, b = append(k.skip, b[:n]...), b[n:]
	if len(k.skip) < want {
		if last {
			return nil, wrong(http2.ErrCodeFrameSize, "HEADERS of too few bytes")
		}
		return nil, nil
	}
	k.began = true
	at := k.skip
	if f.Flags.Has(http2.FlagHeadersPadded) {
		k.pad, at = int(at[0]), at[1:]
		if k.pad > int(f.Length)-want {
			return nil, wrong(http2.ErrCodeProtocol, "more padding than there is room for")
		}
	}
	if f.Flags.Has(http2.FlagHeadersPriority) && binary.BigEndian.Uint32(at)&^(1<<31) == f.StreamID {
		return nil, wrong(http2.ErrCodeProtocol, "a stream depends on itself")
	}
	return b, nil
}
