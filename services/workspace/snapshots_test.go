package workspace

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/pkg/authz"
)

// send uploads a file as the parts say.
func (l *lab) send(ctx context.Context, parts ...*workspacev1.UploadBlobRequest) error {
	stream, err := l.snapshots.UploadBlob(ctx)
	l.ok(err)
	for _, p := range parts {
		if err := stream.Send(p); err != nil {
			break // CloseAndRecv says why
		}
	}
	_, err = stream.CloseAndRecv()
	return err
}

// upload stores a file and returns its digest.
func (l *lab) upload(who, workspace string, content []byte) []byte {
	l.t.Helper()
	sum := sha256.Sum256(content)
	parts := []*workspacev1.UploadBlobRequest{{Parent: workspace, Digest: sum[:], Size: int64(len(content))}}
	for rest := content; len(rest) > 0; {
		n := min(len(rest), 100_000)
		parts = append(parts, &workspacev1.UploadBlobRequest{Data: rest[:n]})
		rest = rest[n:]
	}
	l.ok(l.send(l.as(who), parts...))
	return sum[:]
}

// download reads a whole snapshot.
func (l *lab) download(token, name string) (map[string][]byte, error) {
	l.t.Helper()
	stream, err := l.snapshots.DownloadSnapshot(l.as(token), &workspacev1.DownloadSnapshotRequest{Name: name})
	l.ok(err)
	out, path := map[string][]byte{}, ""
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return out, err
		}
		if e := m.GetEntry(); e != nil {
			path = e.GetPath()
			out[path] = []byte{}
		}
		if path != "" {
			out[path] = append(out[path], m.GetData()...)
		}
		for _, f := range m.GetFiles() {
			out[f.GetEntry().GetPath()] = f.GetData()
		}
	}
}

// H2: a folder goes up once, comes back byte for byte, and is the same snapshot every time. D1: nothing of it stands on the disk.
func TestSnapshot(t *testing.T) {
	l := newLab(t)
	w, w2 := l.make(admin, "w1"), l.make(admin, "w2")
	content := map[string][]byte{
		"train.py": []byte("print('code-canary')"), "empty": {}, "data/big.csv": bytes.Repeat([]byte("data-canary 0123456789\n"), 40_000), "data/chunk": bytes.Repeat([]byte{7}, chunk), "copy.py": []byte("print('code-canary')"),
	}
	var entries []*workspacev1.SnapshotEntry
	var digests [][]byte
	for path, b := range content {
		sum := sha256.Sum256(b)
		entries = append(entries, &workspacev1.SnapshotEntry{Path: path, Digest: sum[:], Size: int64(len(b)), Executable: path == "train.py"})
		digests = append(digests, sum[:])
	}
	missing := func() int {
		res, err := l.snapshots.FindMissingBlobs(l.as(admin), &workspacev1.FindMissingBlobsRequest{Parent: w.GetName(), Digests: digests})
		l.ok(err)
		return len(res.GetMissing())
	}
	if missing() != 4 {
		t.Errorf("%d are missing", missing())
	}
	_, err := l.snapshots.CreateSnapshot(l.as(admin), &workspacev1.CreateSnapshotRequest{Parent: w.GetName(), Entries: entries})
	l.want(err, codes.FailedPrecondition, 0)
	for _, b := range content {
		l.upload(admin, w.GetName(), b)
	}
	if missing() != 0 {
		t.Errorf("%d are missing", missing())
	}
	first, err := l.snapshots.CreateSnapshot(l.as(admin), &workspacev1.CreateSnapshotRequest{Parent: w.GetName(), Entries: entries})
	l.ok(err)
	entries[0], entries[3] = entries[3], entries[0]
	again, err := l.snapshots.CreateSnapshot(l.as(admin), &workspacev1.CreateSnapshotRequest{Parent: w.GetName(), Entries: entries})
	l.ok(err)
	if again.GetName() != first.GetName() || again.GetUid() != first.GetUid() || len(first.GetEntries()) != 5 || first.GetEntries()[0].GetPath() != "copy.py" {
		t.Errorf("%v %v", first, again)
	}
	got, err := l.download(admin, first.GetName())
	l.ok(err)
	for path, b := range content {
		if !bytes.Equal(got[path], b) {
			t.Errorf("%s has %d bytes", path, len(got[path]))
		}
	}
	list, err := l.snapshots.ListSnapshots(l.as(admin), &workspacev1.ListSnapshotsRequest{Parent: w.GetName()})
	l.ok(err)
	if len(list.GetSnapshots()) != 1 || list.GetSnapshots()[0].GetName() != first.GetName() || len(list.GetSnapshots()[0].GetEntries()) != 0 {
		t.Errorf("%v", list)
	}
	// What one workspace has, another has not.
	res, err := l.snapshots.FindMissingBlobs(l.as(admin), &workspacev1.FindMissingBlobsRequest{Parent: w2.GetName(), Digests: digests})
	l.ok(err)
	if len(res.GetMissing()) != 4 {
		t.Errorf("%d are missing", len(res.GetMissing()))
	}
	_, err = l.snapshots.GetSnapshot(l.as(admin), &workspacev1.GetSnapshotRequest{Name: w2.GetName() + first.GetName()[len(w.GetName()):]})
	l.want(err, codes.NotFound, 0)
	l.canaries("code-canary", "data-canary", "train.py", "big.csv")

	// A run's token opens its snapshot and no other one.
	run := func(snapshot string) string {
		return ada + "|run_1|" + w.GetUid() + "|workspace/snapshots/read snapshots/" + snapshot
	}
	id := first.GetName()[len(w.GetName()+"/snapshots/"):]
	got, err = l.download(run(id), first.GetName())
	l.ok(err)
	if len(got) != 5 {
		t.Errorf("%d files", len(got))
	}
	_, err = l.download(run("s0"), first.GetName())
	if err == nil {
		t.Error("a run has read another one's code")
	}
	_, err = l.snapshots.ListSnapshots(l.as(run(id)), &workspacev1.ListSnapshotsRequest{Parent: w.GetName()})
	l.want(err, codes.PermissionDenied, faultv1.Reason_AUTHZ_OUTSIDE_RUN)
	// B1: a Reader sees code, and sends none.
	l.grant(w.GetName(), authz.Reader, bob)
	_, err = l.download(bob, first.GetName())
	l.ok(err)
	sum := sha256.Sum256(nil)
	l.want(l.send(l.as(bob), &workspacev1.UploadBlobRequest{Parent: w.GetName(), Digest: sum[:]}), codes.PermissionDenied, faultv1.Reason_AUTHZ_ACTION_MISSING)
}

// canaries searches all files of the lab, the database's too.
func (l *lab) canaries(texts ...string) {
	l.t.Helper()
	for _, dir := range []string{l.dir, filepath.Dir(l.dir)} {
		l.ok(filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			b, err := os.ReadFile(path)
			for _, text := range texts {
				if bytes.Contains(b, []byte(text)) {
					l.t.Errorf("%q stands in %s", text, path)
				}
			}
			return err
		}))
	}
}

// Nothing of a broken upload is stored.
func TestBrokenUploads(t *testing.T) {
	l := newLab(t, func(c *Config) { c.Limits = Limits{FileBytes: 1000, SnapshotBytes: 1500, Entries: 3} })
	w := l.make(admin, "w1")
	data := bytes.Repeat([]byte("x"), 500)
	sum := sha256.Sum256(data)
	part := func(parent string, digest []byte, size int64, data []byte) *workspacev1.UploadBlobRequest {
		return &workspacev1.UploadBlobRequest{Parent: parent, Digest: digest, Size: size, Data: data}
	}
	other := sha256.Sum256([]byte("other"))
	cases := []struct {
		name   string
		parts  []*workspacev1.UploadBlobRequest
		code   codes.Code
		reason faultv1.Reason
	}{
		{"no message", nil, codes.InvalidArgument, 0},
		{"other content", []*workspacev1.UploadBlobRequest{part(w.GetName(), other[:], 500, data)}, codes.InvalidArgument, faultv1.Reason_DIGEST_MISMATCH},
		{"too short", []*workspacev1.UploadBlobRequest{part(w.GetName(), sum[:], 500, data[:499])}, codes.InvalidArgument, faultv1.Reason_DIGEST_MISMATCH},
		{"nothing", []*workspacev1.UploadBlobRequest{part(w.GetName(), sum[:], 500, nil)}, codes.InvalidArgument, faultv1.Reason_DIGEST_MISMATCH},
		{"too long", []*workspacev1.UploadBlobRequest{part(w.GetName(), sum[:], 499, data)}, codes.InvalidArgument, faultv1.Reason_DIGEST_MISMATCH},
		{"over the limit", []*workspacev1.UploadBlobRequest{part(w.GetName(), sum[:], 1001, data)}, codes.ResourceExhausted, faultv1.Reason_LIMIT_EXCEEDED},
		{"negative", []*workspacev1.UploadBlobRequest{part(w.GetName(), sum[:], -1, nil)}, codes.InvalidArgument, 0},
		{"no digest", []*workspacev1.UploadBlobRequest{part(w.GetName(), nil, 500, data)}, codes.InvalidArgument, 0},
		{"digest changes", []*workspacev1.UploadBlobRequest{part(w.GetName(), sum[:], 500, data[:100]), part("", other[:], 0, data[100:])}, codes.InvalidArgument, 0},
		{"size changes", []*workspacev1.UploadBlobRequest{part(w.GetName(), sum[:], 500, data[:100]), part("", nil, 400, data[100:])}, codes.InvalidArgument, 0},
		{"workspace changes", []*workspacev1.UploadBlobRequest{part(w.GetName(), sum[:], 500, data[:100]), part(w.GetName()+"x", nil, 0, data[100:])}, codes.InvalidArgument, 0},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			l.want(l.send(l.as(admin), c.parts...), c.code, c.reason)
		})
	}
	// The client goes away in the middle.
	ctx, cancel := context.WithCancel(l.as(admin))
	stream, err := l.snapshots.UploadBlob(ctx)
	l.ok(err)
	l.ok(stream.Send(part(w.GetName(), sum[:], 500, data[:100])))
	cancel()
	_, err = stream.CloseAndRecv()
	l.want(err, codes.Canceled, 0)
	for info := range l.cfg.Blobs.List(t.Context(), "") {
		t.Errorf("%s is stored", info.Name)
	}
	entry := func(path string, digest []byte, size int64) *workspacev1.SnapshotEntry {
		return &workspacev1.SnapshotEntry{Path: path, Digest: digest, Size: size}
	}
	create := func(entries ...*workspacev1.SnapshotEntry) error {
		_, err := l.snapshots.CreateSnapshot(l.as(admin), &workspacev1.CreateSnapshotRequest{Parent: w.GetName(), Entries: entries})
		return err
	}
	l.want(create(entry("a", sum[:], 500)), codes.FailedPrecondition, 0)
	l.upload(admin, w.GetName(), data)
	l.want(create(entry("a", sum[:], 499)), codes.InvalidArgument, faultv1.Reason_DIGEST_MISMATCH)
	l.want(create(entry("../a", sum[:], 500)), codes.InvalidArgument, faultv1.Reason_PATH_INVALID)
	l.want(create(entry("a", sum[:], 500), entry("A", sum[:], 500)), codes.InvalidArgument, faultv1.Reason_PATH_INVALID)
	l.want(create(entry("a", sum[:], 500), entry("b", sum[:], 500), entry("c", sum[:], 500), entry("d", sum[:], 500)), codes.ResourceExhausted, 0)
	l.want(create(), codes.InvalidArgument, 0)
	if n := l.count("SELECT COUNT(*) FROM snapshots"); n != 0 {
		t.Errorf("%d snapshots", n)
	}
	l.ok(create(entry("a", sum[:], 500), entry("b", sum[:], 500)))
	// The same size of another content is there.
	l.want(l.send(l.as(admin), part(w.GetName(), sum[:], 499, data)), codes.InvalidArgument, faultv1.Reason_DIGEST_MISMATCH)
}

// What no snapshot took is gone after a day, and what one took stays.
func TestSweep(t *testing.T) {
	l := newLab(t)
	w := l.make(admin, "w1")
	used, unused := l.upload(admin, w.GetName(), []byte("used")), l.upload(admin, w.GetName(), []byte("unused"))
	snap, err := l.snapshots.CreateSnapshot(l.as(admin), &workspacev1.CreateSnapshotRequest{Parent: w.GetName(), Entries: []*workspacev1.SnapshotEntry{{Path: "a", Digest: used, Size: 4}}})
	l.ok(err)
	blobs := func() (n int) {
		for range l.cfg.Blobs.List(t.Context(), "") {
			n++
		}
		return n
	}
	l.ok(l.sweep(t.Context(), l.db.Write))
	if blobs() != 3 { // two files, and the entries
		t.Errorf("%d blobs", blobs())
	}
	l.advance(25 * time.Hour)
	l.ok(l.sweep(t.Context(), l.db.Write))
	if blobs() != 2 {
		t.Errorf("%d blobs", blobs())
	}
	got, err := l.download(admin, snap.GetName())
	l.ok(err)
	if string(got["a"]) != "used" {
		t.Errorf("%q", got)
	}
	res, err := l.snapshots.FindMissingBlobs(l.as(admin), &workspacev1.FindMissingBlobsRequest{Parent: w.GetName(), Digests: [][]byte{used, unused}})
	l.ok(err)
	if len(res.GetMissing()) != 1 || !bytes.Equal(res.GetMissing()[0], unused) {
		t.Errorf("%v", res)
	}
}

// D1: a file that was changed, or put in the place of another, is not handed out.
func TestDamagedContent(t *testing.T) {
	l := newLab(t)
	w := l.make(admin, "w1")
	a, b := l.upload(admin, w.GetName(), []byte("aaaa")), l.upload(admin, w.GetName(), []byte("bbbb"))
	snap, err := l.snapshots.CreateSnapshot(l.as(admin), &workspacev1.CreateSnapshotRequest{Parent: w.GetName(), Entries: []*workspacev1.SnapshotEntry{
		{Path: "a", Digest: a, Size: 4}, {Path: "b", Digest: b, Size: 4},
	}})
	l.ok(err)
	key, err := l.cfg.Keys.Key(t.Context(), w.GetUid())
	l.ok(err)
	path := func(digest []byte) string {
		return filepath.Join(l.dir, "blob", filepath.FromSlash(fileOf(key, w.GetUid(), digest).path))
	}
	first, err := os.ReadFile(path(a))
	l.ok(err)
	second, err := os.ReadFile(path(b))
	l.ok(err)
	l.ok(os.WriteFile(path(a), second, 0o600))
	_, err = l.download(admin, snap.GetName())
	l.want(err, codes.DataLoss, faultv1.Reason_DATA_DAMAGED)
	first[len(first)-1] ^= 1
	l.ok(os.WriteFile(path(a), first, 0o600))
	_, err = l.download(admin, snap.GetName())
	l.want(err, codes.DataLoss, faultv1.Reason_DATA_DAMAGED)
}
