package edge

import (
	"bytes"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// script writes frames as a client does.
type script struct {
	*http2.Framer
	b   *bytes.Buffer
	enc *hpack.Encoder
	h   bytes.Buffer
}

func newScript() *script {
	b := &bytes.Buffer{}
	s := &script{Framer: http2.NewFramer(b, nil), b: b}
	s.AllowIllegalWrites = true
	s.enc = hpack.NewEncoder(&s.h)
	b.WriteString(http2.ClientPreface)
	_ = s.WriteSettings()
	return s
}

// fields encodes headers: "name: value".
func (s *script) fields(lines ...string) []byte {
	s.h.Reset()
	for _, l := range lines {
		name, value, _ := strings.Cut(l[1:], ":")
		_ = s.enc.WriteField(hpack.HeaderField{Name: l[:1] + name, Value: strings.TrimPrefix(value, " ")})
	}
	return bytes.Clone(s.h.Bytes())
}

func (s *script) request(id uint32, end bool, more ...string) {
	_ = s.WriteHeaders(http2.HeadersFrameParam{StreamID: id, EndHeaders: true, EndStream: end, BlockFragment: s.fields(append([]string{":method: POST", ":scheme: https", ":path: /a/b", ":authority: x"}, more...)...)})
}

// fed is a connection from which a client's bytes come, at most some at a time; what goes to him is kept.
type fed struct {
	net.Conn
	in  *bytes.Reader
	at  int
	out bytes.Buffer
}

func (f *fed) Read(b []byte) (int, error)       { return f.in.Read(b[:min(len(b), f.at)]) }
func (f *fed) Write(b []byte) (int, error)      { return f.out.Write(b) }
func (f *fed) SetWriteDeadline(time.Time) error { return nil }
func (f *fed) SetReadDeadline(time.Time) error  { return nil }

// judged reads a client's bytes to their end; it returns the code that the connection ended with, and that the client was told.
func judged(t testing.TB, in []byte, at int, perSecond float64) (code, told http2.ErrCode) {
	t.Helper()
	f := &fed{in: bytes.NewReader(in), at: at}
	now := time.Now()
	ends := 0
	rates := NewRates(4 * perSecond)
	g := Guard(f, perSecond, func(n int) bool { return rates.Take("a", n, now) }, func() time.Time { return now }, func() { ends++ })
	_, err := io.Copy(io.Discard, io.MultiReader(g))
	if err == nil {
		return http2.ErrCodeNo, http2.ErrCodeNo
	}
	var v *violation
	if !errors.As(err, &v) {
		t.Fatal(err)
	}
	if _, again := g.Read(make([]byte, 1)); again == nil || ends != 1 {
		t.Errorf("it is read on, or ends %d times", ends)
	}
	fr, err := http2.NewFramer(nil, &f.out).ReadFrame()
	ok(t, err)
	return v.code, fr.(*http2.GoAwayFrame).ErrCode
}

// D10: what no client may send ends its connection, however it is cut into reads; what a client may send does not.
func TestGuard(t *testing.T) {
	block := func(s *script, f http2.HeadersFrameParam, lines ...string) {
		f.BlockFragment = s.fields(lines...)
		_ = s.WriteHeaders(f)
	}
	post := []string{":method: POST", ":scheme: https", ":path: /a/b"}
	for name, tc := range map[string]struct {
		write func(s *script)
		want  http2.ErrCode
	}{
		"a call": {func(s *script) {
			s.request(1, false, "te: trailers", "content-type: application/grpc")
			_ = s.WriteData(1, false, []byte("abc"))
			_ = s.WriteWindowUpdate(0, 1000)
			_ = s.WriteWindowUpdate(1, 1000)
			_ = s.WriteData(1, true, nil)
			_ = s.WritePing(false, [8]byte{})
			_ = s.WriteRSTStream(1, http2.ErrCodeCancel)
			_ = s.WriteWindowUpdate(1, 1000)
			_ = s.WriteSettingsAck()
		}, 0},
		"padded, with priority, in pieces": {func(s *script) {
			b := s.fields(post...)
			_ = s.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: b[:3], PadLength: 9, Priority: http2.PriorityParam{StreamDep: 7, Weight: 3}})
			_ = s.WriteContinuation(1, false, b[3:4])
			_ = s.WriteContinuation(1, true, b[4:])
			s.request(3, true)
		}, 0},
		"padding alone": {func(s *script) {
			block(s, http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, EndStream: true, PadLength: 200}, post...)
		}, 0},
		"trailers": {func(s *script) {
			s.request(1, false)
			block(s, http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, EndStream: true}, "x-t: 1")
		}, 0},
		"a body of its length": {func(s *script) {
			s.request(1, false, "content-length: 5")
			_ = s.WriteData(1, false, []byte("abc"))
			_ = s.WriteData(1, true, []byte("de"))
		}, 0},
		"an extension": {func(s *script) { _ = s.WriteRawFrame(0x77, 0, 0, []byte("x")) }, 0},
		"settings":     {func(s *script) { _ = s.WriteSettings(http2.Setting{ID: http2.SettingMaxFrameSize, Val: 1 << 20}) }, 0},

		"no settings first":   {func(s *script) { s.b.Truncate(len(http2.ClientPreface)); _ = s.WritePing(false, [8]byte{}) }, http2.ErrCodeProtocol},
		"DATA, idle":          {func(s *script) { _ = s.WriteData(1, false, []byte("x")) }, http2.ErrCodeProtocol},
		"RST, idle":           {func(s *script) { _ = s.WriteRSTStream(1, 0) }, http2.ErrCodeProtocol},
		"WINDOW_UPDATE, idle": {func(s *script) { _ = s.WriteWindowUpdate(1, 1) }, http2.ErrCodeProtocol},
		"DATA after the end":  {func(s *script) { s.request(1, true); _ = s.WriteData(1, false, []byte("x")) }, http2.ErrCodeStreamClosed},
		"DATA after RST": {func(s *script) {
			s.request(1, false)
			_ = s.WriteRSTStream(1, 0)
			_ = s.WriteData(1, false, []byte("x"))
		}, http2.ErrCodeStreamClosed},
		"HEADERS after the end": {func(s *script) { s.request(1, true); s.request(1, true) }, http2.ErrCodeStreamClosed},
		"an even stream":        {func(s *script) { s.request(2, true) }, http2.ErrCodeProtocol},
		"a promise": {func(s *script) {
			s.request(1, false)
			_ = s.WriteRawFrame(http2.FramePushPromise, 4, 1, []byte{0, 0, 0, 2})
		}, http2.ErrCodeProtocol},
		"PRIORITY on itself": {func(s *script) { _ = s.WritePriority(1, http2.PriorityParam{StreamDep: 1}) }, http2.ErrCodeProtocol},
		"PRIORITY too long":  {func(s *script) { _ = s.WriteRawFrame(http2.FramePriority, 0, 1, make([]byte, 6)) }, http2.ErrCodeFrameSize},
		"HEADERS on itself": {func(s *script) {
			block(s, http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, Priority: http2.PriorityParam{StreamDep: 1, Weight: 1}}, post...)
		}, http2.ErrCodeProtocol},
		"interrupted by another": {func(s *script) { block(s, http2.HeadersFrameParam{StreamID: 1}, post...); s.request(3, true) }, http2.ErrCodeProtocol},
		"interrupted by DATA": {func(s *script) {
			block(s, http2.HeadersFrameParam{StreamID: 1}, post...)
			_ = s.WriteData(1, true, nil)
		}, http2.ErrCodeProtocol},
		"CONTINUATION of nothing":      {func(s *script) { _ = s.WriteContinuation(1, true, nil) }, http2.ErrCodeProtocol},
		"ENABLE_PUSH 2":                {func(s *script) { _ = s.WriteSettings(http2.Setting{ID: http2.SettingEnablePush, Val: 2}) }, http2.ErrCodeProtocol},
		"MAX_FRAME_SIZE too small":     {func(s *script) { _ = s.WriteSettings(http2.Setting{ID: http2.SettingMaxFrameSize, Val: 100}) }, http2.ErrCodeProtocol},
		"INITIAL_WINDOW_SIZE too much": {func(s *script) { _ = s.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 31}) }, http2.ErrCodeFlowControl},
		"many settings":                {func(s *script) { _ = s.WriteRawFrame(http2.FrameSettings, 0, 0, make([]byte, 6*65)) }, http2.ErrCodeEnhanceYourCalm},
		"too wide a window":            {func(s *script) { _ = s.WriteWindowUpdate(0, 1<<31-1); _ = s.WriteWindowUpdate(0, 1) }, http2.ErrCodeFlowControl},
		"no method":                    {func(s *script) { block(s, http2.HeadersFrameParam{StreamID: 1, EndHeaders: true}, post[1:]...) }, http2.ErrCodeProtocol},
		"no path":                      {func(s *script) { block(s, http2.HeadersFrameParam{StreamID: 1, EndHeaders: true}, post[:2]...) }, http2.ErrCodeProtocol},
		"an empty path": {func(s *script) {
			block(s, http2.HeadersFrameParam{StreamID: 1, EndHeaders: true}, ":method: POST", ":scheme: https", ":path: ")
		}, http2.ErrCodeProtocol},
		"two paths": {func(s *script) { s.request(1, true, ":path: /c") }, http2.ErrCodeProtocol},
		"a pseudo header after others": {func(s *script) {
			block(s, http2.HeadersFrameParam{StreamID: 1, EndHeaders: true}, append([]string{"x-a: 1"}, post...)...)
		}, http2.ErrCodeProtocol},
		"an unknown pseudo header": {func(s *script) {
			block(s, http2.HeadersFrameParam{StreamID: 1, EndHeaders: true}, append([]string{":status: 1"}, post...)...)
		}, http2.ErrCodeProtocol},
		"a pseudo header in trailers": {func(s *script) {
			s.request(1, false)
			block(s, http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, EndStream: true}, ":path: /x")
		}, http2.ErrCodeProtocol},
		"trailers without the end": {func(s *script) {
			s.request(1, false)
			block(s, http2.HeadersFrameParam{StreamID: 1, EndHeaders: true}, "x-t: 1")
		}, http2.ErrCodeProtocol},
		"te: gzip":                 {func(s *script) { s.request(1, true, "te: gzip") }, http2.ErrCodeProtocol},
		"connection":               {func(s *script) { s.request(1, true, "connection: close") }, http2.ErrCodeProtocol},
		"transfer-encoding":        {func(s *script) { s.request(1, true, "transfer-encoding: chunked") }, http2.ErrCodeProtocol},
		"capitals":                 {func(s *script) { s.request(1, true, "X-A: 1") }, http2.ErrCodeProtocol},
		"two lengths":              {func(s *script) { s.request(1, false, "content-length: 1", "content-length: 2") }, http2.ErrCodeProtocol},
		"longer than said":         {func(s *script) { s.request(1, false, "content-length: 1"); _ = s.WriteData(1, true, []byte("ab")) }, http2.ErrCodeProtocol},
		"shorter than said":        {func(s *script) { s.request(1, false, "content-length: 3"); _ = s.WriteData(1, true, []byte("ab")) }, http2.ErrCodeProtocol},
		"nothing of what was said": {func(s *script) { s.request(1, true, "content-length: 3") }, http2.ErrCodeProtocol},
		"no HPACK": {func(s *script) {
			_ = s.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, BlockFragment: []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}})
		}, http2.ErrCodeCompression},
		"half of HPACK": {func(s *script) {
			b := s.fields(post...)
			_ = s.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, BlockFragment: b[:len(b)-2]})
		}, http2.ErrCodeCompression},
		"a frame too large":        {func(s *script) { s.request(1, false); _ = s.WriteData(1, false, make([]byte, 16385)) }, http2.ErrCodeFrameSize},
		"padding beyond the frame": {func(s *script) { _ = s.WriteRawFrame(http2.FrameHeaders, 0xc, 1, []byte{200, 1, 2}) }, http2.ErrCodeProtocol},
		"HEADERS without priority": {func(s *script) { _ = s.WriteRawFrame(http2.FrameHeaders, 0x24, 1, []byte{0, 0}) }, http2.ErrCodeFrameSize},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScript()
			tc.write(s)
			for _, at := range []int{1, 7, 1 << 20} {
				if code, told := judged(t, s.b.Bytes(), at, 100); code != tc.want || told != tc.want {
					t.Errorf("read by %d: it ended with %v, and the client was told %v; want %v", at, code, told, tc.want)
				}
			}
		})
	}
}

// D10: a flood of frames that carry nothing ends the connection, and one that answers to what was sent does not.
func TestGuardEndsFloods(t *testing.T) {
	for name, write := range map[string]func(s *script){
		"PING":            func(s *script) { _ = s.WritePing(false, [8]byte{}) },
		"SETTINGS":        func(s *script) { _ = s.WriteSettings() },
		"SETTINGS ACK":    func(s *script) { _ = s.WriteSettingsAck() },
		"PRIORITY":        func(s *script) { _ = s.WritePriority(9, http2.PriorityParam{StreamDep: 3}) },
		"WINDOW_UPDATE":   func(s *script) { _ = s.WriteWindowUpdate(0, 1) },
		"RST_STREAM":      func(s *script) { _ = s.WriteRSTStream(1, http2.ErrCodeCancel) },
		"empty DATA":      func(s *script) { _ = s.WriteData(3, false, nil) },
		"empty extension": func(s *script) { _ = s.WriteRawFrame(0x77, 0, 0, nil) },
	} {
		s := newScript()
		s.request(1, false)
		s.request(3, false)
		for range 15 {
			write(s)
		}
		if code, _ := judged(t, s.b.Bytes(), 1<<20, 10); code != http2.ErrCodeNo {
			t.Errorf("%s: a few end the connection: %v", name, code)
		}
		for range 15 {
			write(s)
		}
		if code, told := judged(t, s.b.Bytes(), 1<<20, 10); code != http2.ErrCodeEnhanceYourCalm || told != code {
			t.Errorf("%s: many do not end the connection: %v, %v", name, code, told)
		}
	}
	t.Run("CONTINUATION", func(t *testing.T) {
		s := newScript()
		_ = s.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: s.fields(":method: POST")})
		for i := 0; i < mostBlock; i += 1 << 10 {
			_ = s.WriteContinuation(1, false, bytes.Repeat([]byte{0x82}, 1<<10))
		}
		if code, _ := judged(t, s.b.Bytes(), 1<<20, 10); code != http2.ErrCodeEnhanceYourCalm {
			t.Errorf("it goes on: %v", code)
		}
	})
	for name, c := range map[string]struct {
		write      func(s *script, id uint32)
		good, many int
	}{
		"streams":       {func(s *script, id uint32) { s.request(id, true) }, 80, 81},
		"large headers": {func(s *script, id uint32) { s.request(id, true, "x-a: "+strings.Repeat("a", 12<<10)) }, 11, 12},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScript()
			for i := range c.many {
				if i == c.good {
					if code, _ := judged(t, s.b.Bytes(), 1<<20, 10); code != http2.ErrCodeNo {
						t.Errorf("%d end the connection: %v", i, code)
					}
				}
				c.write(s, uint32(2*i+1))
			}
			if code, told := judged(t, s.b.Bytes(), 1<<20, 10); code != http2.ErrCodeEnhanceYourCalm || told != code {
				t.Errorf("%d do not end the connection: %v, %v", c.many, code, told)
			}
		})
	}
	t.Run("headers that are small on the way", func(t *testing.T) {
		s := newScript()
		s.request(1, false, "x-a: "+strings.Repeat("a", 3<<10))
		small := s.fields("x-a: " + strings.Repeat("a", 3<<10)) // an index by now
		if len(small) > 10 {
			t.Fatalf("%d bytes", len(small))
		}
		_ = s.WriteHeaders(http2.HeadersFrameParam{StreamID: 3, BlockFragment: slices.Concat(s.fields(":method: POST", ":scheme: https", ":path: /"), bytes.Repeat(small, 100)), EndHeaders: true})
		if code, _ := judged(t, s.b.Bytes(), 1<<20, 1000); code != http2.ErrCodeProtocol {
			t.Errorf("it goes on: %v", code)
		}
	})
	t.Run("who reads much", func(t *testing.T) {
		s := newScript()
		for range 200 {
			_ = s.WriteWindowUpdate(0, 1000)
		}
		f := &fed{in: bytes.NewReader(s.b.Bytes()), at: 1 << 20}
		now := time.Now()
		g := Guard(f, 10, func(int) bool { return true }, func() time.Time { return now }, func() { t.Error("it ends") })
		_, err := g.Write(make([]byte, 200*windowBytes))
		ok(t, err)
		_, err = io.Copy(io.Discard, io.MultiReader(g))
		ok(t, err)
	})
}

func FuzzGuard(f *testing.F) {
	s := newScript()
	s.request(1, false, "content-length: 3")
	_ = s.WriteData(1, true, []byte("abc"))
	f.Add(s.b.Bytes(), 3)
	f.Fuzz(func(t *testing.T, b []byte, at int) {
		at = 1 + (at&0xff)%50
		whole, _ := judged(t, b, 1<<20, 5)
		pieces, _ := judged(t, b, at, 5)
		if whole != pieces {
			t.Errorf("read at once %v, by %d %v", whole, at, pieces)
		}
	})
}
