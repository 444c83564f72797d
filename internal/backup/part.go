package backup

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"slices"
	"strconv"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	maintenancev1 "github.com/redoubt-ml/redoubt/gen/redoubt/maintenance/v1"
	"github.com/redoubt-ml/redoubt/pkg/blob"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/pkg/sqldb/sqldump"
)

// part is what one service writes of itself.
type part struct {
	service, id, seal string
	key               *envelope.Key
	snapshot          *sqldb.Snapshot
	blobs             *blob.Held // nil for none
	held              time.Duration
	emit              func(record []byte) error

	digest digest
	end    maintenancev1.PartEnd
}

func decimal(n int64) string { return strconv.FormatInt(n, 10) }

// mac proves that the holder of the service's key has seen the part, and for which backup.
func mac(key *envelope.Key, service, id string, digest []byte) []byte {
	return key.MAC("backup part", service+" "+id, hex.EncodeToString(digest))
}

func (p *part) record(r *maintenancev1.Record) error {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(r)
	if err != nil {
		return fault.Internal(err, "a piece of the backup cannot be encoded")
	}
	if len(b) > maxRecord {
		return fault.Internal(nil, "a row is too long for a backup")
	}
	p.digest.add(b)
	return p.emit(b)
}

// write writes all of it.
func (p *part) write(ctx context.Context) error {
	p.digest = newDigest()
	versions, err := p.snapshot.Versions(ctx)
	if err != nil {
		return err
	}
	tx := p.snapshot.Tx()
	tables, err := sqldump.Tables(ctx, tx)
	if err != nil {
		return err
	}
	head := &maintenancev1.PartHead{
		Service: p.service, BackupId: p.id, SealFingerprint: p.seal, Engine: tx.Dialect().String(), Versions: versions, HeldMicros: p.held.Microseconds(),
	}
	if slices.ContainsFunc(tables, func(t sqldump.Table) bool { return t.Name == "activity_head" }) {
		if err := tx.QueryRowContext(ctx, "SELECT position FROM activity_head WHERE id = 1").Scan(&head.ActivityPosition); err != nil {
			return sqldb.Fault(err)
		}
	}
	if err := p.record(&maintenancev1.Record{Kind: &maintenancev1.Record_PartHead{PartHead: head}}); err != nil {
		return err
	}
	for _, t := range tables {
		if err := p.table(ctx, t); err != nil {
			return err
		}
	}
	p.snapshot.Close() // blobs need it no longer, and the write-ahead log may shrink
	if p.blobs != nil {
		if err := p.files(ctx); err != nil {
			return err
		}
	}
	p.end.Digest = p.digest.sum()
	p.end.Mac = mac(p.key, p.service, p.id, p.end.GetDigest())
	return p.record(&maintenancev1.Record{Kind: &maintenancev1.Record_PartEnd{PartEnd: &p.end}})
}

func (p *part) table(ctx context.Context, t sqldump.Table) error {
	head := &maintenancev1.Table{Name: t.Name, Key: t.Key}
	for _, c := range t.Columns {
		head.Columns = append(head.Columns, &maintenancev1.Column{Name: c.Name, Type: c.Type})
	}
	if err := p.record(&maintenancev1.Record{Kind: &maintenancev1.Record_Table{Table: head}}); err != nil {
		return err
	}
	sum, rows := sha256.New(), int64(0)
	err := sqldump.Read(ctx, p.snapshot.Tx(), t, func(n int, packed []byte) error {
		_, _ = sum.Write(packed)
		rows += int64(n)
		return p.record(&maintenancev1.Record{Kind: &maintenancev1.Record_Rows{Rows: &maintenancev1.Rows{Count: int64(n), Packed: packed}}})
	})
	if err != nil {
		return err
	}
	p.end.Tables++
	p.end.Rows += rows
	return p.record(&maintenancev1.Record{Kind: &maintenancev1.Record_TableEnd{TableEnd: &maintenancev1.TableEnd{Rows: rows, Digest: sum.Sum(nil)}}})
}

func (p *part) files(ctx context.Context) error {
	names, err := p.blobs.Names(ctx)
	if err != nil {
		return err
	}
	piece := make([]byte, blobPiece)
	for _, name := range names {
		if err := p.file(ctx, name, piece); err != nil {
			return err
		}
	}
	return nil
}

func (p *part) file(ctx context.Context, name string, piece []byte) (err error) {
	r, err := p.blobs.Get(ctx, name)
	if fault.Is(err, codes.NotFound) {
		p.end.Gone++
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	if err := p.record(&maintenancev1.Record{Kind: &maintenancev1.Record_Blob{Blob: &maintenancev1.Blob{Name: name}}}); err != nil {
		return err
	}
	sum, size := sha256.New(), int64(0)
	for {
		n, err := io.ReadFull(r, piece)
		if n > 0 {
			_, _ = sum.Write(piece[:n])
			size += int64(n)
			if err := p.record(&maintenancev1.Record{Kind: &maintenancev1.Record_BlobData{BlobData: piece[:n]}}); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err != nil {
			return fault.Wrap(err, codes.Unavailable, faultv1.Reason_SERVICE_UNAVAILABLE, "a file cannot be read to its end")
		}
	}
	p.end.Blobs++
	p.end.BlobBytes += size
	return p.record(&maintenancev1.Record{Kind: &maintenancev1.Record_BlobEnd{BlobEnd: &maintenancev1.BlobEnd{Size: size, Digest: sum.Sum(nil)}}})
}
