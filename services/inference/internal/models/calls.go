package models

import (
	"context"
	"maps"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/services/inference/internal/store"
)

func (s *Service) newModel(call *rpc.Call, id string, body *inferencev1.Model) *store.Model {
	return &store.Model{UID: resource.NewUID("mod"), Workspace: call.Scope.WorkspaceUID, ID: id, Body: body, Created: s.cfg.Now(), CreatedBy: call.Principal}
}

func etag(uid string, revision int64) string {
	return uid[len(uid)-8:] + "-" + strconv.FormatInt(revision, 10)
}

func sameEtag(asked, has string) error {
	if asked != "" && asked != has {
		return fault.New(codes.Aborted, faultv1.Reason_ETAG_MISMATCH, "it has changed since it was read; read it again")
	}
	return nil
}

func message(workspace string, m *store.Model) *inferencev1.Model {
	return &inferencev1.Model{
		Name: workspace + "/models/" + m.ID, Uid: m.UID, Description: m.Body.GetDescription(), Tags: m.Body.GetTags(), Aliases: m.Body.GetAliases(),
		LatestVersion: m.Latest, CreateTime: timestamppb.New(m.Created), UpdateTime: timestamppb.New(m.Updated), CreatedBy: m.CreatedBy, Etag: etag(m.UID, m.Revision),
	}
}

// CreateModel implements inferencev1.ModelServiceServer.
func (s *Service) CreateModel(ctx context.Context, req *inferencev1.CreateModelRequest) (*inferencev1.Model, error) {
	if err := resource.ValidModelID(req.GetModelId()); err != nil {
		return nil, err
	}
	m := s.newModel(rpc.From(ctx), req.GetModelId(), &inferencev1.Model{Description: req.GetDescription(), Tags: req.GetTags()})
	if err := s.store.InsertModel(ctx, m, record("model", m.ID)); err != nil {
		return nil, err
	}
	return message(req.GetParent(), m), nil
}

// GetModel implements inferencev1.ModelServiceServer.
func (s *Service) GetModel(ctx context.Context, _ *inferencev1.GetModelRequest) (*inferencev1.Model, error) {
	call := rpc.From(ctx)
	m, err := s.model(ctx, call.Scope.WorkspaceUID, call.Scope.Name)
	if err != nil {
		return nil, err
	}
	return message(call.Scope.Name.Parent().String(), m), nil
}

// ListModels implements inferencev1.ModelServiceServer.
func (s *Service) ListModels(ctx context.Context, req *inferencev1.ListModelsRequest) (*inferencev1.ListModelsResponse, error) {
	n, err := resource.PageSize(req.GetPageSize(), pageMost, pageMost)
	if err != nil {
		return nil, err
	}
	ws := rpc.From(ctx).Scope.WorkspaceUID
	cur, next, err := s.page(ctx, ws, "inference/models/"+ws, req.GetPageToken())
	if err != nil {
		return nil, err
	}
	list, err := s.store.ListModels(ctx, ws, cur, n)
	if err != nil {
		return nil, err
	}
	out := &inferencev1.ListModelsResponse{}
	for _, m := range list {
		out.Models = append(out.Models, message(req.GetParent(), m))
		cur = store.Cursor{Time: m.Created.UnixMicro(), UID: m.UID}
		if proto.Size(out) > pageBytes {
			n = min(n, len(out.GetModels())) // this page is full
			break
		}
	}
	out.NextPageToken, err = next(cur, len(out.GetModels()), n)
	return out, err
}

// change changes the model that a call is about.
func (s *Service) change(ctx context.Context, fn func(ctx context.Context, c *store.Change, m *store.Model) error, details ...string) (*inferencev1.Model, error) {
	call := rpc.From(ctx)
	name := call.Scope.Name
	m, err := s.model(ctx, call.Scope.WorkspaceUID, name)
	if err != nil {
		return nil, err
	}
	if m, err = s.store.ChangeModel(ctx, m.Workspace, m.UID, s.cfg.Now(), fn, record(details...)); err != nil {
		return nil, absent(err, name.String())
	}
	return message(name.Parent().String(), m), nil
}

// masked says which of description and tags an update is about.
func masked(mask *fieldmaskpb.FieldMask) (description, tags bool, err error) {
	if len(mask.GetPaths()) == 0 {
		return true, true, nil
	}
	for _, p := range mask.GetPaths() {
		switch p {
		case "description":
			description = true
		case "tags":
			tags = true
		default:
			return false, false, fault.InvalidArgument("update_mask names description and tags; nothing else can be changed").Field("update_mask", "names something that cannot be changed")
		}
	}
	return description, tags, nil
}

// UpdateModel implements inferencev1.ModelServiceServer.
func (s *Service) UpdateModel(ctx context.Context, req *inferencev1.UpdateModelRequest) (*inferencev1.Model, error) {
	description, tags, err := masked(req.GetUpdateMask())
	if err != nil {
		return nil, err
	}
	in := req.GetModel()
	return s.change(ctx, func(_ context.Context, _ *store.Change, m *store.Model) error {
		if err := sameEtag(in.GetEtag(), etag(m.UID, m.Revision)); err != nil {
			return err
		}
		if description {
			m.Body.Description = in.GetDescription()
		}
		if tags {
			m.Body.Tags = in.GetTags()
		}
		return nil
	})
}

// RenameModel implements inferencev1.ModelServiceServer.
func (s *Service) RenameModel(ctx context.Context, req *inferencev1.RenameModelRequest) (*inferencev1.Model, error) {
	if err := resource.ValidModelIDField("new_model_id", req.GetNewModelId()); err != nil {
		return nil, err
	}
	return s.change(ctx, func(_ context.Context, c *store.Change, m *store.Model) error {
		if len(c.Users) > 0 {
			return store.InUse("the model", c.Users[0])
		}
		m.ID = req.GetNewModelId()
		return nil
	}, "new_model", req.GetNewModelId())
}

// DeleteModel implements inferencev1.ModelServiceServer.
func (s *Service) DeleteModel(ctx context.Context, req *inferencev1.DeleteModelRequest) (*emptypb.Empty, error) {
	call := rpc.From(ctx)
	m, err := s.model(ctx, call.Scope.WorkspaceUID, call.Scope.Name)
	if err != nil {
		return nil, err
	}
	left, err := s.store.DeleteModel(ctx, m.Workspace, m.UID, s.cfg.Now(), folderOf, record())
	if err != nil {
		return nil, absent(err, req.GetName())
	}
	s.clear(context.WithoutCancel(ctx), left...)
	return &emptypb.Empty{}, nil
}

// badAlias says what is wrong with an alias, "" if nothing: it must not look like another way to name a version.
func badAlias(a string) string {
	reserved := strings.EqualFold(a, latest)
	if digits := strings.TrimLeft(a, "vV"); digits != "" && len(a)-len(digits) <= 1 && strings.Trim(digits, "0123456789") == "" {
		reserved = true
	}
	switch {
	case strings.ContainsFunc(a, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '_' && r != '-'
	}):
		return `has only letters of ASCII, digits, "_" and "-"`
	case reserved:
		return `is neither "latest" nor a number, nor "v" and a number`
	}
	return ""
}

// SetModelAlias implements inferencev1.ModelServiceServer.
func (s *Service) SetModelAlias(ctx context.Context, req *inferencev1.SetModelAliasRequest) (*inferencev1.Model, error) {
	if wrong := badAlias(req.GetAlias()); wrong != "" {
		return nil, fault.InvalidArgument("an alias %s", wrong).Field("alias", wrong)
	}
	name := rpc.From(ctx).Scope.Name.String()
	return s.change(ctx, func(ctx context.Context, c *store.Change, m *store.Model) error {
		there, err := c.HasVersion(ctx, m, req.GetVersion())
		if err != nil {
			return err
		}
		if !there {
			return rpc.NotFound(versionName(name, req.GetVersion()))
		}
		aliases := m.Body.GetAliases()
		if _, moves := aliases[req.GetAlias()]; !moves && len(aliases) >= maxAliases {
			return fault.ResourceExhausted("a model has at most %d aliases; remove one first", maxAliases)
		}
		if aliases == nil {
			aliases = make(map[string]int64)
			m.Body.Aliases = aliases
		}
		aliases[req.GetAlias()] = req.GetVersion()
		return nil
	}, "alias", req.GetAlias(), "version", strconv.FormatInt(req.GetVersion(), 10))
}

// DeleteModelAlias implements inferencev1.ModelServiceServer.
func (s *Service) DeleteModelAlias(ctx context.Context, req *inferencev1.DeleteModelAliasRequest) (*inferencev1.Model, error) {
	return s.change(ctx, func(_ context.Context, _ *store.Change, m *store.Model) error {
		if _, ok := m.Body.GetAliases()[req.GetAlias()]; !ok {
			return fault.NotFound("the model has no alias of that name")
		}
		delete(m.Body.GetAliases(), req.GetAlias())
		return nil
	}, "alias", req.GetAlias())
}

// versionMessage is a version without its files.
func versionMessage(model string, m *store.Model, v *store.Version, users []store.User) *inferencev1.ModelVersion {
	out := &inferencev1.ModelVersion{
		Name: versionName(model, v.Number), Uid: v.UID, Version: v.Number, Description: v.Body.GetDescription(), Tags: v.Body.GetTags(),
		TotalBytes: v.Body.GetTotalBytes(), Digest: v.Body.GetDigest(), SourceRun: v.Body.GetSourceRun(), SourceSnapshot: v.Body.GetSourceSnapshot(),
		SourcePath: v.Body.GetSourcePath(), CreateTime: timestamppb.New(v.Created), UpdateTime: timestamppb.New(v.Updated), CreatedBy: v.CreatedBy, Etag: etag(v.UID, v.Revision),
	}
	for _, a := range slices.Sorted(maps.Keys(m.Body.GetAliases())) {
		if m.Body.GetAliases()[a] == v.Number {
			out.Aliases = append(out.Aliases, a)
		}
	}
	for _, u := range users {
		if u.Version == v.UID {
			out.Deployments = append(out.Deployments, u.Name)
		}
	}
	return out
}

func fileMessage(f file) *inferencev1.ModelFile {
	return &inferencev1.ModelFile{Path: f.Path, Size: f.Size, Digest: f.digest()}
}

// whole is a version with its files and signature.
func (s *Service) whole(ctx context.Context, model string, m *store.Model, v *store.Version) (*inferencev1.ModelVersion, error) {
	mf, signed, err := s.verified(ctx, m, v)
	if err != nil {
		return nil, err
	}
	users, err := s.store.Users(ctx, m)
	if err != nil {
		return nil, err
	}
	out := versionMessage(model, m, v, users)
	out.Signature = signed
	for _, f := range mf.Files {
		out.Files = append(out.Files, fileMessage(f))
	}
	return out, nil
}

// GetModelVersion implements inferencev1.ModelServiceServer.
func (s *Service) GetModelVersion(ctx context.Context, _ *inferencev1.GetModelVersionRequest) (*inferencev1.ModelVersion, error) {
	call := rpc.From(ctx)
	m, v, err := s.find(ctx, call.Scope.WorkspaceUID, call.Scope.Name)
	if err != nil {
		return nil, err
	}
	return s.whole(ctx, call.Scope.Name.Parent().String(), m, v)
}

// ListModelVersions implements inferencev1.ModelServiceServer.
func (s *Service) ListModelVersions(ctx context.Context, req *inferencev1.ListModelVersionsRequest) (*inferencev1.ListModelVersionsResponse, error) {
	n, err := resource.PageSize(req.GetPageSize(), pageMost, pageMost)
	if err != nil {
		return nil, err
	}
	call := rpc.From(ctx)
	m, err := s.model(ctx, call.Scope.WorkspaceUID, call.Scope.Name)
	if err != nil {
		return nil, err
	}
	cur, next, err := s.page(ctx, m.Workspace, "inference/versions/"+m.UID, req.GetPageToken())
	if err != nil {
		return nil, err
	}
	list, err := s.store.ListVersions(ctx, m, cur.Time, n)
	if err != nil {
		return nil, err
	}
	users, err := s.store.Users(ctx, m)
	if err != nil {
		return nil, err
	}
	out := &inferencev1.ListModelVersionsResponse{}
	for _, v := range list {
		out.ModelVersions = append(out.ModelVersions, versionMessage(req.GetParent(), m, v, users))
		cur.Time = v.Number
		if proto.Size(out) > pageBytes {
			n = min(n, len(out.GetModelVersions())) // this page is full
			break
		}
	}
	out.NextPageToken, err = next(cur, len(out.GetModelVersions()), n)
	return out, err
}

// exact finds a version for a change, which names it by its number: what an alias means may change in between.
func (s *Service) exact(ctx context.Context) (*store.Model, *store.Version, error) {
	call := rpc.From(ctx)
	if _, ok := number(call.Scope.Name.ID()); !ok {
		return nil, nil, fault.InvalidArgument("a version is changed and deleted by its number; an alias may mean another by then").Field("name", "does not end in a number")
	}
	return s.find(ctx, call.Scope.WorkspaceUID, call.Scope.Name)
}

// UpdateModelVersion implements inferencev1.ModelServiceServer.
func (s *Service) UpdateModelVersion(ctx context.Context, req *inferencev1.UpdateModelVersionRequest) (*inferencev1.ModelVersion, error) {
	description, tags, err := masked(req.GetUpdateMask())
	if err != nil {
		return nil, err
	}
	m, v, err := s.exact(ctx)
	if err != nil {
		return nil, err
	}
	in := req.GetModelVersion()
	v, err = s.store.ChangeVersion(ctx, m, v.Number, s.cfg.Now(), func(v *store.Version) error {
		if err := sameEtag(in.GetEtag(), etag(v.UID, v.Revision)); err != nil {
			return err
		}
		if description {
			v.Body.Description = in.GetDescription()
		}
		if tags {
			v.Body.Tags = in.GetTags()
		}
		return nil
	}, record())
	if err != nil {
		return nil, absent(err, in.GetName())
	}
	return s.whole(ctx, rpc.From(ctx).Scope.Name.Parent().String(), m, v)
}

// DeleteModelVersion implements inferencev1.ModelServiceServer.
func (s *Service) DeleteModelVersion(ctx context.Context, req *inferencev1.DeleteModelVersionRequest) (*emptypb.Empty, error) {
	_, v, err := s.exact(ctx)
	if err != nil {
		return nil, err
	}
	key, err := s.store.Key(ctx, v.Workspace)
	if err != nil {
		return nil, err
	}
	left, err := s.store.DeleteVersion(ctx, v, folderOf(key, v.UID), s.cfg.Now(), record())
	if err != nil {
		return nil, absent(err, req.GetName())
	}
	s.clear(context.WithoutCancel(ctx), left)
	return &emptypb.Empty{}, nil
}
