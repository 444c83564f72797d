package workspace

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/pkg/authz"
)

func smallBlob(content []byte) *workspacev1.SmallBlob {
	sum := sha256.Sum256(content)
	return &workspacev1.SmallBlob{Digest: sum[:], Data: content}
}

func (l *lab) sendAll(ctx context.Context, parent string, blobs ...*workspacev1.SmallBlob) error {
	_, err := l.snapshots.UploadBlobs(ctx, &workspacev1.UploadBlobsRequest{Parent: parent, Blobs: blobs})
	return err
}

// stored counts what lies in the blob store.
func (l *lab) stored() (n int) {
	l.t.Helper()
	for _, err := range l.cfg.Blobs.List(l.t.Context(), "") {
		l.ok(err)
		n++
	}
	return n
}

// H2, D1: many small files go up together, are what UploadBlob would have stored, and come down together.
func TestBatch(t *testing.T) {
	l := newLab(t)
	w := l.make(admin, "w1")
	var blobs []*workspacev1.SmallBlob
	var entries []*workspacev1.SnapshotEntry
	want := map[string][]byte{}
	add := func(content []byte) *workspacev1.SmallBlob {
		b := smallBlob(content)
		path := fmt.Sprintf("f%04d", len(entries))
		entries = append(entries, &workspacev1.SnapshotEntry{Path: path, Digest: b.GetDigest(), Size: int64(len(content))})
		want[path] = content
		return b
	}
	for i := range 600 {
		blobs = append(blobs, add(fmt.Appendf(nil, "batch-canary %d", i%599))) // one content twice
	}
	blobs = append(blobs, add(nil), add(bytes.Repeat([]byte("batch-canary"), 5000)), add(bytes.Repeat([]byte{1}, wholeBytes)))
	l.upload(admin, w.GetName(), blobs[7].GetData()) // is there already
	l.upload(admin, w.GetName(), add(bytes.Repeat([]byte{2}, wholeBytes+1)).GetData())
	for range 2 {
		l.ok(l.sendAll(l.as(admin), w.GetName(), blobs...))
	}
	if n := l.stored(); n != 599+4 {
		t.Errorf("%d blobs", n)
	}
	l.upload(admin, w.GetName(), blobs[0].GetData())
	l.canaries("batch-canary")
	snap, err := l.snapshots.CreateSnapshot(l.as(admin), &workspacev1.CreateSnapshotRequest{Parent: w.GetName(), Entries: entries})
	l.ok(err)
	got, err := l.download(admin, snap.GetName())
	l.ok(err)
	if len(got) != len(want) {
		t.Errorf("%d files", len(got))
	}
	for path, content := range want {
		if !bytes.Equal(got[path], content) {
			t.Errorf("%s has %d bytes", path, len(got[path]))
		}
	}
	// One that was cut short on the disk is not handed out among the others.
	key, err := l.cfg.Keys.Key(t.Context(), w.GetUid())
	l.ok(err)
	l.ok(os.Truncate(filepath.Join(l.dir, "blob", filepath.FromSlash(fileOf(key, w.GetUid(), blobs[300].GetDigest()).path)), 60))
	_, err = l.download(admin, snap.GetName())
	l.want(err, codes.DataLoss, faultv1.Reason_DATA_DAMAGED)
}

// Of a batch that is refused nothing is stored.
func TestRefusedBatches(t *testing.T) {
	l := newLab(t, func(c *Config) { c.Limits = Limits{FileBytes: 66000} })
	w := l.make(admin, "w1")
	good := func(n int) (out []*workspacev1.SmallBlob) {
		for i := range n {
			out = append(out, smallBlob(fmt.Appendf(nil, "file %d", i)))
		}
		return out
	}
	wrong, short := good(9), good(9)
	wrong[4].Data = []byte("another")
	short[4].Digest = short[4].GetDigest()[:31]
	cases := []struct {
		name   string
		blobs  []*workspacev1.SmallBlob
		code   codes.Code
		reason faultv1.Reason
	}{
		{"none", nil, codes.InvalidArgument, 0},
		{"a wrong digest in the middle", wrong, codes.InvalidArgument, faultv1.Reason_DIGEST_MISMATCH},
		{"half a digest", short, codes.InvalidArgument, 0},
		{"one too large", append(good(3), smallBlob(make([]byte, 65537))), codes.InvalidArgument, 0},
		{"too many", good(1001), codes.InvalidArgument, 0},
		{"too much", append(good(3), func() (out []*workspacev1.SmallBlob) {
			for i := range 17 {
				out = append(out, smallBlob(bytes.Repeat([]byte{byte(i)}, 65000)))
			}
			return out
		}()...), codes.ResourceExhausted, 0},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			l.want(l.sendAll(l.as(admin), w.GetName(), c.blobs...), c.code, c.reason)
			if n, rows := l.stored(), l.count("SELECT COUNT(*) FROM blobs"); n != 0 || rows != 0 {
				t.Errorf("%d blobs, %d rows", n, rows)
			}
		})
	}
	l.want(l.sendAll(l.as(bob), w.GetName(), good(3)...), codes.NotFound, 0)
	l.grant(w.GetName(), authz.Reader, bob)
	l.want(l.sendAll(l.as(bob), w.GetName(), good(3)...), codes.PermissionDenied, faultv1.Reason_AUTHZ_ACTION_MISSING)
	l.want(l.sendAll(l.as(ada+"|run_1|"+w.GetUid()+"|workspace/snapshots/read snapshots/s0"), w.GetName(), good(3)...), codes.PermissionDenied, 0)
	l.want(l.sendAll(l.as(admin), w.GetName()+"x", good(3)...), codes.NotFound, 0)
	if n := l.stored(); n != 0 {
		t.Errorf("%d blobs", n)
	}
	l.ok(l.sendAll(l.as(admin), w.GetName(), good(1000)...))
}

func TestBatchOverTheLimitOfFiles(t *testing.T) {
	l := newLab(t, func(c *Config) { c.Limits = Limits{FileBytes: 1000} })
	w := l.make(admin, "w1")
	l.want(l.sendAll(l.as(admin), w.GetName(), smallBlob([]byte("x")), smallBlob(make([]byte, 1001))), codes.ResourceExhausted, faultv1.Reason_LIMIT_EXCEEDED)
	if n := l.stored(); n != 0 {
		t.Errorf("%d blobs", n)
	}
}

// What a batch began and could not store is no file of the workspace, is found by the sweep, and can be sent again.
func TestBatchThatCannotBeStored(t *testing.T) {
	l := newLab(t)
	w := l.make(admin, "w1")
	one, two := smallBlob([]byte("one")), smallBlob([]byte("two"))
	// In the place of the workspace's folder stands a file.
	at := filepath.Join(l.dir, "blob", w.GetUid())
	l.ok(os.WriteFile(at, nil, 0o600))
	if err := l.sendAll(l.as(admin), w.GetName(), one, two); err == nil {
		t.Fatal("it was acknowledged")
	}
	missing := func() int {
		res, err := l.snapshots.FindMissingBlobs(l.as(admin), &workspacev1.FindMissingBlobsRequest{Parent: w.GetName(), Digests: [][]byte{one.GetDigest(), two.GetDigest()}})
		l.ok(err)
		return len(res.GetMissing())
	}
	if missing() != 2 {
		t.Errorf("%d are missing", missing())
	}
	l.ok(os.Remove(at))
	l.ok(l.sendAll(l.as(admin), w.GetName(), one, two))
	if missing() != 0 || l.stored() != 2 {
		t.Errorf("%d are missing, %d are stored", missing(), l.stored())
	}
	l.advance(25 * time.Hour)
	l.ok(l.sweep(t.Context(), l.db.Write))
	if l.stored() != 0 || l.count("SELECT COUNT(*) FROM blobs") != 0 {
		t.Errorf("%d blobs, %d rows after the sweep", l.stored(), l.count("SELECT COUNT(*) FROM blobs"))
	}
}
