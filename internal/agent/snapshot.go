package agent

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// populate brings the run's snapshot into its working folder, and after it the models of a replica. Nothing is written outside of it,
// whatever the paths say, and every file is what its entry says, or the run does not start.
func (c *carry) populate(ctx context.Context) func(*os.Root) error {
	return func(work *os.Root) error {
		if err := c.download(ctx, work); err != nil || c.serve == nil {
			return err
		}
		return c.serve.download(ctx, c.a.link, work)
	}
}

func (c *carry) download(ctx context.Context, work *os.Root) error {
	if c.task.GetSnapshot() == "" {
		return nil
	}
	return c.a.link.retryEach(ctx, 0, func(ctx context.Context) error {
		stream, err := c.a.link.snapshots.DownloadSnapshot(ctx, &workspacev1.DownloadSnapshotRequest{Name: c.task.GetSnapshot()})
		if err != nil {
			return err
		}
		var whole []*workspacev1.SnapshotFile // of the last message, still to be written
		return receive(work, "snapshot", func() (*entry, []byte, error) {
			for len(whole) == 0 {
				m, err := stream.Recv()
				if err != nil {
					return nil, nil, err
				}
				if whole = m.GetFiles(); len(whole) == 0 {
					return announced(m.GetEntry()), m.GetData(), nil
				}
			}
			f := whole[0]
			whole = whole[1:]
			return announced(f.GetEntry()), f.GetData(), nil
		})
	})
}

// announced is nil where a message only goes on with a file.
func announced(e *workspacev1.SnapshotEntry) *entry {
	if e == nil {
		return nil
	}
	return &entry{path: e.GetPath(), size: e.GetSize(), digest: e.GetDigest(), executable: e.GetExecutable()}
}

// entry announces a file.
type entry struct {
	path       string
	size       int64
	digest     []byte // SHA-256
	executable bool
}

// receive writes the files that come, of what is called so; the first piece of each comes with its entry. After an error it may be
// called again, with all files from the beginning.
func receive(work *os.Root, what string, recv func() (*entry, []byte, error)) (err error) {
	var f *incoming
	defer func() {
		if f != nil {
			_ = f.file.Close()
		}
	}()
	for {
		e, data, err := recv()
		if errors.Is(err, io.EOF) {
			return f.finish()
		}
		if err != nil {
			return err
		}
		if e != nil {
			if err := f.finish(); err != nil {
				return err
			}
			if f, err = create(work, what, e); err != nil {
				return err
			}
		}
		if f == nil {
			return fault.New(codes.DataLoss, faultv1.Reason_DATA_DAMAGED, "the %s came without the entry of its first file", what)
		}
		if err := f.write(data); err != nil {
			return err
		}
	}
}

// incoming is the file that is being written.
type incoming struct {
	file  *os.File
	what  string // it is part of
	entry *entry
	sum   hash.Hash
	size  int64
}

func create(work *os.Root, what string, e *entry) (*incoming, error) {
	name := e.path
	if !fs.ValidPath(name) || name == "." || len(e.digest) != sha256.Size {
		return nil, fault.New(codes.DataLoss, faultv1.Reason_PATH_INVALID, "the %s holds a path that is not one, or no digest for it", what)
	}
	if dir := path.Dir(name); dir != "." {
		if err := work.MkdirAll(dir, 0o755); err != nil {
			return nil, written(err)
		}
	}
	// The mode on an exclusive file: a second try finds what the first one left, and removes it.
	mode := fs.FileMode(0o644)
	if e.executable {
		mode = 0o755
	}
	if err := work.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, written(err)
	}
	f, err := work.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return nil, written(err)
	}
	return &incoming{file: f, what: what, entry: e, sum: sha256.New()}, nil
}

func (f *incoming) write(data []byte) error {
	if f.size += int64(len(data)); f.size > f.entry.size {
		return f.mismatch()
	}
	_, _ = f.sum.Write(data) // never fails
	if _, err := f.file.Write(data); err != nil {
		return written(err)
	}
	return nil
}

// finish closes the file, if there is one, and looks whether it is what was announced.
func (f *incoming) finish() error {
	if f == nil {
		return nil
	}
	if err := f.file.Close(); err != nil {
		return written(err)
	}
	if f.size != f.entry.size || !bytes.Equal(f.sum.Sum(nil), f.entry.digest) {
		return f.mismatch()
	}
	return nil
}

func (f *incoming) mismatch() error {
	return fault.New(codes.DataLoss, faultv1.Reason_DIGEST_MISMATCH, "the file %q of the %s is not what its digest says; upload it again", f.entry.path, f.what)
}

// written is what is told when a file cannot be written. The sandbox tells a full disk itself.
func written(err error) error {
	return fault.Wrap(err, codes.FailedPrecondition, faultv1.Reason_PRECONDITION_FAILED, "a file could not be written into the working folder: %v", errors.Unwrap(err))
}
