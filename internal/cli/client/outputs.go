package client

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path"

	"google.golang.org/grpc/codes"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// DownloadOutputs writes the outputs of a run below dir, which is made if it is missing: those with the given paths, or all. took, if
// not nil, is called after each. A file that is there already is replaced.
func (c *Client) DownloadOutputs(ctx context.Context, run, dir string, paths []string, report func(Received)) error {
	list, err := c.Runs().ListOutputs(ctx, &computev1.ListOutputsRequest{Name: run})
	if err != nil {
		return err
	}
	byPath := make(map[string]*computev1.Output, len(list.GetOutputs()))
	for _, o := range list.GetOutputs() {
		byPath[o.GetPath()] = o
		if len(paths) == 0 {
			if wrong := badPath(o.GetPath()); wrong != "" {
				return invalid(o.GetPath(), wrong+": the installation sends a name that is not written here")
			}
		}
	}
	wanted := list.GetOutputs()
	if len(paths) > 0 {
		wanted = nil
		for _, p := range paths {
			o, ok := byPath[p]
			if !ok {
				return fault.NotFound("the run has no output %s; `redoubt run outputs` lists what it has", shown(p))
			}
			wanted = append(wanted, o)
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fault.FailedPrecondition("the folder %s cannot be made: %v", shown(dir), cause(err))
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fault.FailedPrecondition("the folder %s cannot be used: %v", shown(dir), cause(err))
	}
	defer func() { _ = root.Close() }()
	p := receiving{report: report}
	for _, o := range wanted {
		p.now.Total += o.GetSize()
	}
	for _, o := range wanted {
		if err := c.downloadOutput(ctx, run, o, root, &p); err != nil {
			return err
		}
	}
	return nil
}

// downloadOutput writes one output below root, under its own path. The file appears when all of it has come and has the size and
// digest that ListOutputs told; else nothing is left.
func (c *Client) downloadOutput(ctx context.Context, run string, o *computev1.Output, root *os.Root, p *receiving) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.Runs().DownloadOutput(ctx, &computev1.DownloadOutputRequest{Name: run, Path: o.GetPath()})
	if err != nil {
		return err
	}
	return place(root, o, p, func() ([]byte, error) {
		m, err := stream.Recv()
		return m.GetData(), err
	})
}

// Received is how far a download is.
type Received struct {
	// Bytes of Total have come.
	Bytes, Total int64
	// Path is the file that is whole since just now, of Size bytes; "" in between.
	Path string
	Size int64
}

// receiving counts for a report, which may be nil.
type receiving struct {
	report func(Received)
	now    Received
}

func (r *receiving) add(n int) {
	if r.now.Bytes += int64(n); r.report != nil {
		r.report(r.now)
	}
}

func (r *receiving) whole(f entry) {
	if r.report != nil {
		told := r.now
		told.Path, told.Size = f.GetPath(), f.GetSize()
		r.report(told)
	}
}

// entry is a file as the installation tells of it.
type entry interface {
	GetPath() string
	GetSize() int64
	GetDigest() []byte
}

// place writes what next gives until io.EOF.
func place(root *os.Root, o entry, progress *receiving, next func() ([]byte, error)) (err error) {
	p := o.GetPath()
	if wrong := badPath(p); wrong != "" {
		return invalid(p, wrong+": the installation sends a name that is not written here")
	}
	bad := func(err error) error {
		return fault.FailedPrecondition("%s cannot be written: %v", shown(p), cause(err))
	}
	if dir := path.Dir(p); dir != "." {
		if err := root.MkdirAll(dir, 0o700); err != nil {
			return bad(err)
		}
	}
	part := path.Join(path.Dir(p), ".redoubt-"+rand.Text()+".part")
	file, err := root.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return bad(err)
	}
	defer func() {
		if err != nil {
			_ = file.Close()
			_ = root.Remove(part)
		}
	}()
	h := sha256.New()
	var n int64
	for {
		data, err := next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if n += int64(len(data)); n > o.GetSize() {
			return mismatch(p)
		}
		_, _ = h.Write(data)
		if _, err := file.Write(data); err != nil {
			return bad(err)
		}
		progress.add(len(data))
	}
	if n != o.GetSize() || !bytes.Equal(h.Sum(nil), o.GetDigest()) {
		return mismatch(p)
	}
	if err := file.Close(); err != nil {
		return bad(err)
	}
	if err := root.Rename(part, p); err != nil {
		return bad(err)
	}
	progress.whole(o)
	return nil
}

func mismatch(p string) error {
	return fault.New(codes.DataLoss, faultv1.Reason_DIGEST_MISMATCH, "what came as %s is not what was told of it; repeat the download", shown(p))
}
