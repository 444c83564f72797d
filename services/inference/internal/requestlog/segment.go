package requestlog

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/redoubt-ml/redoubt/pkg/envelope"
)

// A segment begins with a magic and its random id. Then come frames: the length of a sealed record in four bytes, and the record.
const (
	magic         = "rdbreq1\n"
	idBytes       = 16
	segmentHeader = int64(len(magic) + idBytes)
	frameHeader   = 4
	maxFrame      = maxRecord + envelope.Overhead
	suffix        = ".requests"
)

// segment is one file of the spool.
type segment struct {
	path  string
	id    string
	first int64 // number of its first record
	count int64 // of whole frames
	size  int64 // up to the end of the last whole frame
}

// end is the number of the record after the last.
func (s *segment) end() int64 { return s.first + s.count }

// aad binds a record to its segment and number.
func (s *segment) aad(seq int64) envelope.AAD {
	return envelope.AAD{Owner: envelope.ServiceOwner, Kind: "scoring-request", ID: s.id, Version: seq}
}

func segmentName(first int64) string { return fmt.Sprintf("%019d%s", first, suffix) }

// createSegment makes the file of a segment, in place of one of that name.
func createSegment(dir string, first int64) (*segment, *os.File, error) {
	header := append([]byte(magic), make([]byte, idBytes)...)
	_, _ = rand.Read(header[len(magic):]) // crypto/rand never fails
	s := &segment{path: filepath.Join(dir, segmentName(first)), id: hex.EncodeToString(header[len(magic):]), first: first, size: segmentHeader}
	f, err := os.OpenFile(s.path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		return nil, nil, err
	}
	if _, err := f.Write(header); err != nil {
		_ = f.Close()
		return nil, nil, err
	}
	return s, f, nil
}

// findSegments lists the segments of a folder, the oldest first. What is in them is not looked at.
func findSegments(dir string) ([]*segment, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, errDir(dir, err)
	}
	var found []*segment
	for _, e := range entries {
		number, ok := strings.CutSuffix(e.Name(), suffix)
		first, err := strconv.ParseInt(number, 10, 64)
		if !ok || err != nil || first < 1 || e.Name() != segmentName(first) || !e.Type().IsRegular() {
			continue
		}
		found = append(found, &segment{path: filepath.Join(dir, e.Name()), first: first})
	}
	slices.SortFunc(found, func(a, b *segment) int { return int(min(max(a.first-b.first, -1), 1)) })
	return found, nil
}

// scan finds how many whole frames a segment has. A frame that a killed process had begun is not one of them; what follows a length that
// cannot be is out of reach.
func (s *segment) scan() error {
	f, err := os.Open(s.path)
	if err != nil {
		return errDir(filepath.Dir(s.path), err)
	}
	defer func() { _ = f.Close() }()
	header := make([]byte, segmentHeader)
	if _, err := io.ReadFull(f, header); errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || err == nil && !bytes.HasPrefix(header, []byte(magic)) {
		return nil // no segment, or one that was only begun
	} else if err != nil {
		return errDir(filepath.Dir(s.path), err)
	}
	s.id, s.size = hex.EncodeToString(header[len(magic):]), segmentHeader
	r := newFrames(f, segmentHeader, 1<<62)
	for {
		_, err := r.next()
		if errors.Is(err, errNoFrame) {
			return nil
		}
		if err != nil {
			return errDir(filepath.Dir(s.path), err)
		}
		s.count, s.size = s.count+1, r.offset()
	}
}

func appendFrame(b, sealed []byte) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(sealed))), sealed...)
}

// errNoFrame is the end of what can be read of a segment.
var errNoFrame = errors.New("requestlog: no further frame")

// frames reads the frames of a file between two offsets.
type frames struct {
	r        io.ReaderAt
	at, end  int64 // of the file: of the next frame, and where reading ends
	buf      []byte
	from, to int // what is in buf of the file from at on
}

const readAhead = 256 << 10

func newFrames(r io.ReaderAt, at, end int64) *frames { return &frames{r: r, at: at, end: end} }

// offset is where the next frame begins.
func (f *frames) offset() int64 { return f.at }

// next gives the next record, which is good until the next call.
func (f *frames) next() ([]byte, error) {
	head, err := f.peek(frameHeader)
	if err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint32(head))
	if n < 1 || n > maxFrame {
		return nil, errNoFrame
	}
	whole, err := f.peek(frameHeader + n)
	if err != nil {
		return nil, err
	}
	f.from += len(whole)
	f.at += int64(len(whole))
	return whole[frameHeader:], nil
}

// peek gives the next n bytes.
func (f *frames) peek(n int) ([]byte, error) {
	if f.to-f.from < n {
		if f.at+int64(n) > f.end {
			return nil, errNoFrame
		}
		if len(f.buf) == 0 {
			f.buf = make([]byte, min(f.end-f.at, readAhead)) // all that is left, or more than any frame
		}
		got, err := f.r.ReadAt(f.buf[:min(f.end-f.at, int64(len(f.buf)))], f.at)
		f.from, f.to = 0, got
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		if got < n {
			return nil, errNoFrame
		}
	}
	return f.buf[f.from : f.from+n], nil
}
