package backup

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	maintenancev1 "github.com/redoubt-ml/redoubt/gen/redoubt/maintenance/v1"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
)

type envelopeRing = envelope.Keyring

// refuses reports whether an error is one of those that a changed archive must end with.
func refuses(err error) bool {
	return fault.Is(err, codes.DataLoss) || fault.Is(err, codes.FailedPrecondition)
}

// Every byte of what is inside the encryption is bound to the rest: changed anywhere, cut anywhere, it is refused.
func TestEveryChangeInsideIsRefused(t *testing.T) {
	l := newLab(t)
	b := l.take(t)
	must(t, l.verify(b))
	tried, failed := 0, 0
	check := func(what string, changed []byte) {
		tried++
		if _, err := Verify(context.Background(), bytes.NewReader(changed), ""); !refuses(err) {
			failed++
			if failed < 10 {
				t.Errorf("%s: %v", what, err)
			}
		}
	}
	for i := range b {
		changed := bytes.Clone(b)
		changed[i] ^= 1 << (i % 8)
		check(fmt.Sprintf("bit %d of byte %d", i%8, i), changed)
	}
	for i := range b {
		check(fmt.Sprintf("cut at %d", i), b[:i])
	}
	check("something added", append(bytes.Clone(b), 0))
	fmt.Printf("inside the encryption: %d changes of %d bytes tried, %d not refused\n", tried, len(b), failed)
}

// The same from outside, where nobody has the key: bytes changed, pieces swapped, ends cut.
func TestEveryChangeOutsideIsRefused(t *testing.T) {
	l := newLab(t)
	_, err := l.blobs["workspace"].Put(t.Context(), "ws/big", bytes.NewReader(make([]byte, 400<<10)))
	must(t, err)
	var plain bytes.Buffer
	_, err = Take(t.Context(), TakeConfig{Peers: l.peers, Installation: "lab"}, &plain)
	must(t, err)
	key, recipient, err := NewIdentity(time.Unix(0, 0))
	must(t, err)
	var out bytes.Buffer
	w, err := Encrypt(&out, []string{recipient}, redact.Secret{})
	must(t, err)
	_, err = w.Write(plain.Bytes())
	must(t, err)
	must(t, w.Close())
	b := out.Bytes()
	open := func(b []byte) error {
		r, err := Decrypt(bytes.NewReader(b), key, redact.Secret{})
		if err != nil {
			return err
		}
		_, err = Verify(context.Background(), r, "")
		return err
	}
	must(t, open(b))
	random := rand.New(rand.NewPCG(3, 4))
	tried, failed := 0, 0
	check := func(what string, changed []byte) {
		tried++
		if err := open(changed); !refuses(err) {
			failed++
			t.Errorf("%s: %v", what, err)
		}
	}
	const chunk, head = 64<<10 + 16, 200 // age's
	for region := 0; region < len(b); region += len(b)/100 + 1 {
		i := region + random.IntN(min(len(b)/100+1, len(b)-region))
		changed := bytes.Clone(b)
		changed[i] ^= 1 << random.IntN(8)
		check(fmt.Sprintf("byte %d", i), changed)
	}
	for i := range head {
		changed := bytes.Clone(b)
		changed[i] ^= 1
		check(fmt.Sprintf("byte %d of the head", i), changed)
	}
	for range 100 {
		check("cut", b[:random.IntN(len(b))])
	}
	for _, n := range []int{1, 2, 3} { // at the ends of its chunks
		start := len(b) - (len(b)-head)/chunk*chunk
		check("cut at a chunk", b[:start+n*chunk])
	}
	swapped := bytes.Clone(b)
	from := len(b) - 3*chunk
	copy(swapped[from:], b[from+chunk:from+2*chunk])
	copy(swapped[from+chunk:], b[from:from+chunk])
	check("chunks swapped", swapped)
	check("twice", append(bytes.Clone(b), b...))
	fmt.Printf("outside the encryption: %d changes of %d bytes tried, %d not refused\n", tried, len(b), failed)
}

// records takes an archive apart.
func records(t *testing.T, b []byte) []*maintenancev1.Record {
	t.Helper()
	var out []*maintenancev1.Record
	for b = b[len(magic):]; len(b) > 0; {
		size, n := binary.Uvarint(b)
		r, err := parse(b[n : n+int(size)])
		must(t, err)
		out = append(out, r)
		b = b[n+int(size):]
	}
	return out
}

// rebuild makes an archive of records, with counts and digests that are right: what somebody can do who has the recipient and no seal.
func rebuild(t *testing.T, all []*maintenancev1.Record) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := newWriter(&out)
	must(t, err)
	part := newDigest()
	for _, r := range all {
		r = proto.Clone(r).(*maintenancev1.Record)
		switch {
		case r.GetPartHead() != nil:
			part = newDigest()
		case r.GetPartEnd() != nil:
			r.GetPartEnd().Digest = part.sum()
		case r.GetArchiveEnd() != nil:
			r.GetArchiveEnd().Digest = w.all.sum()
		}
		b, err := proto.MarshalOptions{Deterministic: true}.Marshal(r)
		must(t, err)
		if r.GetPartEnd() == nil {
			part.add(b)
		}
		must(t, w.raw(b))
	}
	must(t, w.w.Flush())
	return out.Bytes()
}

// What is right in itself, and was not made by the services for this backup, is refused for want of their MACs, or for its order.
func TestForgeries(t *testing.T) {
	l, other := newLab(t), newLab(t)
	b := l.take(t)
	all, later, foreign := records(t, b), records(t, l.take(t)), records(t, other.take(t))
	if !bytes.Equal(rebuild(t, all), b) {
		t.Fatal("the forger does not even make the same")
	}
	find := func(in []*maintenancev1.Record, kind string, nth int) int {
		i := -1
		for range nth + 1 {
			i += 1 + slices.IndexFunc(in[i+1:], func(r *maintenancev1.Record) bool {
				return fmt.Sprintf("%T", r.GetKind()) == "*maintenancev1.Record_"+kind
			})
		}
		return i
	}
	copyOf := func(in []*maintenancev1.Record) []*maintenancev1.Record {
		out := make([]*maintenancev1.Record, len(in))
		for i, r := range in {
			out[i] = proto.Clone(r).(*maintenancev1.Record)
		}
		return out
	}
	item := slices.IndexFunc(all, func(r *maintenancev1.Record) bool { return r.GetTable().GetName() == "item" })
	firstEnd, secondHead := find(all, "PartEnd", 0), find(all, "PartHead", 1)
	for name, forge := range map[string]func(a []*maintenancev1.Record) []*maintenancev1.Record{
		"a row more": func(a []*maintenancev1.Record) []*maintenancev1.Record {
			row := []byte{2, 4, 'e', 'v', 'i', 'l', 0, 1, 2}
			rows := a[item+1].GetRows()
			rows.Count++
			rows.Packed = append(row, rows.Packed...)
			sum := sha256.Sum256(rows.Packed)
			a[item+2].GetTableEnd().Rows++
			a[item+2].GetTableEnd().Digest = sum[:]
			a[firstEnd].GetPartEnd().Rows++
			a[len(a)-1].GetArchiveEnd().Rows++
			return a
		},
		"a table less": func(a []*maintenancev1.Record) []*maintenancev1.Record {
			n := a[item+2].GetTableEnd().GetRows()
			a[firstEnd].GetPartEnd().Tables--
			a[firstEnd].GetPartEnd().Rows -= n
			a[len(a)-1].GetArchiveEnd().Rows -= n
			return slices.Delete(a, item, item+3)
		},
		"a part of another installation": func(a []*maintenancev1.Record) []*maintenancev1.Record {
			return slices.Concat(a[:1], foreign[1:find(foreign, "PartEnd", 0)+1], a[secondHead:])
		},
		"a part of a later backup": func(a []*maintenancev1.Record) []*maintenancev1.Record {
			return slices.Concat(a[:1], later[1:find(later, "PartEnd", 0)+1], a[secondHead:])
		},
		"a part of a later backup under this one's id": func(a []*maintenancev1.Record) []*maintenancev1.Record {
			p := copyOf(later[1 : find(later, "PartEnd", 0)+1])
			p[0].GetPartHead().BackupId = a[0].GetArchiveHead().GetBackupId()
			return slices.Concat(a[:1], p, a[secondHead:])
		},
		"another version of the schema": func(a []*maintenancev1.Record) []*maintenancev1.Record {
			a[1].GetPartHead().Versions["lab"] = 0
			return a
		},
		"no MAC": func(a []*maintenancev1.Record) []*maintenancev1.Record {
			a[firstEnd].GetPartEnd().Mac = nil
			return a
		},
		"parts in another order": func(a []*maintenancev1.Record) []*maintenancev1.Record {
			return slices.Concat(a[:1], a[secondHead:len(a)-1], a[1:secondHead], a[len(a)-1:])
		},
		"a part missing": func(a []*maintenancev1.Record) []*maintenancev1.Record { return slices.Concat(a[:1], a[secondHead:]) },
		"a part twice": func(a []*maintenancev1.Record) []*maintenancev1.Record {
			return slices.Concat(a[:secondHead], a[1:])
		},
		"no end": func(a []*maintenancev1.Record) []*maintenancev1.Record { return a[:len(a)-1] },
		"an end within": func(a []*maintenancev1.Record) []*maintenancev1.Record {
			return slices.Concat(a[:2], a[len(a)-1:], a[2:])
		},
		"no head":        func(a []*maintenancev1.Record) []*maintenancev1.Record { return a[1:] },
		"two heads":      func(a []*maintenancev1.Record) []*maintenancev1.Record { return slices.Concat(a[:1], a) },
		"a newer format": func(a []*maintenancev1.Record) []*maintenancev1.Record { a[0].GetArchiveHead().Format = 2; return a },
		"no services": func(a []*maintenancev1.Record) []*maintenancev1.Record {
			a[0].GetArchiveHead().Services = nil
			return a
		},
		"a service outside": func(a []*maintenancev1.Record) []*maintenancev1.Record {
			a[0].GetArchiveHead().Services[0].Service = "../x"
			return a
		},
		"a file outside": func(a []*maintenancev1.Record) []*maintenancev1.Record {
			a[find(a, "Blob", 0)].GetBlob().Name = "../../etc/passwd"
			return a
		},
		"files in another order": func(a []*maintenancev1.Record) []*maintenancev1.Record {
			a[find(a, "Blob", 0)].GetBlob().Name = "zz"
			return a
		},
	} {
		t.Run(name, func(t *testing.T) {
			forged := rebuild(t, forge(copyOf(all)))
			if err := l.verify(forged); !refuses(err) {
				t.Errorf("verify: %v", err)
			}
			data := t.TempDir()
			if err := restoreInto(data, l.dir, forged); !refuses(err) {
				t.Errorf("restore: %v", err)
			}
			if got := entries(t, data); got != "" {
				t.Errorf("restore left %s", got)
			}
		})
	}
}
