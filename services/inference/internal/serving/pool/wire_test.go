package pool

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
)

// read gives an answer as it is read off a connection, and what is left behind it.
func read(raw []byte) (*Response, []byte, int, error) {
	c := &Conn{r: bufio.NewReaderSize(bytes.NewReader(raw), 8<<10)}
	c.resp.reset(c)
	if err := c.resp.readHead("POST"); err != nil {
		return nil, nil, 0, c.failed(err)
	}
	body, err := io.ReadAll(&c.resp)
	left, _ := io.Copy(io.Discard, c.r)
	return &c.resp, body, int(left), err
}

func TestRead(t *testing.T) {
	for _, c := range []struct {
		name, raw, body string
		status, left    int
		err             error
	}{
		{"plain", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "ok", 200, 0, nil},
		{"bare line ends", "HTTP/1.1 200\nContent-Length: 2\n\nok", "ok", 200, 0, nil},
		{"more behind it", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok!!", "ok", 200, 2, nil},
		{"the same length twice", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok", "ok", 200, 0, nil},
		{"empty", "HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n", "", 404, 0, nil},
		{"chunks", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\none\r\nA\r\n0123456789\r\n0\r\nX: y\r\n\r\n", "one0123456789", 200, 0, nil},
		{"no chunks", "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n0\r\n\r\n", "", 200, 0, nil},
		{"304", "HTTP/1.1 304 Not\r\nContent-Length: 5\r\n\r\n", "", 304, 0, nil},
		{"cut in the head", "HTTP/1.1 200 OK\r\nContent-Le", "", 0, 0, ErrBroken},
		{"nothing", "", "", 0, 0, ErrBroken},
		{"cut in the body", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok", "ok", 200, 0, ErrBroken},
		{"cut in a chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\non", "on", 200, 0, ErrBroken},
		{"cut between chunks", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n", "one", 200, 0, ErrBroken},
		{"cut before the trailer's end", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", "", 200, 0, ErrBroken},
		{"a chunk that is too long", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nonetwo\r\n0\r\n\r\n", "one", 200, 0, ErrMalformed},
		{"a chunk of a negative size", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-3\r\none\r\n0\r\n\r\n", "", 200, 0, ErrMalformed},
		{"a chunk of any size", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\none", "", 200, 0, ErrMalformed},
		{"no status", "HTTP/1.1\r\nContent-Length: 0\r\n\r\n", "", 0, 0, ErrMalformed},
		{"a long status", "HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n", "", 0, 0, ErrMalformed},
		{"status 100", "HTTP/1.1 100 C\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "", 0, 0, ErrMalformed},
		{"status 600", "HTTP/1.1 600 C\r\nContent-Length: 0\r\n\r\n", "", 0, 0, ErrMalformed},
		{"HTTP/2", "HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n", "", 0, 0, ErrMalformed},
		{"a length with a sign", "HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok", "", 0, 0, ErrMalformed},
		{"two lengths", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok", "", 0, 0, ErrMalformed},
		{"a list of lengths", "HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nok", "", 0, 0, ErrMalformed},
		{"length and chunks", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "", 0, 0, ErrMalformed},
		{"gzip, chunked", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "", 0, 0, ErrMalformed},
		{"chunked twice", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "", 0, 0, ErrMalformed},
		{"chunks of HTTP/1.0", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "", 0, 0, ErrMalformed},
		{"neither", "HTTP/1.1 200 OK\r\n\r\nok", "", 0, 0, ErrMalformed},
		{"two types", "HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nContent-Type: c/d\r\nContent-Length: 0\r\n\r\n", "", 0, 0, ErrMalformed},
		{"a folded header", "HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 0\r\n\r\n", "", 0, 0, ErrMalformed},
		{"a header without a name", "HTTP/1.1 200 OK\r\n: a\r\nContent-Length: 0\r\n\r\n", "", 0, 0, ErrMalformed},
		{"a space in a name", "HTTP/1.1 200 OK\r\nContent-Length : 0\r\n\r\n", "", 0, 0, ErrMalformed},
		{"a control character", "HTTP/1.1 200 OK\r\nX: a\x00b\r\nContent-Length: 0\r\n\r\n", "", 0, 0, ErrMalformed},
		{"a carriage return in a value", "HTTP/1.1 200 OK\r\nX: a\rb\r\nContent-Length: 0\r\n\r\n", "", 0, 0, ErrMalformed},
		{"a long line", "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("a", 9<<10) + "\r\nContent-Length: 0\r\n\r\n", "", 0, 0, ErrMalformed},
		{"a long head", "HTTP/1.1 200 OK\r\n" + strings.Repeat("X: "+strings.Repeat("a", 4<<10)+"\r\n", 10) + "Content-Length: 0\r\n\r\n", "", 0, 0, ErrMalformed},
	} {
		t.Run(c.name, func(t *testing.T) {
			resp, body, left, err := read([]byte(c.raw))
			if !errors.Is(err, c.err) || string(body) != c.body || c.err == nil && left != c.left || c.status > 0 && (resp == nil || resp.Status != c.status) {
				t.Errorf("%+v %q, %d left, %v", resp, body, left, err)
			}
		})
	}
}

func TestHead(t *testing.T) {
	resp, _, _, err := read([]byte("HTTP/1.1 500 X\r\nContent-Type:  application/json \r\nX-Redoubt-Model-Error: raised\r\nX-Mine: a\r\nx-mine: b\r\nConnection: Close\r\nContent-Length: 0\r\n\r\n"))
	if err != nil || resp.ContentType != "application/json" || resp.ModelError != "raised" || len(resp.Fields) != 2 || !resp.close || resp.ContentLength != 0 || resp.Streamed() {
		t.Errorf("%+v %v", resp, err)
	}
	if resp, _, _, err := read([]byte("HTTP/1.0 200 X\r\nContent-Length: 0\r\n\r\n")); err != nil || !resp.close {
		t.Errorf("%+v %v", resp, err)
	}
}

// FuzzRead: what is read at all, net/http reads in the same way.
func FuzzRead(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"))
	f.Add([]byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n0\r\n\r\n"))
	f.Add([]byte("HTTP/1.1 204 OK\r\nX: y\r\n\r\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		resp, body, _, err := read(raw)
		if err != nil {
			return
		}
		theirs, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(raw)), &http.Request{Method: "POST"})
		if err != nil {
			return // stricter than we are
		}
		defer theirs.Body.Close()
		got, err := io.ReadAll(theirs.Body)
		if err != nil {
			return
		}
		if theirs.StatusCode != resp.Status || string(got) != string(body) {
			t.Errorf("%d %q, and net/http reads %d %q", resp.Status, body, theirs.StatusCode, got)
		}
	})
}
