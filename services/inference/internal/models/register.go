package models

import (
	"context"
	"encoding/hex"
	"errors"
	"io"
	"path"
	"strconv"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/inference/internal/store"
)

// registration is a version on its way.
type registration struct {
	s    *Service
	call *rpc.Call
	key  *envelope.Key
	in   store.NewVersion
	tree *tree
	// files are those that are stored.
	files []file
	from  source
	end   func(added bool)
}

// register begins a version. It refuses early where the model is missing; AddVersion decides.
func (s *Service) register(ctx context.Context, body *inferencev1.ModelVersion, create bool, request store.Request) (*registration, error) {
	call := rpc.From(ctx)
	id := call.Scope.Name.ID()
	key, err := s.store.Key(ctx, call.Scope.WorkspaceUID)
	if err != nil {
		return nil, err
	}
	r := &registration{s: s, call: call, key: key, tree: s.tree(), in: store.NewVersion{
		Version: store.Version{UID: resource.NewUID("mver"), Workspace: call.Scope.WorkspaceUID, Body: body, Created: s.cfg.Now(), CreatedBy: call.Principal},
		Into:    id, Request: request,
	}}
	if create {
		r.in.Create = s.newModel(call, id, &inferencev1.Model{})
	} else if _, err := s.model(ctx, call.Scope.WorkspaceUID, call.Scope.Name); err != nil {
		return nil, err
	}
	if r.end, err = s.begin(ctx, key, r.in.UID); err != nil {
		return nil, err
	}
	return r, nil
}

// add stores a file.
func (r *registration) add(ctx context.Context, f file, next pieces) error {
	if err := r.s.put(ctx, r.key, r.in.UID, f, next); err != nil {
		return err
	}
	r.files = append(r.files, f)
	return nil
}

// commit makes the version visible, or nothing.
func (r *registration) commit(ctx context.Context) (*inferencev1.ModelVersion, error) {
	by, err := r.s.signing.current(ctx)
	if err != nil {
		return nil, err
	}
	r.in.Created = r.s.cfg.Now()
	r.in.Sign = r.s.signer(by, r.files, r.from)
	m, v, added, err := r.s.store.AddVersion(ctx, r.in, func(ctx context.Context, tx *sqldb.Tx, m *store.Model, v *store.Version) error {
		return r.call.Audit(ctx, tx, "model", m.ID, "version", strconv.FormatInt(v.Number, 10), "files", strconv.Itoa(len(r.files)), "bytes", strconv.FormatInt(r.tree.bytes, 10))
	})
	r.end(added)
	r.end = nil
	if err != nil {
		return nil, absent(err, r.call.Scope.Name.String())
	}
	return r.s.whole(ctx, r.call.Scope.Name.String(), m, v)
}

// close ends what was not committed.
func (r *registration) close() {
	if r.end != nil {
		r.end(false)
	}
}

// UploadModelVersion implements inferencev1.ModelServiceServer.
func (s *Service) UploadModelVersion(stream grpc.ClientStreamingServer[inferencev1.UploadModelVersionRequest, inferencev1.ModelVersion]) error {
	msg, err := stream.Recv()
	if err != nil {
		return err
	}
	ctx := stream.Context()
	r, err := s.register(ctx, &inferencev1.ModelVersion{Description: msg.GetDescription(), Tags: msg.GetTags()}, msg.GetCreateModel(), store.Request{})
	if err != nil {
		return err
	}
	defer r.close()
	u := &upload{stream: stream, msg: msg}
	for u.msg != nil {
		if err := u.file(ctx, r); err != nil {
			return err
		}
	}
	if len(r.files) == 0 {
		return fault.InvalidArgument("a version has at least one file").Field("file", "is missing")
	}
	out, err := r.commit(ctx)
	if err != nil {
		return err
	}
	return stream.SendAndClose(out)
}

// upload reads the stream file by file.
type upload struct {
	stream grpc.ClientStreamingServer[inferencev1.UploadModelVersionRequest, inferencev1.ModelVersion]
	msg    *inferencev1.UploadModelVersionRequest // not looked at yet; nil at the end
}

// next reads one message.
func (u *upload) next() error {
	msg, err := u.stream.Recv()
	if errors.Is(err, io.EOF) {
		u.msg = nil
		return nil
	}
	if err != nil {
		return err
	}
	if msg.GetDescription() != "" || len(msg.GetTags()) > 0 || msg.GetCreateModel() {
		return fault.InvalidArgument("description, tags and create_model stand in the first message only").Field("description", "stands in a later message")
	}
	u.msg = msg
	return nil
}

// file takes the file that begins with the message at hand. A first message may have none.
func (u *upload) file(ctx context.Context, r *registration) error {
	in := u.msg.GetFile()
	if in == nil {
		if len(u.msg.GetData()) > 0 {
			return fault.InvalidArgument("content arrived before the entry of its file").Field("file", "is missing")
		}
		return u.next()
	}
	if err := r.tree.add(in.GetPath(), in.GetSize()); err != nil {
		return err
	}
	f := file{Path: in.GetPath(), Size: in.GetSize(), SHA256: hex.EncodeToString(in.GetDigest())}
	if len(in.GetDigest()) != 32 {
		return fault.InvalidArgument("the entry of a file has its SHA-256, of 32 bytes").Field("file.digest", "is not a SHA-256 of 32 bytes")
	}
	first := true
	return r.add(ctx, f, func() ([]byte, error) {
		if !first {
			if err := u.next(); err != nil {
				return nil, err
			}
			if u.msg == nil || u.msg.GetFile() != nil {
				return nil, io.EOF
			}
		}
		first = false
		return u.msg.GetData(), nil
	})
}

// CreateModelVersion implements inferencev1.ModelServiceServer. The chain has checked that the caller may read the run's outputs; they
// are read in his name all the same.
func (s *Service) CreateModelVersion(ctx context.Context, req *inferencev1.CreateModelVersionRequest) (*inferencev1.ModelVersion, error) {
	call := rpc.From(ctx)
	if call.Uses[0].WorkspaceUID != call.Scope.WorkspaceUID {
		return nil, fault.InvalidArgument("a model is registered from a run of its own workspace; download the outputs and upload them for another").Field("source_run", "is of another workspace")
	}
	if req.GetSourcePath() != "" {
		if wrong := badPath(req.GetSourcePath()); wrong != "" {
			return nil, fault.New(codes.InvalidArgument, faultv1.Reason_PATH_INVALID, "the path among the outputs %s", wrong).Field("source_path", wrong)
		}
	}
	request, err := requestOf(call, req)
	if err != nil {
		return nil, err
	}
	if m, v, found, err := s.store.Earlier(ctx, call.Scope.WorkspaceUID, request, s.cfg.Now()); err != nil {
		return nil, err
	} else if found {
		call.Detail("version", strconv.FormatInt(v.Number, 10))
		return s.whole(ctx, call.Scope.Name.String(), m, v)
	}
	outputs, err := s.outputs(ctx, req)
	if err != nil {
		return nil, err
	}
	r, err := s.register(ctx, &inferencev1.ModelVersion{Description: req.GetDescription(), Tags: req.GetTags()}, req.GetCreateModel(), request)
	if err != nil {
		return nil, err
	}
	defer r.close()
	for _, o := range outputs { // all of it is refused before any of it is moved
		if err := r.tree.add(o.as, o.GetSize()); err != nil {
			return nil, err
		}
	}
	if r.from, err = s.lineage(ctx, req); err != nil {
		return nil, err
	}
	for _, o := range outputs {
		if err := s.copy(ctx, r, req.GetSourceRun(), o); err != nil {
			return nil, err
		}
	}
	return r.commit(ctx)
}

// requestOf is what makes the call repeatable.
func requestOf(call *rpc.Call, req *inferencev1.CreateModelVersionRequest) (store.Request, error) {
	if req.GetRequestId() == "" {
		return store.Request{}, nil
	}
	plain := proto.CloneOf(req)
	plain.RequestId = ""
	content, err := proto.MarshalOptions{Deterministic: true}.Marshal(plain)
	if err != nil {
		return store.Request{}, fault.Internal(err, "the request could not be encoded")
	}
	return store.Request{ID: req.GetRequestId(), Principal: call.Principal, Content: string(content)}, nil
}

// output is one of a run's, with the path that it gets in the version.
type output struct {
	*computev1.Output
	as string
}

// outputs are those that are asked for: all, a folder's with their paths below it, or one file.
func (s *Service) outputs(ctx context.Context, req *inferencev1.CreateModelVersionRequest) ([]output, error) {
	list, err := s.cfg.Runs.ListOutputs(ctx, &computev1.ListOutputsRequest{Name: req.GetSourceRun()})
	if err != nil {
		return nil, fault.FromStatus(err)
	}
	var out []output
	at := req.GetSourcePath()
	for _, o := range list.GetOutputs() {
		below, inside := strings.CutPrefix(o.GetPath(), at+"/")
		switch {
		case at == "":
			out = append(out, output{o, o.GetPath()})
		case o.GetPath() == at:
			out = append(out, output{o, path.Base(at)})
		case inside:
			out = append(out, output{o, below})
		}
	}
	if len(out) == 0 {
		return nil, fault.FailedPrecondition("the run has left no output there; list its outputs to see which path to name").Field("source_path", "holds no output of the run")
	}
	return out, nil
}

// lineage says where the files come from: as far as the caller may see it.
func (s *Service) lineage(ctx context.Context, req *inferencev1.CreateModelVersionRequest) (source, error) {
	from := source{Run: req.GetSourceRun(), Path: req.GetSourcePath()}
	run, err := s.cfg.Runs.GetRun(ctx, &computev1.GetRunRequest{Name: req.GetSourceRun()})
	switch err = fault.FromStatus(err); {
	case err == nil:
		from.RunUID, from.Snapshot = run.GetUid(), run.GetSnapshot()
	case !fault.Is(err, codes.PermissionDenied) && !fault.Is(err, codes.NotFound):
		return source{}, err
	}
	return from, nil
}

// copy takes one output.
func (s *Service) copy(ctx context.Context, r *registration, run string, o output) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := s.cfg.Runs.DownloadOutput(ctx, &computev1.DownloadOutputRequest{Name: run, Path: o.GetPath()})
	if err != nil {
		return fault.FromStatus(err)
	}
	err = r.add(ctx, file{Path: o.as, Size: o.GetSize(), SHA256: hex.EncodeToString(o.GetDigest())}, func() ([]byte, error) {
		msg, err := stream.Recv()
		if err != nil && !errors.Is(err, io.EOF) {
			err = fault.FromStatus(err)
		}
		return msg.GetData(), err
	})
	if fault.ReasonOf(err) == faultv1.Reason_DIGEST_MISMATCH {
		return fault.Aborted("an output of the run was replaced while it was copied; repeat the call")
	}
	return err
}
