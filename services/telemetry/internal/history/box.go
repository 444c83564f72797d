package history

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"strings"

	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/services/telemetry/internal/history/internal/store/db"
)

// mac finds a name without telling it.
type mac [32]byte

// box seals what is kept of one run, under the key of its workspace, bound to the place where it stands.
type box struct {
	key *envelope.Key
	run Run
}

// newBox gets the workspace's key. It is asked for at each use, so that a key that was disabled is not used from here.
func newBox(ctx context.Context, keys *envelope.Keyring, run Run) (*box, error) {
	key, err := keys.Key(ctx, run.WorkspaceUID)
	if err != nil {
		return nil, err
	}
	return &box{key, run}, nil
}

// sealError is what went wrong with one workspace's key or record, and not with the database.
type sealError struct{ error }

func (e *sealError) Unwrap() error { return e.error }

// keyMAC finds a metric. It is the same in all runs of a workspace, so that runs can be searched by a metric.
func (b *box) keyMAC(name string) mac { return mac(b.key.MAC("metric", "", name)) }

// textMAC finds a parameter or tag, by its name alone.
func (b *box) textMAC(kind textKind, name string) mac {
	if kind == kindParam {
		return mac(b.key.MAC("param", "", name))
	}
	return mac(b.key.MAC("tag", "", name))
}

func (b *box) batchMAC(id string) mac { return mac(b.key.MAC("batch", b.run.UID, id)) }

// contentMAC tells batches of one id apart.
func (b *box) contentMAC(batch *Batch) []byte {
	var s strings.Builder
	var buf [binary.MaxVarintLen64]byte
	number := func(n uint64) { s.Write(binary.BigEndian.AppendUint64(buf[:0], n)) }
	text := func(t string) { number(uint64(len(t))); s.WriteString(t) }
	number(uint64(len(batch.Metrics)))
	for _, m := range batch.Metrics {
		text(m.Key)
		number(uint64(m.Step))
		number(uint64(m.Time))
		number(math.Float64bits(m.Value))
	}
	for _, texts := range [][]Text{batch.Params, batch.Tags} {
		number(uint64(len(texts)))
		for _, t := range texts {
			text(t.Key)
			text(t.Value)
		}
	}
	return b.key.MAC("batch-content", b.run.UID, s.String())
}

func (b *box) aad(kind, field string, version int64) envelope.AAD {
	return envelope.AAD{Owner: b.run.WorkspaceUID, Kind: kind, ID: b.run.UID, Field: field, Version: version}
}

func (b *box) seal(aad envelope.AAD, plain []byte) ([]byte, error) {
	sealed, err := b.key.Seal(aad, plain)
	if err != nil {
		return nil, &sealError{err}
	}
	return sealed, nil
}

// chunkRow is the row of a chunk. All of it but sealed is bound to what is sealed.
type chunkRow struct {
	seq, stepMin, stepMax, timeMin, timeMax, points int64
	sealed                                          []byte
}

func (b *box) chunkAAD(key []byte, r chunkRow) envelope.AAD {
	field := fmt.Sprintf("%x %d %d %d %d %d", key, r.stepMin, r.stepMax, r.timeMin, r.timeMax, r.points)
	return b.aad("metric-chunk", field, r.seq)
}

func (b *box) sealChunk(key []byte, r chunkRow, points []Point) ([]byte, error) {
	return b.seal(b.chunkAAD(key, r), encodePoints(points))
}

func (b *box) openChunk(key []byte, r chunkRow) ([]Point, error) {
	plain, err := b.key.Open(b.chunkAAD(key, r), r.sealed)
	if err != nil {
		return nil, err
	}
	return decodePoints(plain, r.points)
}

// latestRow is the row of a metric.
type latestRow = db.GetLatestRow

func latestOf(r db.ListLatestRow) latestRow {
	return latestRow{Rev: r.Rev, ChunkSeq: r.ChunkSeq, ChunkPoints: r.ChunkPoints, ChunkTime: r.ChunkTime, Sealed: r.Sealed}
}

func (b *box) latestAAD(key []byte, r latestRow) envelope.AAD {
	return b.aad("metric-latest", fmt.Sprintf("%x %d %d %d", key, r.ChunkSeq, r.ChunkPoints, r.ChunkTime), r.Rev)
}

func (b *box) sealLatest(key []byte, r latestRow, m Metric) ([]byte, error) {
	return b.seal(b.latestAAD(key, r), append(encodePoints([]Point{m.Point}), m.Key...))
}

func (b *box) openLatest(key []byte, r latestRow) (Metric, error) {
	plain, err := b.key.Open(b.latestAAD(key, r), r.Sealed)
	if err != nil {
		return Metric{}, err
	}
	point, name, err := cutPoint(plain)
	if err != nil || b.keyMAC(name) != mac(key) {
		return Metric{}, errDamaged("a metric")
	}
	return Metric{name, point}, nil
}

func (b *box) sealText(kind textKind, key []byte, t Text) ([]byte, error) {
	plain := binary.AppendUvarint(nil, uint64(len(t.Key)))
	plain = append(append(plain, t.Key...), t.Value...)
	return b.seal(b.aad("run-text", fmt.Sprintf("%d %x", kind, key), 0), plain)
}

func (b *box) openText(kind textKind, key, sealed []byte) (Text, error) {
	plain, err := b.key.Open(b.aad("run-text", fmt.Sprintf("%d %x", kind, key), 0), sealed)
	if err != nil {
		return Text{}, err
	}
	n, k := binary.Uvarint(plain)
	if k <= 0 || n > uint64(len(plain)-k) {
		return Text{}, errDamaged("a parameter or tag")
	}
	plain = plain[k:]
	return Text{string(plain[:n]), string(plain[n:])}, nil
}
