package pool

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
)

// The bounds of a worker's answer.
const (
	maxLine   = 8 << 10
	maxHead   = 32 << 10
	maxFields = 64
)

// Field is one header of an answer, as it came.
type Field struct{ Name, Value string }

// Response is a worker's answer. Read gives its body, and io.EOF when all of it has come.
type Response struct {
	Status int
	// ContentType is "" where the answer has none.
	ContentType string
	// ContentLength is -1 where the answer is streamed.
	ContentLength int64
	// ModelError is the host's word for what went wrong in user code: "raised", "unserializable", or "".
	ModelError string
	// Fields are the other headers but those of the framing.
	Fields []Field

	c       *Conn
	left    int64 // of the body, or of the chunk
	chunked bool
	first   bool // no chunk has been read yet
	close   bool
	old     bool // HTTP/1.0, which has no chunks
	done    bool
	broken  error
}

func (r *Response) reset(c *Conn) {
	clear(r.Fields)
	*r = Response{c: c, Fields: r.Fields[:0]}
}

// Streamed tells whether the length of the body is not known beforehand.
func (r *Response) Streamed() bool { return r.chunked }

func malformed(what string) error { return fmt.Errorf("%w: %s", ErrMalformed, what) }

// line reads one line without its end. It is valid until the next read.
func (r *Response) line() ([]byte, error) {
	line, err := r.c.r.ReadSlice('\n')
	if err != nil {
		if len(line) == r.c.r.Size() {
			return nil, malformed("a line is too long")
		}
		return nil, err
	}
	return bytes.TrimSuffix(line[:len(line)-1], []byte{'\r'}), nil
}

func (r *Response) readHead(method string) error {
	line, err := r.line()
	if err != nil {
		return err
	}
	if err := r.status(line); err != nil {
		return err
	}
	length, hasLength := int64(0), false
	total := len(line)
	for n := 0; ; n++ {
		line, err := r.line()
		if err != nil {
			return err
		}
		if len(line) == 0 {
			break
		}
		if total += len(line); n >= maxFields || total > maxHead {
			return malformed("its head is too long")
		}
		name, value, ok := bytes.Cut(line, []byte{':'})
		if !ok || !token(name) {
			return malformed("a header is malformed")
		}
		value = bytes.Trim(value, " \t")
		if !printable(value) {
			return malformed("a header has control characters")
		}
		switch {
		case is(name, "content-length"):
			v, err := strconv.ParseUint(string(value), 10, 63)
			if err != nil || hasLength && int64(v) != length {
				return malformed("its length is malformed")
			}
			length, hasLength = int64(v), true
		case is(name, "transfer-encoding"):
			if !is(value, "chunked") || r.chunked || r.old {
				return malformed("its transfer encoding is unknown")
			}
			r.chunked, r.first = true, true
		case is(name, "connection"):
			r.close = r.close || is(value, "close")
		case is(name, "content-type"):
			if r.ContentType != "" {
				return malformed("it has two content types")
			}
			r.ContentType = contentType(value)
		case is(name, "x-redoubt-model-error"):
			r.ModelError = string(value)
		default:
			r.Fields = append(r.Fields, Field{string(name), string(value)})
		}
	}
	switch {
	case r.chunked && hasLength:
		return malformed("it has a length and is chunked")
	case r.Status == 204 || r.Status == 304 || method == "HEAD":
		r.chunked, r.ContentLength, r.done = false, 0, true
	case r.chunked:
		r.ContentLength = -1
	case !hasLength:
		return malformed("its length is not said")
	default:
		r.ContentLength, r.left, r.done = length, length, length == 0
	}
	return nil
}

func (r *Response) status(line []byte) error {
	rest, ok := bytes.CutPrefix(line, []byte("HTTP/1."))
	if !ok || len(rest) < 5 || rest[0] != '0' && rest[0] != '1' || rest[1] != ' ' || len(rest) > 5 && rest[5] != ' ' {
		return malformed("its first line is malformed")
	}
	r.old = rest[0] == '0'
	r.close = r.old
	for _, d := range rest[2:5] {
		if d < '0' || d > '9' {
			return malformed("its status is no number")
		}
		r.Status = r.Status*10 + int(d-'0')
	}
	if r.Status < 200 || r.Status > 599 {
		return malformed("its status is not one of an answer")
	}
	return nil
}

// Read implements io.Reader. After a fault the connection is of no use.
func (r *Response) Read(p []byte) (int, error) {
	if r.broken != nil {
		return 0, r.broken
	}
	n, err := r.read(p)
	if err != nil && err != io.EOF { //nolint:errorlint // read's own
		if errors.Is(err, errCut) {
			err = io.ErrUnexpectedEOF
		}
		r.broken = r.c.failed(err)
		return n, r.broken
	}
	return n, err
}

// errCut is the end of a connection inside of a body, which must not look like the end of the body.
var errCut = errors.New("pool: the connection ended in a body")

func (r *Response) read(p []byte) (int, error) {
	if r.done {
		return 0, io.EOF
	}
	if r.chunked && r.left == 0 {
		if err := r.chunk(); err != nil || r.done {
			if err == nil {
				err = io.EOF
			} else if errors.Is(err, io.EOF) {
				err = errCut
			}
			return 0, err
		}
	}
	if int64(len(p)) > r.left {
		p = p[:r.left]
	}
	n, err := r.c.r.Read(p)
	r.left -= int64(n)
	if errors.Is(err, io.EOF) {
		err = errCut
	}
	if err == nil && r.left == 0 && !r.chunked {
		r.done = true
	}
	return n, err
}

// chunk reads the head of the next chunk, or the end of the body.
func (r *Response) chunk() error {
	if !r.first {
		if line, err := r.line(); err != nil {
			return err
		} else if len(line) > 0 {
			return malformed("a chunk is longer than it said")
		}
	}
	r.first = false
	line, err := r.line()
	if err != nil {
		return err
	}
	size, _, _ := bytes.Cut(line, []byte{';'})
	v, err := strconv.ParseUint(string(bytes.TrimRight(size, " \t")), 16, 62)
	if err != nil {
		return malformed("the size of a chunk is malformed")
	}
	if r.left = int64(v); v > 0 {
		return nil
	}
	for n := 0; ; n++ { // trailers go nowhere
		line, err := r.line()
		switch {
		case err != nil:
			return err
		case len(line) == 0:
			r.done = true
			return nil
		case n >= maxFields:
			return malformed("it has too many trailers")
		}
	}
}

// is compares with a name in lower case.
func is(b []byte, name string) bool {
	if len(b) != len(name) {
		return false
	}
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != name[i] {
			return false
		}
	}
	return true
}

// contentType is the value as a string, without making one of what nearly all models answer.
func contentType(v []byte) string {
	const usual = "application/json"
	if string(v) == usual {
		return usual
	}
	return string(v)
}

func token(b []byte) bool {
	for _, c := range b {
		if c <= ' ' || c >= 0x7f || bytes.IndexByte([]byte("()<>@,;:\\\"/[]?={}"), c) >= 0 {
			return false
		}
	}
	return len(b) > 0
}

func printable(b []byte) bool {
	for _, c := range b {
		if c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}
