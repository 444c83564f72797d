package client

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"

	"golang.org/x/sync/errgroup"

	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

const (
	// chunk is how much of a file one message carries.
	chunk = 256 << 10
	// atOnce is how many files are on their way at a time: what a service stores at the same time shares one commit.
	atOnce = 32
	// Files of at most smallBytes go many in a call: batchFiles and batchBytes at most, batchesAtOnce calls at a time.
	smallBytes    = 64 << 10
	batchFiles    = 250
	batchBytes    = 512 << 10
	batchesAtOnce = 4
)

// Progress is how far an upload is.
type Progress struct {
	// Files and Bytes are all that the folder has; MissingFiles and MissingBytes what the installation does not have yet.
	Files, MissingFiles int
	Bytes, MissingBytes int64
	// SentFiles and SentBytes are what was sent of that.
	SentFiles int
	SentBytes int64
}

// UploadSnapshot makes a snapshot of a local folder: every regular file in it. What the workspace has already is not sent. The
// folder is refused, before anything is sent, if it holds links, devices, names that other machines take differently, or too much.
// progress, if not nil, is called one at a time.
func (c *Client) UploadSnapshot(ctx context.Context, workspace, dir string, progress func(Progress)) (*workspacev1.Snapshot, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fault.FailedPrecondition("the folder %s cannot be read: %v", shown(dir), cause(err))
	}
	defer func() { _ = root.Close() }()
	f, err := scan(root, defaults)
	if err != nil {
		return nil, err
	}
	// One file for each content.
	byDigest := make(map[string]*workspacev1.SnapshotEntry, len(f.entries))
	digests := make([][]byte, 0, len(f.entries))
	for _, e := range f.entries {
		if _, ok := byDigest[string(e.GetDigest())]; !ok {
			byDigest[string(e.GetDigest())] = e
			digests = append(digests, e.GetDigest())
		}
	}
	missing, err := c.Snapshots().FindMissingBlobs(ctx, &workspacev1.FindMissingBlobsRequest{Parent: workspace, Digests: digests})
	if err != nil {
		return nil, err
	}
	u := &upload{c: c, workspace: workspace, folder: f, report: progress, p: Progress{Files: len(f.entries), Bytes: f.total}}
	var small, large []*workspacev1.SnapshotEntry
	for _, d := range missing.GetMissing() {
		e, ok := byDigest[string(d)]
		if !ok {
			return nil, fault.Internal(errors.New("unknown digest"), "the installation asks for a file that was not offered")
		}
		if e.GetSize() <= smallBytes {
			small = append(small, e)
		} else {
			large = append(large, e)
		}
		u.p.MissingFiles++
		u.p.MissingBytes += e.GetSize()
	}
	u.tell(0, 0)
	if err := each(ctx, batchesAtOnce, batches(small), u.sendTogether); err != nil {
		return nil, err
	}
	if err := each(ctx, atOnce, large, u.send); err != nil {
		return nil, err
	}
	return c.Snapshots().CreateSnapshot(ctx, &workspacev1.CreateSnapshotRequest{Parent: workspace, Entries: f.entries})
}

// each does something for every part, some at a time, until it fails.
func each[T any](ctx context.Context, atOnce int, parts []T, do func(context.Context, T) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(atOnce)
	for _, p := range parts {
		g.Go(func() error { return do(ctx, p) })
	}
	return g.Wait()
}

// batches cuts small files into what one call takes.
func batches(files []*workspacev1.SnapshotEntry) (out [][]*workspacev1.SnapshotEntry) {
	begin, sum := 0, int64(0)
	for i, e := range files {
		if sum += e.GetSize(); i-begin == batchFiles || sum > batchBytes {
			out = append(out, files[begin:i])
			begin, sum = i, e.GetSize()
		}
	}
	if begin < len(files) {
		out = append(out, files[begin:])
	}
	return out
}

type upload struct {
	c         *Client
	workspace string
	folder    *folder
	report    func(Progress)

	mu sync.Mutex
	p  Progress
}

func (u *upload) tell(files int, bytes int64) {
	if u.report == nil {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.p.SentFiles += files
	u.p.SentBytes += bytes
	u.report(u.p)
}

// sendTogether sends small files in one call.
func (u *upload) sendTogether(ctx context.Context, files []*workspacev1.SnapshotEntry) error {
	req, sum := &workspacev1.UploadBlobsRequest{Parent: u.workspace}, int64(0)
	for _, e := range files {
		var content []byte
		if err := u.folder.stream(e, func(_ bool, data []byte) error {
			content = append(content, data...)
			return nil
		}); err != nil {
			return err
		}
		req.Blobs = append(req.Blobs, &workspacev1.SmallBlob{Digest: e.GetDigest(), Data: content})
		sum += e.GetSize()
	}
	if _, err := u.c.Snapshots().UploadBlobs(ctx, req); err != nil {
		return err
	}
	u.tell(len(files), sum)
	return nil
}

// send streams one file.
func (u *upload) send(ctx context.Context, e *workspacev1.SnapshotEntry) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := u.c.Snapshots().UploadBlob(ctx)
	if err != nil {
		return err
	}
	err = u.folder.stream(e, func(begin bool, data []byte) error {
		m := &workspacev1.UploadBlobRequest{Data: data}
		if begin {
			m.Parent, m.Digest, m.Size = u.workspace, e.GetDigest(), e.GetSize()
		}
		if err := stream.Send(m); err != nil {
			return err
		}
		u.tell(0, int64(len(data)))
		return nil
	})
	if err != nil && !errors.Is(err, io.EOF) { // the answer says why a stream has ended
		return err
	}
	if _, err := stream.CloseAndRecv(); err != nil {
		return err
	}
	u.tell(1, 0)
	return nil
}
