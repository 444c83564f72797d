package client

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path"
	"path/filepath"
	"strconv"

	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"

	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// modelLimits are what an installation takes as one version by default; it has the last word.
var modelLimits = limits{files: 1000, file: 5 << 30, total: 5 << 30}

// UploadModel registers a local file, or every file of a local folder, as the next version of a model. first has parent, description,
// tags and create_model. A folder is refused before anything is sent if it holds links, devices, names that other machines take
// differently, or too much. progress, if not nil, is called with what was sent of how much.
func (c *Client) UploadModel(ctx context.Context, first *inferencev1.UploadModelVersionRequest, from string, progress func(sent, total int64)) (*inferencev1.ModelVersion, error) {
	f, err := local(from)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.root.Close() }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.Models().UploadModelVersion(ctx)
	if err != nil {
		return nil, err
	}
	sent := int64(0)
	send := func(m *inferencev1.UploadModelVersionRequest) error {
		if err := stream.Send(m); err != nil {
			return err
		}
		if sent += int64(len(m.GetData())); progress != nil {
			progress(sent, f.total)
		}
		return nil
	}
	err = send(first)
	for _, e := range f.entries {
		if err != nil {
			break
		}
		err = f.stream(e, func(begin bool, data []byte) error {
			m := &inferencev1.UploadModelVersionRequest{Data: data}
			if begin {
				m.File = &inferencev1.ModelFile{Path: e.GetPath(), Size: e.GetSize(), Digest: e.GetDigest()}
			}
			return send(m)
		})
	}
	if err != nil && !errors.Is(err, io.EOF) { // the answer says why a stream has ended
		return nil, err
	}
	return stream.CloseAndRecv()
}

// local reads a folder, or the folder of a single file with that file alone.
func local(from string) (*folder, error) {
	info, err := os.Stat(from)
	if err != nil {
		return nil, fault.FailedPrecondition("%s cannot be read: %v", shown(from), cause(err))
	}
	dir := from
	if !info.IsDir() {
		dir = filepath.Dir(from)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fault.FailedPrecondition("the folder %s cannot be read: %v", shown(dir), cause(err))
	}
	var f *folder
	if info.IsDir() {
		f, err = scan(root, modelLimits)
	} else {
		f, err = single(root, filepath.Base(from), modelLimits)
	}
	if err != nil {
		_ = root.Close()
		return nil, err
	}
	return f, nil
}

// single is a folder of one file.
func single(root *os.Root, name string, l limits) (*folder, error) {
	if wrong := badPath(name); wrong != "" {
		return nil, invalid(name, wrong)
	}
	f := &folder{root: root, limits: l}
	e, err := f.read(name)
	if err != nil {
		return nil, err
	}
	f.entries, f.total = []*workspacev1.SnapshotEntry{e}, e.GetSize()
	return f, nil
}

// stream gives a file in pieces, at least one. It gives exactly the size that was announced: a file that grew or shrank is refused by
// its digest.
func (f *folder) stream(e *workspacev1.SnapshotEntry, send func(begin bool, data []byte) error) error {
	file, _, err := openRegular(f.root, e.GetPath())
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	left := io.LimitReader(file, e.GetSize())
	for begin := true; ; begin = false {
		buf := make([]byte, min(chunk, e.GetSize()+1)) // a byte more, to see the end
		n, rerr := io.ReadFull(left, buf)
		if n > 0 || begin {
			if err := send(begin, buf[:n]); err != nil {
				return err
			}
		}
		if errors.Is(rerr, io.EOF) || errors.Is(rerr, io.ErrUnexpectedEOF) {
			return nil
		}
		if rerr != nil {
			return fault.FailedPrecondition("%s cannot be read: %v", shown(e.GetPath()), cause(rerr))
		}
	}
}

// DownloadModel writes the files of a version below dir, or only the one that only names. report, if not nil, is told how far it is.
// Each file has the size and digest that the version tells of it; it appears whole or not at all.
func (c *Client) DownloadModel(ctx context.Context, version, dir, only string, report func(Received)) error {
	v, err := c.Models().GetModelVersion(ctx, &inferencev1.GetModelVersionRequest{Name: version})
	if err != nil {
		return err
	}
	p := receiving{report: report}
	var wanted []*inferencev1.ModelFile
	for _, f := range v.GetFiles() {
		if only != "" && f.GetPath() != only {
			continue
		}
		if wrong := badPath(f.GetPath()); wrong != "" {
			return invalid(f.GetPath(), wrong+": the installation sends a name that is not written here")
		}
		wanted = append(wanted, f)
		p.now.Total += f.GetSize()
	}
	if len(wanted) == 0 {
		return fault.NotFound("the version has no file %s; `redoubt model show NAME:%d` lists what it has", shown(only), v.GetVersion())
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fault.FailedPrecondition("the folder %s cannot be made: %v", shown(dir), cause(err))
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fault.FailedPrecondition("the folder %s cannot be used: %v", shown(dir), cause(err))
	}
	defer func() { _ = root.Close() }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// An alias may be moved meanwhile: the version that was looked at is asked for by its number.
	fixed := path.Join(path.Dir(version), strconv.FormatInt(v.GetVersion(), 10))
	stream, err := c.Models().DownloadModelVersion(ctx, &inferencev1.DownloadModelVersionRequest{Name: fixed, Path: only})
	if err != nil {
		return err
	}
	m, err := stream.Recv()
	for _, f := range wanted {
		if err != nil {
			return early(err)
		}
		if got := m.GetFile(); got.GetPath() != f.GetPath() || got.GetSize() != f.GetSize() || !bytes.Equal(got.GetDigest(), f.GetDigest()) {
			return mismatch(f.GetPath())
		}
		begin := true
		var broken error // of the stream; the next file begins with the message at hand
		perr := place(root, f, &p, func() ([]byte, error) {
			if !begin {
				if m, err = stream.Recv(); err != nil || m.GetFile() != nil {
					if err != nil && !errors.Is(err, io.EOF) {
						broken = err
						return nil, err
					}
					return nil, io.EOF
				}
			}
			begin = false
			return m.GetData(), nil
		})
		if broken != nil {
			return broken
		}
		if perr != nil {
			return perr
		}
	}
	if err == nil {
		return mismatch(m.GetFile().GetPath()) // more than was told of
	}
	return nil
}

// early is an end that comes before all files have.
func early(err error) error {
	if errors.Is(err, io.EOF) {
		return fault.Unavailable("the installation stopped before all files had come; repeat the download")
	}
	return err
}
