// Package outputs keeps the files that runs leave: the list in SQL, the content in blobs.
//
// Trust boundary: what a run leaves is data. A file is refused that is not what was announced of it, or goes past the limits.
//
// Invariants: content is stored under a name of its own, sealed and bound to its run, and the run's list points to it only when it has
// arrived whole.
//
// Failure: content that no list points to is taken away again; where that fails, it is garbage that nothing reads.
package outputs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"log/slog"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/blob"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/services/compute/internal/store"
)

// Config of outputs. All of it is required.
type Config struct {
	Store *store.Store
	Blobs *blob.Store
	// Most is how many files one run may leave, MaxBytes how much in all.
	Most, MaxBytes int64

	Now    func() time.Time
	Logger *slog.Logger
}

// Outputs are the files of runs. It is safe for concurrent use.
type Outputs struct{ cfg Config }

// New makes it.
func New(cfg Config) *Outputs { return &Outputs{cfg: cfg} }

func outputAAD(r *store.Run, blob string) envelope.AAD {
	return envelope.AAD{Owner: r.Workspace, Kind: "output", ID: r.UID, Field: blob}
}

// Take stores content as a file of a run. f has size and digest as far as they were announced: a size below 0 and no digest are taken as
// they come.
func (o *Outputs) Take(ctx context.Context, r *store.Run, f store.Output, first []byte, next func() ([]byte, error), record store.Record) (store.Output, error) {
	key, err := o.cfg.Store.Key(ctx, r.Workspace)
	if err != nil {
		return f, err
	}
	f.Blob = r.Workspace + "/" + key.BlobName("output", r.UID+"/"+resource.NewUID("out"))
	if err := o.storeBlob(ctx, key, outputAAD(r, f.Blob), &f, first, next); err != nil {
		return f, err
	}
	f.Created = o.cfg.Now() // when it is there: by then the run may take no more
	replaced, err := o.cfg.Store.PutOutput(ctx, r, f, o.cfg.Most, o.cfg.MaxBytes, record)
	if err != nil {
		_ = o.cfg.Blobs.Delete(context.WithoutCancel(ctx), f.Blob)
		return f, err
	}
	if replaced != "" {
		_ = o.cfg.Blobs.Delete(context.WithoutCancel(ctx), replaced)
	}
	return f, nil
}

// Room refuses before the content is sent what has no place in the limit; PutOutput decides. It gives the files that are there.
func (o *Outputs) Room(ctx context.Context, r *store.Run, path string, size int64) ([]store.Output, error) {
	if size > o.cfg.MaxBytes {
		return nil, fault.ResourceExhausted("an output has at most %d bytes; split the file", o.cfg.MaxBytes)
	}
	list, err := o.cfg.Store.Outputs(ctx, r)
	if err != nil {
		return nil, err
	}
	total := max(size, 0)
	for _, f := range list {
		if f.Path != path {
			total += f.Size
		}
	}
	if total > o.cfg.MaxBytes {
		return nil, fault.ResourceExhausted("the outputs of a run have at most %d bytes in all", o.cfg.MaxBytes)
	}
	return list, nil
}

// storeBlob encrypts what next brings into a blob, and takes it away again if it is not what was announced. It fills in size and digest.
func (o *Outputs) storeBlob(ctx context.Context, key *envelope.Key, aad envelope.AAD, f *store.Output, data []byte, next func() ([]byte, error)) error {
	pr, pw := io.Pipe()
	stored := make(chan error, 1)
	go func() {
		_, err := o.cfg.Blobs.Put(ctx, f.Blob, pr)
		_ = pr.CloseWithError(err)
		stored <- err
	}()
	err := func() error {
		w, err := key.SealStream(aad, pw)
		if err != nil {
			return err
		}
		sum, n := sha256.New(), int64(0)
		for {
			switch n += int64(len(data)); {
			case f.Size >= 0 && n > f.Size:
				return fault.InvalidArgument("more content arrived than the %d bytes that were announced", f.Size).Field("size", "is smaller than the content")
			case n > o.cfg.MaxBytes:
				return fault.ResourceExhausted("an output has at most %d bytes; split the file", o.cfg.MaxBytes)
			}
			sum.Write(data)
			if _, err := w.Write(data); err != nil {
				return err
			}
			var err error
			if data, err = next(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				return err
			}
		}
		got := sum.Sum(nil)
		if f.Size >= 0 && n != f.Size || f.Digest != nil && !bytes.Equal(got, f.Digest) {
			return fault.New(codes.InvalidArgument, faultv1.Reason_DIGEST_MISMATCH, "the content is not what was announced: %d bytes of %d, or another digest; send it again", n, f.Size)
		}
		f.Size, f.Digest = n, got
		return w.Close()
	}()
	_ = pw.CloseWithError(err) // nil ends the blob; an error makes Put leave nothing
	if e := <-stored; err == nil {
		err = e
	}
	return err
}

// Send gives the content of a file in pieces; an empty file is one empty piece.
func (o *Outputs) Send(ctx context.Context, r *store.Run, f store.Output, send func(data []byte) error) error {
	key, err := o.cfg.Store.Key(ctx, r.Workspace)
	if err != nil {
		return err
	}
	b, err := o.cfg.Blobs.Get(ctx, f.Blob)
	if err != nil {
		return err
	}
	defer func() { _ = b.Close() }()
	plain, err := key.OpenStream(outputAAD(r, f.Blob), b)
	if err != nil {
		return err
	}
	buf := make([]byte, 256<<10)
	for sent := int64(0); ; {
		n, err := io.ReadFull(plain, buf)
		if n > 0 || sent == 0 {
			if err := send(buf[:n]); err != nil {
				return err
			}
			sent += int64(n)
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// Remove takes away the content of files that are in no list any more. What cannot be removed is left, and logged.
func (o *Outputs) Remove(ctx context.Context, r *store.Run, blobs []string) {
	for _, b := range blobs {
		if err := o.cfg.Blobs.Delete(context.WithoutCancel(ctx), b); err != nil {
			o.cfg.Logger.Warn("the content of a deleted file could not be removed", "run_uid", r.UID, "error", err)
		}
	}
}

// Message is a file as callers see it.
func Message(f store.Output) *computev1.Output {
	return &computev1.Output{Path: f.Path, Size: f.Size, Digest: f.Digest, CreateTime: timestamppb.New(f.Created)}
}
