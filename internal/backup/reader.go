package backup

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"hash"
	"io"

	maintenancev1 "github.com/redoubt-ml/redoubt/gen/redoubt/maintenance/v1"
	"github.com/redoubt-ml/redoubt/pkg/blob"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/sqldb/sqldump"
)

// Reader reads an archive piece by piece, in its one order: Part, then its Tables, each with its Rows, then its Blobs, then PartEnd; after
// the last part End. What a method returns was checked as far as one can at that point; nothing is true before End has returned nil.
type Reader struct {
	src  *source
	head *maintenancev1.ArchiveHead

	record *maintenancev1.Record // read, and not taken yet
	bytes  []byte

	parts int
	part  *partState
	total totals
}

type totals struct{ tables, rows, blobs, blobBytes int64 }

// partState is what was seen of a part so far.
type partState struct {
	head   *maintenancev1.PartHead
	digest digest
	totals
	lastBlob string
	inBlobs  bool

	table     sqldump.Table
	tableRows int64
	tableSum  hash.Hash
}

func outOfOrder() error { return damaged("the backup is damaged: its pieces are not in order") }

// NewReader reads the head of an archive that was decrypted already.
func NewReader(r io.Reader) (*Reader, error) {
	src, err := newSource(r)
	if err != nil {
		return nil, err
	}
	out := &Reader{src: src}
	rec, err := out.take()
	if err != nil {
		return nil, err
	}
	head := rec.GetArchiveHead()
	switch {
	case head == nil || head.GetFormat() < 1:
		return nil, outOfOrder()
	case head.GetFormat() > format:
		return nil, fault.FailedPrecondition("the backup was made by a newer version of redoubt (%s); use that one", head.GetVersion())
	case len(head.GetServices()) == 0:
		return nil, damaged("the backup has no services")
	}
	out.head = head
	return out, nil
}

// Head is what the archive says of itself.
func (r *Reader) Head() *maintenancev1.ArchiveHead { return r.head }

// peek reads the next record without taking it.
func (r *Reader) peek() (*maintenancev1.Record, error) {
	if r.record != nil {
		return r.record, nil
	}
	rec, b, err := r.src.next()
	if err != nil {
		if errors.Is(err, io.EOF) {
			return nil, unreadable(err)
		}
		return nil, err
	}
	r.record, r.bytes = rec, b
	return rec, nil
}

// take is the next record, counted into the digests.
func (r *Reader) take() (*maintenancev1.Record, error) {
	rec, err := r.peek()
	if err != nil {
		return nil, err
	}
	if rec.GetArchiveEnd() == nil {
		r.src.all.add(r.bytes)
	}
	if r.part != nil && rec.GetPartEnd() == nil {
		r.part.digest.add(r.bytes)
	}
	r.record = nil
	return rec, nil
}

// Part begins the next service, and reports false where there is none left.
func (r *Reader) Part() (*maintenancev1.PartHead, bool, error) {
	if r.part != nil {
		return nil, false, outOfOrder()
	}
	if r.parts == len(r.head.GetServices()) {
		return nil, false, nil
	}
	rec, err := r.peek()
	if err != nil {
		return nil, false, err
	}
	h, want := rec.GetPartHead(), r.head.GetServices()[r.parts]
	if h == nil || h.GetService() != want.GetService() || h.GetBackupId() != r.head.GetBackupId() || h.GetSealFingerprint() != want.GetSealFingerprint() {
		return nil, false, outOfOrder()
	}
	r.parts++
	r.part = &partState{head: h, digest: newDigest()}
	_, err = r.take()
	return h, err == nil, err
}

// Table begins the next table of the part, and reports false where there is none left.
func (r *Reader) Table() (sqldump.Table, bool, error) {
	if r.part == nil || r.part.tableSum != nil || r.part.inBlobs {
		return sqldump.Table{}, false, outOfOrder()
	}
	rec, err := r.peek()
	if err != nil || rec.GetTable() == nil {
		return sqldump.Table{}, false, err
	}
	t := sqldump.Table{Name: rec.GetTable().GetName(), Key: rec.GetTable().GetKey()}
	for _, c := range rec.GetTable().GetColumns() {
		t.Columns = append(t.Columns, sqldump.Column{Name: c.GetName(), Type: c.GetType()})
	}
	if len(t.Columns) == 0 {
		return t, false, damaged("the backup is damaged: a table has no columns")
	}
	r.part.table, r.part.tableRows, r.part.tableSum = t, 0, sha256.New()
	r.part.tables++
	_, err = r.take()
	return t, err == nil, err
}

// Rows are the next rows of the table, and false where there are none left. What is packed is the caller's until his next call.
func (r *Reader) Rows() (rows int, packed []byte, more bool, err error) {
	if r.part == nil || r.part.tableSum == nil {
		return 0, nil, false, outOfOrder()
	}
	rec, err := r.take()
	if err != nil {
		return 0, nil, false, err
	}
	switch {
	case rec.GetRows() != nil:
		n, packed := rec.GetRows().GetCount(), rec.GetRows().GetPacked()
		if n <= 0 || n > int64(len(packed)) {
			return 0, nil, false, sqldump.Damaged()
		}
		if err := sqldump.Count(r.part.table, int(n), packed); err != nil {
			return 0, nil, false, err
		}
		r.part.tableRows += n
		_, _ = r.part.tableSum.Write(packed)
		return int(n), packed, true, nil
	case rec.GetTableEnd() != nil:
		if rec.GetTableEnd().GetRows() != r.part.tableRows || !equal(rec.GetTableEnd().GetDigest(), r.part.tableSum.Sum(nil)) {
			return 0, nil, false, damaged("the backup is damaged: the table %s of %s is not as it was written", r.part.table.Name, r.part.head.GetService())
		}
		r.part.rows += r.part.tableRows
		r.part.tableSum = nil
		return 0, nil, false, nil
	}
	return 0, nil, false, outOfOrder()
}

// Blob gives the next blob of the part, and false where there is none left. Its content has to be read to the end, where its digest
// is checked.
func (r *Reader) Blob() (name string, content io.Reader, more bool, err error) {
	if r.part == nil || r.part.tableSum != nil {
		return "", nil, false, outOfOrder()
	}
	rec, err := r.peek()
	if err != nil || rec.GetBlob() == nil {
		return "", nil, false, err
	}
	name = rec.GetBlob().GetName()
	if err := blob.CheckName(name); err != nil || name <= r.part.lastBlob {
		return "", nil, false, damaged("the backup is damaged: a file has a name that it cannot have")
	}
	r.part.lastBlob, r.part.inBlobs = name, true
	r.part.blobs++
	if _, err := r.take(); err != nil {
		return "", nil, false, err
	}
	return name, &blobContent{r: r, sum: sha256.New()}, true, nil
}

// blobContent is the content of one blob.
type blobContent struct {
	r    *Reader
	sum  hash.Hash
	size int64
	rest []byte
	err  error
}

// Read implements io.Reader.
func (c *blobContent) Read(p []byte) (int, error) {
	for len(c.rest) == 0 && c.err == nil {
		c.rest, c.err = c.more()
	}
	if len(c.rest) == 0 {
		return 0, c.err
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

func (c *blobContent) more() ([]byte, error) {
	rec, err := c.r.take()
	if err != nil {
		return nil, err
	}
	switch k := rec.GetKind().(type) {
	case *maintenancev1.Record_BlobData:
		_, _ = c.sum.Write(k.BlobData)
		c.size += int64(len(k.BlobData))
		return k.BlobData, nil
	case *maintenancev1.Record_BlobEnd:
		if k.BlobEnd.GetSize() != c.size || !equal(k.BlobEnd.GetDigest(), c.sum.Sum(nil)) {
			return nil, damaged("the backup is damaged: a file of %s is not as it was written", c.r.part.head.GetService())
		}
		c.r.part.blobBytes += c.size
		return nil, io.EOF
	}
	return nil, outOfOrder()
}

// PartEnd ends the part: its counts and its digest are right. The digest is what the part's MAC is over.
func (r *Reader) PartEnd() (*maintenancev1.PartEnd, error) {
	if r.part == nil || r.part.tableSum != nil {
		return nil, outOfOrder()
	}
	rec, err := r.take()
	if err != nil {
		return nil, err
	}
	e, p := rec.GetPartEnd(), r.part
	if e == nil {
		return nil, outOfOrder()
	}
	if e.GetTables() != p.tables || e.GetRows() != p.rows || e.GetBlobs() != p.blobs || e.GetBlobBytes() != p.blobBytes || !equal(e.GetDigest(), p.digest.sum()) {
		return nil, damaged("the backup is damaged: the part of %s is not as it was written", p.head.GetService())
	}
	r.total.tables += p.tables
	r.total.rows += p.rows
	r.total.blobs += p.blobs
	r.total.blobBytes += p.blobBytes
	r.part = nil
	return e, nil
}

// End checks that the archive is whole.
func (r *Reader) End() error {
	if r.part != nil || r.parts != len(r.head.GetServices()) {
		return outOfOrder()
	}
	rec, err := r.take()
	if err != nil {
		return err
	}
	e := rec.GetArchiveEnd()
	if e == nil {
		return outOfOrder()
	}
	if e.GetRows() != r.total.rows || e.GetBlobs() != r.total.blobs || e.GetBlobBytes() != r.total.blobBytes || !equal(e.GetDigest(), r.src.all.sum()) {
		return damaged("the backup is damaged: it is not as it was written")
	}
	if _, _, err := r.src.next(); !errors.Is(err, io.EOF) {
		if err != nil {
			return err
		}
		return damaged("the backup is damaged: something follows its end")
	}
	return nil
}

func equal(a, b []byte) bool { return len(a) == len(b) && subtle.ConstantTimeCompare(a, b) == 1 }

// rest reads what is left of a part, for its checks alone.
func (r *Reader) rest(rows func(t sqldump.Table, n int, packed []byte) error) error {
	for {
		t, more, err := r.Table()
		if err != nil {
			return err
		}
		if !more {
			break
		}
		for {
			n, packed, more, err := r.Rows()
			if err != nil {
				return err
			}
			if !more {
				break
			}
			if err := rows(t, n, packed); err != nil {
				return err
			}
		}
	}
	for {
		_, content, more, err := r.Blob()
		if err != nil || !more {
			return err
		}
		if _, err := io.Copy(io.Discard, content); err != nil {
			return err
		}
	}
}
