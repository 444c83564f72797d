package matrix

import (
	"crypto/sha256"
	"testing"

	"google.golang.org/protobuf/proto"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
)

func (f *fixture) registry() inferencev1.ModelServiceClient {
	return inferencev1.NewModelServiceClient(f.admin)
}

// newModel is a model without versions.
func (f *fixture) newModel(t *testing.T, p *place) string {
	t.Helper()
	m, err := f.registry().CreateModel(t.Context(), &inferencev1.CreateModelRequest{Parent: p.ws, ModelId: f.id("model")})
	must(t, err)
	return m.GetName()
}

// uploaded is the whole upload of a version of one file.
func uploaded(model string) *inferencev1.UploadModelVersionRequest {
	content := []byte("weights")
	sum := sha256.Sum256(content)
	return &inferencev1.UploadModelVersionRequest{Parent: model, File: &inferencev1.ModelFile{Path: "weights", Size: int64(len(content)), Digest: sum[:]}, Data: content}
}

// newVersion adds a version to a model.
func (f *fixture) newVersion(t *testing.T, model string) string {
	t.Helper()
	s, err := f.registry().UploadModelVersion(t.Context())
	must(t, err)
	must(t, s.Send(uploaded(model)))
	v, err := s.CloseAndRecv()
	must(t, err)
	return v.GetName()
}

// model is the place's model, which has a version 1.
func (f *fixture) model(t *testing.T, p *place) string {
	t.Helper()
	if f.models[p] == "" {
		f.models[p] = f.newModel(t, p)
		f.newVersion(t, f.models[p])
	}
	return f.models[p]
}

// serving is a replica's run that serves version 1 of the place's model.
func (f *fixture) serving(t *testing.T, p *place) *run {
	t.Helper()
	if f.replicas[p] == nil {
		req := f.replica()
		req.Compute, req.Serve.Models = f.compute(t, p.ws), []string{f.model(t, p) + "/versions/1"}
		_, err := computev1.NewReplicaServiceClient(f.service(t, "inference", nothing).conn(t, "compute")).StartReplica(t.Context(), req)
		must(t, err)
		f.replicas[p] = f.carried(t, p, req.GetCompute(), p.ws+"/runs/"+req.GetReplicaId())
	}
	return f.replicas[p]
}

func init() { //nolint:gochecknoinits // the registry of requests is filled from several files
	register(map[string]spec{
		inferencev1.ModelService_CreateModel_FullMethodName: about(func(f *fixture, p *place) proto.Message {
			return &inferencev1.CreateModelRequest{Parent: p.ws, ModelId: f.id("model")}
		}),
		inferencev1.ModelService_GetModel_FullMethodName: making(func(t *testing.T, f *fixture, p *place) proto.Message {
			return &inferencev1.GetModelRequest{Name: f.model(t, p)}
		}),
		inferencev1.ModelService_ListModels_FullMethodName: about(func(_ *fixture, p *place) proto.Message { return &inferencev1.ListModelsRequest{Parent: p.ws} }),
		inferencev1.ModelService_UpdateModel_FullMethodName: making(func(t *testing.T, f *fixture, p *place) proto.Message {
			return &inferencev1.UpdateModelRequest{Model: &inferencev1.ModelUpdate{Name: f.model(t, p), Description: f.id("changed")}}
		}),
		inferencev1.ModelService_RenameModel_FullMethodName: making(func(t *testing.T, f *fixture, p *place) proto.Message {
			return &inferencev1.RenameModelRequest{Name: f.newModel(t, p), NewModelId: f.id("model")}
		}),
		inferencev1.ModelService_DeleteModel_FullMethodName: making(func(t *testing.T, f *fixture, p *place) proto.Message {
			return &inferencev1.DeleteModelRequest{Name: f.newModel(t, p)}
		}),
		inferencev1.ModelService_SetModelAlias_FullMethodName: making(func(t *testing.T, f *fixture, p *place) proto.Message {
			return &inferencev1.SetModelAliasRequest{Name: f.model(t, p), Alias: "champion", Version: 1}
		}),
		inferencev1.ModelService_DeleteModelAlias_FullMethodName: making(func(t *testing.T, f *fixture, p *place) proto.Message {
			req := &inferencev1.DeleteModelAliasRequest{Name: f.model(t, p), Alias: f.id("alias")}
			_, err := f.registry().SetModelAlias(t.Context(), &inferencev1.SetModelAliasRequest{Name: req.GetName(), Alias: req.GetAlias(), Version: 1})
			must(t, err)
			return req
		}),
		inferencev1.ModelService_CreateModelVersion_FullMethodName: making(func(t *testing.T, f *fixture, p *place) proto.Message {
			return &inferencev1.CreateModelVersionRequest{Parent: f.model(t, p), SourceRun: p.run.name, SourcePath: "model.json"}
		}),
		inferencev1.ModelService_UploadModelVersion_FullMethodName: making(func(t *testing.T, f *fixture, p *place) proto.Message {
			return uploaded(f.model(t, p))
		}),
		inferencev1.ModelService_GetModelVersion_FullMethodName: making(func(t *testing.T, f *fixture, p *place) proto.Message {
			return &inferencev1.GetModelVersionRequest{Name: f.model(t, p) + "/versions/latest"}
		}),
		inferencev1.ModelService_ListModelVersions_FullMethodName: making(func(t *testing.T, f *fixture, p *place) proto.Message {
			return &inferencev1.ListModelVersionsRequest{Parent: f.model(t, p)}
		}),
		inferencev1.ModelService_UpdateModelVersion_FullMethodName: making(func(t *testing.T, f *fixture, p *place) proto.Message {
			return &inferencev1.UpdateModelVersionRequest{ModelVersion: &inferencev1.ModelVersionUpdate{Name: f.model(t, p) + "/versions/1", Description: f.id("changed")}}
		}),
		inferencev1.ModelService_DeleteModelVersion_FullMethodName: making(func(t *testing.T, f *fixture, p *place) proto.Message {
			return &inferencev1.DeleteModelVersionRequest{Name: f.newVersion(t, f.model(t, p))}
		}),
		// The run that reads a version is a replica that serves it; the run of the place is another.
		inferencev1.ModelService_DownloadModelVersion_FullMethodName: {build: func(t *testing.T, f *fixture, p *place) request {
			req := one(&inferencev1.DownloadModelVersionRequest{Name: f.model(t, p) + "/versions/1"})
			if p == f.ours {
				req.from = &f.serving(t, p).caller
			}
			return req
		}},
		inferencev1.ModelService_ListSigningKeys_FullMethodName: about(func(*fixture, *place) proto.Message { return &inferencev1.ListSigningKeysRequest{} }),
	})
}
