package blob

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"gocloud.dev/blob/driver"
	"gocloud.dev/gcerrors"
	"golang.org/x/sys/unix"
)

var _ driver.Bucket = (*folder)(nil)

// errUnsupported is what a Store never asks for.
var errUnsupported = errors.New("blob: the folder driver does not do this")

const defaultPage = 1000

// ErrorCode implements driver.Bucket.
func (f *folder) ErrorCode(err error) gcerrors.ErrorCode {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return gcerrors.NotFound
	case errors.Is(err, errUnsupported):
		return gcerrors.Unimplemented
	default:
		return gcerrors.Unknown
	}
}

// As implements driver.Bucket.
func (*folder) As(any) bool { return false }

// ErrorAs implements driver.Bucket.
func (*folder) ErrorAs(error, any) bool { return false }

// Close implements driver.Bucket. Closing the lock's file drops the flock.
func (f *folder) Close() error {
	var locked error
	if f.lock != nil {
		locked = f.lock.Close()
	}
	return errors.Join(locked, f.root.Close())
}

// Attributes implements driver.Bucket.
func (f *folder) Attributes(_ context.Context, name string) (*driver.Attributes, error) {
	info, err := f.root.Lstat(name)
	if err != nil {
		return nil, notDir(err)
	}
	if !info.Mode().IsRegular() {
		return nil, fs.ErrNotExist
	}
	return &driver.Attributes{Size: info.Size(), ModTime: info.ModTime(), AsFunc: func(any) bool { return false }}, nil
}

// notDir makes "x/y" below a blob "x" what it is: not there.
func notDir(err error) error {
	if errors.Is(err, unix.ENOTDIR) {
		return fs.ErrNotExist
	}
	return err
}

// NewRangeReader implements driver.Bucket.
func (f *folder) NewRangeReader(ctx context.Context, name string, offset, length int64, _ *driver.ReaderOptions) (driver.Reader, error) {
	// The store makes no links. One within the folder, which os.Root would follow, is not a blob either.
	if _, err := f.Attributes(ctx, name); err != nil {
		return nil, err
	}
	file, err := f.root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, notDir(err)
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fs.ErrNotExist
	}
	if err == nil && offset > 0 {
		_, err = file.Seek(offset, io.SeekStart)
	}
	if err != nil {
		_ = file.Close()
		return nil, err
	}
	r := &reader{Reader: file, file: file, attributes: driver.ReaderAttributes{Size: info.Size(), ModTime: info.ModTime()}}
	if length >= 0 {
		r.Reader = io.LimitReader(file, length)
	}
	return r, nil
}

type reader struct {
	io.Reader
	file       *os.File
	attributes driver.ReaderAttributes
}

func (r *reader) Close() error                         { return r.file.Close() }
func (r *reader) Attributes() *driver.ReaderAttributes { return &r.attributes }
func (*reader) As(any) bool                            { return false }

// NewTypedWriter implements driver.Bucket.
func (f *folder) NewTypedWriter(ctx context.Context, name, _ string, options *driver.WriterOptions) (driver.Writer, error) {
	if options.IfNotExist || len(options.Metadata) > 0 {
		return nil, errUnsupported
	}
	if f.broken.Load() {
		return nil, errBroken()
	}
	file, from, err := f.temporary()
	if err != nil {
		return nil, err
	}
	return &writer{ctx: ctx, folder: f, file: file, from: from, name: name}, nil
}

// temporary makes a file for a write in progress. The random part is all that its name needs: the folder is this process's alone.
func (f *folder) temporary() (*os.File, string, error) {
	from := temporary + "/" + strings.ToLower(rand.Text())
	file, err := f.root.OpenFile(from, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, "", fmt.Errorf("make a temporary file: %w", hideNotExist(err))
	}
	return file, from, nil
}

// hideNotExist keeps a store whose folder was taken away from looking like one without the blob.
func hideNotExist(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return errors.New("the folder is gone")
	}
	return err
}

type writer struct {
	ctx        context.Context //nolint:containedctx // its end makes Close throw the file away, as gocloud defines it
	folder     *folder
	file       *os.File
	from, name string
}

func (w *writer) Write(p []byte) (int, error) { return w.file.Write(p) }

// Close stores what was written, or throws it away if the context has ended.
func (w *writer) Close() error {
	err := w.ctx.Err()
	if err == nil {
		err = w.folder.sync(w.file)
	}
	if closed := w.file.Close(); err == nil {
		err = closed
	}
	if err == nil && w.folder.broken.Load() {
		err = errBroken() // another one's fsync failed meanwhile
	}
	if err == nil {
		err = w.folder.place(w.from, w.name)
	}
	if err != nil {
		_ = w.folder.root.Remove(w.from) // not there if only the last fsync failed
	}
	return err
}

// Delete implements driver.Bucket.
func (f *folder) Delete(_ context.Context, name string, _ *driver.DeleteOptions) error {
	return notDir(f.remove(name))
}

// Copy implements driver.Bucket.
func (*folder) Copy(context.Context, string, string, *driver.CopyOptions) error {
	return errUnsupported
}

// SignedURL implements driver.Bucket.
func (*folder) SignedURL(context.Context, string, *driver.SignedURLOptions) (string, error) {
	return "", errUnsupported
}

// ListPaged implements driver.Bucket. The page token is the last name of the page before.
func (f *folder) ListPaged(ctx context.Context, options *driver.ListOptions) (*driver.ListPage, error) {
	if options.Delimiter != "" {
		return nil, errUnsupported
	}
	l := &listing{folder: f, prefix: options.Prefix, after: string(options.PageToken), size: options.PageSize}
	if l.size <= 0 {
		l.size = defaultPage
	}
	if err := l.walk(ctx, ""); err != nil && !errors.Is(err, errFull) {
		return nil, err
	}
	page := &driver.ListPage{Objects: l.found}
	if len(l.found) > l.size {
		page.Objects = l.found[:l.size]
		page.NextPageToken = []byte(page.Objects[l.size-1].Key)
	}
	return page, nil
}

type listing struct {
	folder        *folder
	prefix, after string
	size          int
	found         []*driver.ListObject
}

var errFull = errors.New("the page is full")

// walk visits what lies below dir, which is empty or ends with a slash, in the order of the names.
func (l *listing) walk(ctx context.Context, dir string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	entries, err := fs.ReadDir(l.folder.root.FS(), path.Clean(dir)) // Clean makes "." of ""
	if errors.Is(err, fs.ErrNotExist) {
		return nil // deleted meanwhile
	}
	if err != nil {
		return err
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		switch {
		case strings.HasPrefix(e.Name(), "."):
		case e.IsDir(): // with its slash, so that a-b comes before a/b
			names = append(names, dir+e.Name()+"/")
		case e.Type().IsRegular():
			names = append(names, dir+e.Name())
		}
	}
	slices.Sort(names)
	for _, name := range names {
		if strings.HasSuffix(name, "/") {
			mayMatch := strings.HasPrefix(name, l.prefix) || strings.HasPrefix(l.prefix, name)
			allBefore := name < l.after && !strings.HasPrefix(l.after, name)
			if mayMatch && !allBefore {
				if err := l.walk(ctx, name); err != nil {
					return err
				}
			}
			continue
		}
		if !strings.HasPrefix(name, l.prefix) || l.after != "" && name <= l.after {
			continue
		}
		info, err := l.folder.root.Lstat(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		l.found = append(l.found, &driver.ListObject{Key: name, Size: info.Size(), ModTime: info.ModTime(), AsFunc: func(any) bool { return false }})
		if len(l.found) > l.size {
			return errFull // one more than asked for: there is another page
		}
	}
	return nil
}
