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
	if first.GetSize() > h.s.cfg.MaxOutputBytes {
		return fault.ResourceExhausted("an output has at most %d bytes; split the file", h.s.cfg.MaxOutputBytes)
	}
	if err := h.room(ctx, r, first); err != nil {
		return err
	}
	key, err := h.s.store.Key(ctx, r.Workspace)
	if err != nil {
		return err
	}
	blob := r.Workspace + "/" + key.BlobName("output", r.UID+"/"+resource.NewUID("out"))
	if err := h.s.storeBlob(ctx, key, outputAAD(r, blob), blob, first, stream); err != nil {
		return err
	}
	o := store.Output{Path: first.GetPath(), Size: first.GetSize(), Digest: first.GetDigest(), Blob: blob, Created: h.s.cfg.Now()}
	replaced, err := h.s.store.PutOutput(ctx, r, o, h.s.cfg.MaxOutputs, h.s.cfg.MaxOutputBytes)
	if err != nil {
		_ = h.s.cfg.Blobs.Delete(context.WithoutCancel(ctx), blob)
		return err
	}
	if replaced != "" {
		_ = h.s.cfg.Blobs.Delete(ctx, replaced)
	}
	return stream.SendAndClose(outputMessage(o))
}

// room refuses before the content is sent what has no place in the limit; PutOutput decides.
func (h agents) room(ctx context.Context, r *store.Run, first *computev1.UploadOutputRequest) error {
	list, err := h.s.store.Outputs(ctx, r)
	if err != nil {
		return err
	}
	total := first.GetSize()
	for _, o := range list {
		if o.Path != first.GetPath() {
			total += o.Size
		}
	}
	if total > h.s.cfg.MaxOutputBytes {
		return fault.ResourceExhausted("the outputs of a run have at most %d bytes in all", h.s.cfg.MaxOutputBytes)
	}
	return nil
}

// storeBlob encrypts what the stream brings into a blob, and takes it away again if it is not what was announced.
func (s *Service) storeBlob(ctx context.Context, key *envelope.Key, aad envelope.AAD, name string, first *computev1.UploadOutputRequest, stream grpc.ClientStreamingServer[computev1.UploadOutputRequest, computev1.Output]) error {
	pr, pw := io.Pipe()
	stored := make(chan error, 1)
	go func() {
		_, err := s.cfg.Blobs.Put(ctx, name, pr)
		_ = pr.CloseWithError(err)
		stored <- err
	}()
	err := func() error {
		w, err := key.SealStream(aad, pw)
		if err != nil {
			return err
		}
		sum, n := sha256.New(), int64(0)
		for data := first.GetData(); ; {
			if n += int64(len(data)); n > first.GetSize() {
				return fault.InvalidArgument("more content arrived than the %d bytes that were announced", first.GetSize()).Field("size", "is smaller than the content")
			}
			sum.Write(data)
			if _, err := w.Write(data); err != nil {
				return err
			}
			m, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return err
			}
			data = m.GetData()
		}
		if n != first.GetSize() || !bytes.Equal(sum.Sum(nil), first.GetDigest()) {
			return fault.New(codes.InvalidArgument, faultv1.Reason_DIGEST_MISMATCH, "the content is not what was announced: %d bytes of %d, or another digest; send it again", n, first.GetSize())
		}
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
