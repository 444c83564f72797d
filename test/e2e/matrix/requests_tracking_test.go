package matrix

import (
	"testing"

	"google.golang.org/protobuf/proto"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
)

// experiment makes an experiment.
func (f *fixture) experiment(t *testing.T, p *place) string {
	t.Helper()
	e, err := computev1.NewExperimentServiceClient(f.admin).CreateExperiment(t.Context(), &computev1.CreateExperimentRequest{Parent: p.ws, DisplayName: f.id("experiment")})
	must(t, err)
	return e.GetName()
}

// tracked makes a run that nobody carries.
func (f *fixture) tracked(t *testing.T, p *place) string {
	t.Helper()
	r, err := computev1.NewTrackingServiceClient(f.admin).CreateTrackedRun(t.Context(), &computev1.CreateTrackedRunRequest{Parent: p.ws, RunId: f.id("tracked")})
	must(t, err)
	return r.GetName()
}

func (f *fixture) artifact(t *testing.T, p *place) string {
	t.Helper()
	run := f.tracked(t, p)
	s, err := computev1.NewTrackingServiceClient(f.admin).UploadArtifact(t.Context())
	must(t, err)
	must(t, s.Send(&computev1.UploadArtifactRequest{Name: run, Path: "model/MLmodel", Size: -1, Data: []byte("model")}))
	_, err = s.CloseAndRecv()
	must(t, err)
	return run
}

func init() { //nolint:gochecknoinits // the registry of requests is filled from several files
	register(map[string]spec{
		computev1.ExperimentService_CreateExperiment_FullMethodName: about(func(f *fixture, p *place) proto.Message {
			return &computev1.CreateExperimentRequest{Parent: p.ws, DisplayName: f.id("experiment")}
		}),
		computev1.ExperimentService_GetExperiment_FullMethodName: about(func(_ *fixture, p *place) proto.Message {
			return &computev1.GetExperimentRequest{Name: p.ws + "/experiments/0"}
		}),
		computev1.ExperimentService_LookupExperiment_FullMethodName: about(func(_ *fixture, p *place) proto.Message {
			return &computev1.LookupExperimentRequest{Parent: p.ws, DisplayName: "Default"}
		}),
		computev1.ExperimentService_SearchExperiments_FullMethodName: about(func(_ *fixture, p *place) proto.Message {
			return &computev1.SearchExperimentsRequest{Parent: p.ws, Filter: "name LIKE '%'"}
		}),
		computev1.ExperimentService_UpdateExperiment_FullMethodName: making(func(t *testing.T, f *fixture, p *place) proto.Message {
			return &computev1.UpdateExperimentRequest{Name: f.experiment(t, p), DisplayName: f.id("renamed")}
		}),
		computev1.ExperimentService_DeleteExperiment_FullMethodName: making(func(t *testing.T, f *fixture, p *place) proto.Message {
			return &computev1.DeleteExperimentRequest{Name: f.experiment(t, p)}
		}),
		computev1.ExperimentService_RestoreExperiment_FullMethodName: making(func(t *testing.T, f *fixture, p *place) proto.Message {
			name := f.experiment(t, p)
			_, err := computev1.NewExperimentServiceClient(f.admin).DeleteExperiment(t.Context(), &computev1.DeleteExperimentRequest{Name: name})
			must(t, err)
			return &computev1.RestoreExperimentRequest{Name: name}
		}),
		computev1.ExperimentService_SetExperimentTag_FullMethodName: about(func(_ *fixture, p *place) proto.Message {
			return &computev1.SetExperimentTagRequest{Name: p.ws + "/experiments/0", Key: "team", Value: "a"}
		}),

		computev1.TrackingService_CreateTrackedRun_FullMethodName: about(func(f *fixture, p *place) proto.Message {
			return &computev1.CreateTrackedRunRequest{Parent: p.ws, RunId: f.id("tracked"), Experiment: p.ws + "/experiments/0"}
		}),
		computev1.TrackingService_UpdateTrackedRun_FullMethodName: making(func(t *testing.T, f *fixture, p *place) proto.Message {
			return &computev1.UpdateTrackedRunRequest{Name: f.tracked(t, p), State: computev1.Run_STATE_COMPLETED}
		}),
		computev1.TrackingService_DeleteRun_FullMethodName: making(func(t *testing.T, f *fixture, p *place) proto.Message {
			return &computev1.DeleteRunRequest{Name: f.tracked(t, p)}
		}),
		computev1.TrackingService_RestoreRun_FullMethodName: making(func(t *testing.T, f *fixture, p *place) proto.Message {
			name := f.tracked(t, p)
			_, err := computev1.NewTrackingServiceClient(f.admin).DeleteRun(t.Context(), &computev1.DeleteRunRequest{Name: name})
			must(t, err)
			return &computev1.RestoreRunRequest{Name: name}
		}),
		computev1.TrackingService_SearchRuns_FullMethodName: about(func(_ *fixture, p *place) proto.Message {
			return &computev1.SearchRunsRequest{Parent: p.ws, Experiments: []string{p.ws + "/experiments/0"}, Filter: "metrics.loss = 1"}
		}),
		computev1.TrackingService_UploadArtifact_FullMethodName: making(func(t *testing.T, f *fixture, p *place) proto.Message {
			return &computev1.UploadArtifactRequest{Name: f.tracked(t, p), Path: "plot.png", Size: -1, Data: []byte("png")}
		}),
		computev1.TrackingService_DeleteArtifact_FullMethodName: making(func(t *testing.T, f *fixture, p *place) proto.Message {
			return &computev1.DeleteArtifactRequest{Name: f.artifact(t, p), Path: "model"}
		}),
	})
}
