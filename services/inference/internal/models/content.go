package models

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/services/inference/internal/store"
)

// folderOf is where the blobs of a version are.
func folderOf(key *envelope.Key, version string) string {
	return key.Owner() + "/" + key.BlobName("model_version", version)
}

// place is the blob of one file, and what it is bound to.
func place(key *envelope.Key, version, path string) (name string, aad envelope.AAD) {
	return folderOf(key, version) + "/" + key.BlobName("model_file", version+"/"+path), envelope.AAD{Owner: key.Owner(), Kind: "model_file", ID: version, Field: path}
}

// pieces gives the next part of a file's content, and io.EOF at its end.
type pieces func() ([]byte, error)

// put encrypts a file's content into its blob. What is not of the announced size and digest is not stored.
func (s *Service) put(ctx context.Context, key *envelope.Key, version string, f file, next pieces) error {
	name, aad := place(key, version, f.Path)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	pr, pw := io.Pipe()
	stored := make(chan error, 1)
	go func() {
		_, err := s.cfg.Blobs.Put(ctx, name, pr)
		_ = pr.CloseWithError(err) // frees the writer below
		stored <- err
	}()
	w, err := key.SealStream(aad, pw)
	if err == nil {
		if err = receive(w, f, next); err == nil {
			err = w.Close()
		}
	}
	_ = pw.CloseWithError(err) // nil ends the blob; an error makes Put leave nothing
	if e := <-stored; e != nil {
		return e // the same, where the content failed
	}
	return err
}

func receive(w io.Writer, f file, next pieces) error {
	sum, n := sha256.New(), int64(0)
	for {
		data, err := next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if n += int64(len(data)); n > f.Size {
			return errMismatch("more content arrived than the %d bytes that were announced", f.Size)
		}
		sum.Write(data)
		if _, err := w.Write(data); err != nil {
			return err
		}
	}
	if n != f.Size {
		return errMismatch("the content ended after %d bytes of %d; send it again", n, f.Size)
	}
	if !bytes.Equal(sum.Sum(nil), f.digest()) {
		return errMismatch("the content has another SHA-256 than was announced; has the file changed meanwhile?")
	}
	return nil
}

func errMismatch(format string, args ...any) error {
	return fault.New(codes.InvalidArgument, faultv1.Reason_DIGEST_MISMATCH, format, args...)
}

// chunk is how much of a file one message of a download carries.
const chunk = 256 << 10

// read gives a file's content to each in pieces of at most chunk bytes, the first also if it is empty, and fails unless all of it is what
// was signed.
func (s *Service) read(ctx context.Context, key *envelope.Key, version string, f file, each func(data []byte) error) error {
	name, aad := place(key, version, f.Path)
	b, err := s.cfg.Blobs.Get(ctx, name)
	if fault.Is(err, codes.NotFound) {
		return errDamaged()
	}
	if err != nil {
		return err
	}
	defer func() { _ = b.Close() }()
	plain, err := key.OpenStream(aad, b)
	if err != nil {
		return err
	}
	sum, sent, buf := sha256.New(), int64(0), make([]byte, chunk)
	for first := true; ; first = false {
		n, err := io.ReadFull(plain, buf)
		ended := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
		if err != nil && !ended {
			return err
		}
		sum.Write(buf[:n])
		if sent += int64(n); sent > f.Size || ended && (sent != f.Size || hex.EncodeToString(sum.Sum(nil)) != f.SHA256) {
			return errDamaged()
		}
		if n > 0 || first {
			if err := each(buf[:n]); err != nil {
				return err
			}
		}
		if ended {
			return nil
		}
	}
}

// begin notes where the blobs of a new version will be. end removes them, unless the version is there by then.
func (s *Service) begin(ctx context.Context, key *envelope.Key, version string) (end func(added bool), err error) {
	left := store.Leftover{Version: version, Workspace: key.Owner(), Folder: folderOf(key, version)}
	s.mu.Lock()
	s.busy[version] = true
	s.mu.Unlock()
	idle := func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.busy, version)
	}
	if err := s.store.BeginVersion(ctx, left, s.cfg.Now()); err != nil {
		idle()
		return nil, err
	}
	return func(added bool) {
		defer idle()
		if !added {
			s.clear(context.WithoutCancel(ctx), left)
		}
	}, nil
}

// clear removes left-over blobs. What fails is tried again by the sweep.
func (s *Service) clear(ctx context.Context, left ...store.Leftover) {
	for _, l := range left {
		if err := s.remove(ctx, l); err != nil {
			s.cfg.Logger.WarnContext(ctx, "the files of a model version were not removed; the next sweep does", "version", l.Version, "error", err)
		}
	}
}

// remove removes blobs while a row says that they are left over: where a commit was acknowledged late, the version may be there.
func (s *Service) remove(ctx context.Context, l store.Leftover) error {
	still, err := s.store.IsLeftover(ctx, l.Version)
	if err != nil || !still {
		return err
	}
	if err := s.cfg.Blobs.DeletePrefix(ctx, l.Folder); err != nil {
		return err
	}
	return s.store.ForgetLeftover(ctx, l.Version)
}

// sweep removes what earlier processes and failed removals have left.
func (s *Service) sweep(ctx context.Context) error {
	list, err := s.store.Leftovers(ctx)
	if err != nil {
		return err
	}
	var all error
	for _, l := range list {
		s.mu.Lock()
		busy := s.busy[l.Version]
		s.mu.Unlock()
		if !busy {
			all = errors.Join(all, s.remove(ctx, l))
		}
	}
	return all
}
