package blob

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"iter"
	"strings"
	"sync"
	"time"

	"gocloud.dev/blob"
	"gocloud.dev/blob/driver"
	"gocloud.dev/gcerrors"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

const (
	// MaxName is the longest name in bytes.
	MaxName     = 512
	contentType = "application/octet-stream"
	// MaxPart is the longest part of a name between two slashes, in bytes.
	MaxPart = 200
)

// Config says where the blobs are: in a folder, or in a bucket.
type Config struct {
	// Dir is the folder, made if only it is missing. Required without URL.
	Dir string

	// URL is s3://bucket?endpoint=https://host:port&region=…&prefix=… (CheckURL); it takes the place of Dir.
	URL string
	// CredentialsFile is YAML with access_key_id, secret_access_key and, where it is wanted, session_token; only its owner may read it. It is
	// read again within a minute when it changes. Required with URL.
	CredentialsFile string
	// RootFile holds the roots that are believed at the endpoint, as PEM; empty believes those of the system.
	RootFile string
	// Prefix is the part of the bucket, below the URL's own prefix, that this Store lives in; empty is all of it.
	Prefix string
	// StaleAfter is the age from which on an unfinished upload is nobody's, and Open removes it; 0 is a day.
	StaleAfter time.Duration
	// Now is the clock against which that age is told; nil means time.Now.
	Now func() time.Time
}

// Info is what is known of a blob without reading it.
type Info struct {
	Name string
	// Size is the stored length in bytes.
	Size int64
	// ModTime is when it was put, by the clock of the store.
	ModTime time.Time
}

// Store keeps blobs. It is safe for concurrent use; of two Puts to one name the last to end wins.
type Store struct {
	bucket *blob.Bucket
	driver storeDriver
	once   sync.Once
}

// storeDriver is what serves a Store.
type storeDriver interface {
	driver.Bucket
	// removeAll deletes every blob below a prefix.
	removeAll(ctx context.Context, prefix string) error
	// putAll stores every item, or fails; then some may be stored.
	putAll(ctx context.Context, items []Item) error
}

// Open opens the folder or the bucket, and removes what unfinished writes have left. Its errors name the folder, or the bucket and its endpoint.
func Open(ctx context.Context, c Config) (*Store, error) {
	var d storeDriver
	var err error
	switch {
	case c.URL != "" && c.Dir != "":
		return nil, fault.InvalidArgument("blobs are either in a folder or in a bucket; the configuration names both")
	case c.URL != "":
		d, err = openS3(ctx, c)
	case c.Dir != "":
		d, err = openFolder(c.Dir)
	default:
		return nil, fault.InvalidArgument("the folder for blobs is missing in the configuration")
	}
	if err != nil {
		return nil, err
	}
	return &Store{bucket: blob.NewBucket(d), driver: d}, nil
}

// Close gives the folder free. Reads in progress go on.
func (s *Store) Close() error {
	var err error
	s.once.Do(func() { err = s.bucket.Close() })
	if err != nil {
		return fault.Internal(err, "the blob store could not be closed")
	}
	return nil
}

// CheckName says whether a blob may have the name: parts of [a-z0-9_.-] joined by single slashes, none beginning with a dot.
func CheckName(name string) error {
	if name == "" || len(name) > MaxName || !fs.ValidPath(name) {
		return badName()
	}
	for part := range strings.SplitSeq(name, "/") {
		if part[0] == '.' || len(part) > MaxPart {
			return badName()
		}
	}
	for i := range len(name) {
		switch c := name[i]; {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '_', c == '.', c == '-', c == '/':
		default:
			return badName()
		}
	}
	return nil
}

func badName() error {
	return fault.New(codes.InvalidArgument, faultv1.Reason_PATH_INVALID,
		"a blob's name is at most %d characters of a-z, 0-9, '_', '.', '-' in parts between slashes, none of which begins with a dot", MaxName)
}

// Put stores all of r under the name, in the place of what was there, and returns how many bytes that were. When it returns nil they are on
// stable storage (a bucket: its promise); otherwise nothing has changed, save where only the last step failed: bringing the rename to disk, or the answer of the bucket.
func (s *Store) Put(ctx context.Context, name string, r io.Reader) (int64, error) {
	if err := CheckName(name); err != nil {
		return 0, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w, err := s.bucket.NewWriter(ctx, name, &blob.WriterOptions{ContentType: contentType})
	if err != nil {
		return 0, mapped(ctx, err)
	}
	source := &source{r: r}
	n, err := io.Copy(w, source)
	if err != nil {
		cancelled := ctx.Err()
		cancel() // makes Close throw it away
		_ = w.Close()
		switch {
		case source.err != nil:
			return 0, source.err
		case cancelled != nil:
			return 0, cancelled
		}
		return 0, mapped(context.WithoutCancel(ctx), err)
	}
	if err := w.Close(); err != nil {
		return 0, mapped(ctx, err)
	}
	return n, nil
}

// source keeps errors of the reader apart from those of the store.
type source struct {
	r   io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

// Get reads a blob from its beginning. What is read is the blob as it was at that moment, whatever is put later. The caller closes it.
func (s *Store) Get(ctx context.Context, name string) (io.ReadCloser, error) {
	return s.GetRange(ctx, name, 0, -1)
}

// GetRange reads length bytes from offset on, or to the end if length is negative. What lies past the end is left out.
func (s *Store) GetRange(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	if offset < 0 {
		return nil, fault.InvalidArgument("a range begins at 0 or later")
	}
	r, err := s.bucket.NewRangeReader(ctx, name, offset, length, nil)
	if err != nil {
		return nil, mapped(ctx, err)
	}
	return &blobContent{ReadCloser: r, ctx: ctx}, nil
}

// blobContent is a blob that is read. Its errors are faults.
type blobContent struct {
	io.ReadCloser
	ctx context.Context //nolint:containedctx // that of the Get, which ends the reading
}

func (c *blobContent) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = mapped(c.ctx, err)
	}
	return n, err
}

// Stat is what is known of a blob.
func (s *Store) Stat(ctx context.Context, name string) (Info, error) {
	if err := CheckName(name); err != nil {
		return Info{}, err
	}
	a, err := s.bucket.Attributes(ctx, name)
	if err != nil {
		return Info{}, mapped(ctx, err)
	}
	return Info{Name: name, Size: a.Size, ModTime: a.ModTime}, nil
}

// Exists reports whether there is a blob of the name.
func (s *Store) Exists(ctx context.Context, name string) (bool, error) {
	_, err := s.Stat(ctx, name)
	if fault.Is(err, codes.NotFound) {
		return false, nil
	}
	return err == nil, err
}

// Delete removes a blob, for good when it returns. One that is not there is no error, so that a deletion can be repeated after a crash.
func (s *Store) Delete(ctx context.Context, name string) error {
	if err := CheckName(name); err != nil {
		return err
	}
	if err := mapped(ctx, s.bucket.Delete(ctx, name)); err != nil && !fault.Is(err, codes.NotFound) {
		return err
	}
	return nil
}

// DeletePrefix removes every blob whose name begins with prefix and a slash: ws_1 does not touch ws_10. It is no error if there is none. After
// an error some may be gone; repeat it.
func (s *Store) DeletePrefix(ctx context.Context, prefix string) error {
	if err := CheckName(prefix); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return mapped(ctx, s.driver.removeAll(ctx, prefix))
}

// List yields the blobs whose names begin with prefix and a slash, or all for an empty prefix, ordered by name, byte by byte. It ends after the
// first error. What is put or deleted meanwhile may be missing or not.
func (s *Store) List(ctx context.Context, prefix string) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		options := &blob.ListOptions{}
		if prefix != "" {
			if err := CheckName(prefix); err != nil {
				yield(Info{}, err)
				return
			}
			options.Prefix = prefix + "/"
		}
		for all := s.bucket.List(options); ; {
			o, err := all.Next(ctx)
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				yield(Info{}, mapped(ctx, err))
				return
			}
			if !yield(Info{Name: o.Key, Size: o.Size, ModTime: o.ModTime}, nil) {
				return
			}
		}
	}
}

// mapped is the fault of an error of the bucket, and nil for nil.
func mapped(ctx context.Context, err error) error {
	var known *fault.Error
	wrap := func(code codes.Code, reason faultv1.Reason, message string) error {
		return fault.Wrap(err, code, reason, "%s", message)
	}
	switch {
	case err == nil:
		return nil
	case errors.As(err, &known):
		return known
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return wrap(codes.ResourceExhausted, faultv1.Reason_STORAGE_FULL, "the disk is full; nothing was stored; repeat the call when there is space")
	case errors.Is(err, fs.ErrNotExist), gcerrors.Code(err) == gcerrors.NotFound:
		return wrap(codes.NotFound, faultv1.Reason_RESOURCE_NOT_FOUND, "there is no such content")
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.EISDIR), errors.Is(err, unix.ENOTEMPTY), errors.Is(err, fs.ErrExist):
		return wrap(codes.FailedPrecondition, faultv1.Reason_PRECONDITION_FAILED, "the name is that of a folder, or lies below other content")
	case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EROFS), errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE),
		gcerrors.Code(err) == gcerrors.FailedPrecondition: // the bucket was closed
		return wrap(codes.Unavailable, faultv1.Reason_SERVICE_UNAVAILABLE, "the blob store is not available; repeat the call")
	}
	return wrap(codes.Internal, faultv1.Reason_INTERNAL_FAULT, "the blob store failed")
}
