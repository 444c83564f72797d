package backup

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash"
	"io"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	maintenancev1 "github.com/redoubt-ml/redoubt/gen/redoubt/maintenance/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

const (
	// magic begins every archive, inside its encryption.
	magic = "redoubt backup\n"
	// format is the version of what follows it.
	format = 1
	// maxRecord is the longest record in bytes: one row of the largest record that a service seals, and what is packed with it.
	maxRecord = 64 << 20
	// blobPiece is how much of a blob is in one record.
	blobPiece = 256 << 10
)

func damaged(text string, args ...any) error {
	return fault.New(codes.DataLoss, faultv1.Reason_DATA_DAMAGED, text, args...)
}

// digest is over records, each with its length before it.
type digest struct{ h hash.Hash }

func newDigest() digest { return digest{sha256.New()} }

func (d digest) add(record []byte) {
	var size [binary.MaxVarintLen64]byte
	_, _ = d.h.Write(size[:binary.PutUvarint(size[:], uint64(len(record)))])
	_, _ = d.h.Write(record)
}

func (d digest) sum() []byte { return d.h.Sum(nil) }

// writer writes records.
type writer struct {
	w   *bufio.Writer
	all digest
}

func newWriter(w io.Writer) (*writer, error) {
	out := &writer{w: bufio.NewWriterSize(w, 1<<20), all: newDigest()}
	_, err := out.w.WriteString(magic)
	return out, err
}

func (w *writer) raw(record []byte) error {
	var size [binary.MaxVarintLen64]byte
	if _, err := w.w.Write(size[:binary.PutUvarint(size[:], uint64(len(record)))]); err != nil {
		return err
	}
	w.all.add(record)
	_, err := w.w.Write(record)
	return err
}

func (w *writer) record(r *maintenancev1.Record) error {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(r)
	if err != nil {
		return err
	}
	return w.raw(b)
}

// source reads records.
type source struct {
	r   *bufio.Reader
	buf bytes.Buffer
	all digest
}

func newSource(r io.Reader) (*source, error) {
	s := &source{r: bufio.NewReaderSize(r, 1<<20), all: newDigest()}
	head := make([]byte, len(magic))
	if _, err := io.ReadFull(s.r, head); err != nil {
		return nil, unreadable(err)
	}
	if string(head) != magic {
		return nil, damaged("this is no backup of redoubt: it was encrypted for this key, and holds something else")
	}
	return s, nil
}

// next gives a record and its bytes, which are the source's until the next call. The end of the archive is io.EOF.
func (s *source) next() (*maintenancev1.Record, []byte, error) {
	size, err := binary.ReadUvarint(s.r)
	if errors.Is(err, io.EOF) {
		return nil, nil, io.EOF
	}
	if err != nil {
		return nil, nil, unreadable(err)
	}
	if size > maxRecord {
		return nil, nil, damaged("the backup is damaged: it has a record that is too long")
	}
	s.buf.Reset()
	if _, err := io.CopyN(&s.buf, s.r, int64(size)); err != nil { // grows with what is there, not with what it says
		return nil, nil, unreadable(err)
	}
	r, err := parse(s.buf.Bytes())
	return r, s.buf.Bytes(), err
}

func parse(b []byte) (*maintenancev1.Record, error) {
	r := new(maintenancev1.Record)
	if err := proto.Unmarshal(b, r); err != nil || r.GetKind() == nil {
		return nil, damaged("the backup is damaged: it has a record that this version of redoubt cannot read")
	}
	return r, nil
}

// unreadable is what an error of reading an archive means.
func unreadable(err error) error {
	var known *fault.Error
	switch {
	case errors.As(err, &known):
		return err
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return damaged("the backup is cut off: its end is missing. Take another copy of the file, or an older backup")
	}
	return fault.Wrap(err, codes.DataLoss, faultv1.Reason_DATA_DAMAGED, "the backup is damaged, or was changed: it cannot be read any further (%v)", err)
}
