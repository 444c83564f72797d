package compute

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/runspec"
	"github.com/redoubt-ml/redoubt/services/compute/internal/store"
)

func outputAAD(r *store.Run, blob string) envelope.AAD {
	return envelope.AAD{Owner: r.Workspace, Kind: "output", ID: r.UID, Field: blob}
}

// UploadOutput implements computev1.AgentRunServiceServer. The content is stored under a name of its own, and the run's list points
// to it only when it has arrived whole.
func (h agents) UploadOutput(stream grpc.ClientStreamingServer[computev1.UploadOutputRequest, computev1.Output]) error {
	ctx := stream.Context()
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	r, err := h.carried(ctx, first.GetName())
	if err != nil {
		return err
	}
	if err := runspec.Path("path", "the path of an output", first.GetPath()); err != nil {
		return err
	}
	if first.GetSize() < 0 || len(first.GetDigest()) != sha256.Size {
		return fault.InvalidArgument("the first message has size and SHA-256 digest").Field("digest", "has 32 bytes")
	}
	if _, err := h.s.room(ctx, r, first.GetPath(), first.GetSize()); err != nil {
		return err
	}
	o, err := h.s.take(ctx, r, store.Output{Path: first.GetPath(), Size: first.GetSize(), Digest: first.GetDigest()}, first.GetData(), func() ([]byte, error) {
		m, err := stream.Recv()
		return m.GetData(), err
	}, nil)
	if err != nil {
		return err
	}
	return stream.SendAndClose(outputMessage(o))
}

// take stores content as a file of a run. o has size and digest as far as they were announced: a size below 0 and no digest are taken as
// they come.
func (s *Service) take(ctx context.Context, r *store.Run, o store.Output, first []byte, next func() ([]byte, error), record store.Record) (store.Output, error) {
	key, err := s.store.Key(ctx, r.Workspace)
	if err != nil {
		return o, err
	}
	o.Blob, o.Created = r.Workspace+"/"+key.BlobName("output", r.UID+"/"+resource.NewUID("out")), s.cfg.Now()
	if err := s.storeBlob(ctx, key, outputAAD(r, o.Blob), &o, first, next); err != nil {
		return o, err
	}
	replaced, err := s.store.PutOutput(ctx, r, o, s.cfg.MaxOutputs, s.cfg.MaxOutputBytes, record)
	if err != nil {
		_ = s.cfg.Blobs.Delete(context.WithoutCancel(ctx), o.Blob)
		return o, err
	}
	if replaced != "" {
		_ = s.cfg.Blobs.Delete(context.WithoutCancel(ctx), replaced)
	}
	return o, nil
}

// room refuses before the content is sent what has no place in the limit; PutOutput decides. It gives the files that are there.
func (s *Service) room(ctx context.Context, r *store.Run, path string, size int64) ([]store.Output, error) {
	if size > s.cfg.MaxOutputBytes {
		return nil, fault.ResourceExhausted("an output has at most %d bytes; split the file", s.cfg.MaxOutputBytes)
	}
	list, err := s.store.Outputs(ctx, r)
	if err != nil {
		return nil, err
	}
	total := max(size, 0)
	for _, o := range list {
		if o.Path != path {
			total += o.Size
		}
	}
	if total > s.cfg.MaxOutputBytes {
		return nil, fault.ResourceExhausted("the outputs of a run have at most %d bytes in all", s.cfg.MaxOutputBytes)
	}
	return list, nil
}

// storeBlob encrypts what next brings into a blob, and takes it away again if it is not what was announced. It fills in size and digest.
func (s *Service) storeBlob(ctx context.Context, key *envelope.Key, aad envelope.AAD, o *store.Output, data []byte, next func() ([]byte, error)) error {
	pr, pw := io.Pipe()
	stored := make(chan error, 1)
	go func() {
		_, err := s.cfg.Blobs.Put(ctx, o.Blob, pr)
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
			case o.Size >= 0 && n > o.Size:
				return fault.InvalidArgument("more content arrived than the %d bytes that were announced", o.Size).Field("size", "is smaller than the content")
			case n > s.cfg.MaxOutputBytes:
				return fault.ResourceExhausted("an output has at most %d bytes; split the file", s.cfg.MaxOutputBytes)
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
		if o.Size >= 0 && n != o.Size || o.Digest != nil && !bytes.Equal(got, o.Digest) {
			return fault.New(codes.InvalidArgument, faultv1.Reason_DIGEST_MISMATCH, "the content is not what was announced: %d bytes of %d, or another digest; send it again", n, o.Size)
		}
		o.Size, o.Digest = n, got
		return w.Close()
	}()
	_ = pw.CloseWithError(err) // nil ends the blob; an error makes Put leave nothing
	if e := <-stored; err == nil {
		err = e
	}
	return err
}

// DownloadOutput implements computev1.RunServiceServer.
func (h runs) DownloadOutput(req *computev1.DownloadOutputRequest, stream grpc.ServerStreamingServer[computev1.DownloadOutputResponse]) error {
	ctx := stream.Context()
	r, err := h.s.run(ctx, req.GetName())
	if err != nil {
		return err
	}
	o, err := h.s.store.Output(ctx, r, req.GetPath())
	if err != nil {
		return absent(err, req.GetName()+" output "+req.GetPath())
	}
	key, err := h.s.store.Key(ctx, r.Workspace)
	if err != nil {
		return err
	}
	b, err := h.s.cfg.Blobs.Get(ctx, o.Blob)
	if err != nil {
		return err
	}
	defer func() { _ = b.Close() }()
	plain, err := key.OpenStream(outputAAD(r, o.Blob), b)
	if err != nil {
		return err
	}
	buf := make([]byte, 256<<10)
	for sent := int64(0); ; {
		n, err := io.ReadFull(plain, buf)
		if n > 0 || sent == 0 {
			if err := stream.Send(&computev1.DownloadOutputResponse{Data: buf[:n]}); err != nil {
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
