package agent

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"path"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc/codes"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	"github.com/redoubt-ml/redoubt/internal/agent/relay"
	"github.com/redoubt-ml/redoubt/internal/agent/sandbox"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/runtimes"
)

const (
	hostFile = "host.py"
	// modelDir is where models stand, as scripts written for Azure ML expect it: azureml-models/<name>/<version> in the working folder.
	modelDir = "azureml-models"
	// hostPath is where the host says its last words.
	hostPath  = "/redoubt/host"
	mostWords = 4096
	// longestStop bounds how long a worker has for its last answer. Compute gives the agent a little more.
	longestStop = 20 * time.Second
)

// serving is what a replica has in place of a command.
type serving struct {
	spec *computev1.ServeSpec

	mu    sync.Mutex
	words string // the host's last ones
}

// command starts the scoring host.
func (*serving) command() []string {
	return []string{"python3", "-s", sandbox.PlatformDir + "/" + hostFile}
}

// files is what stands beside the run, read-only.
func (*serving) files() map[string][]byte { return map[string][]byte{hostFile: runtimes.Host()} }

// environment is what the host and the entry script find.
func (s *serving) environment(env map[string]string) {
	dir := path.Join(sandbox.WorkDir, modelDir)
	if models := s.spec.GetModels(); len(models) == 1 {
		if name, err := resource.Parse(models[0]); err == nil {
			dir = path.Join(dir, name.Parent().ID(), name.ID())
		}
	}
	env["AZUREML_MODEL_DIR"], env["MODEL_DIR"] = dir, dir
	env["AZUREML_ENTRY_SCRIPT"] = s.spec.GetEntryScript()
	env["REDOUBT_WORKERS"] = strconv.Itoa(int(s.spec.GetWorkers()))
	env["REDOUBT_SERVE_ADDRESS"] = sandbox.Address(sandbox.DefaultPort)
	env["REDOUBT_REQUEST_TIMEOUT_MS"] = strconv.FormatInt(s.spec.GetRequestTimeout().AsDuration().Milliseconds(), 10)
	env["REDOUBT_START_TIMEOUT_MS"] = strconv.FormatInt(s.spec.GetStartTimeout().AsDuration().Milliseconds(), 10)
	env["REDOUBT_MAX_BODY_BYTES"] = strconv.FormatInt(s.spec.GetMaxBodyBytes(), 10)
}

// stopGrace is how long workers have for their last answers.
func (s *serving) stopGrace(least time.Duration) time.Duration {
	return min(max(least, s.spec.GetRequestTimeout().AsDuration()), max(least, longestStop))
}

// download brings the models into the working folder, each file what its digest says or the replica does not start.
func (s *serving) download(ctx context.Context, l *link, work *os.Root) error {
	for _, model := range s.spec.GetModels() {
		name, err := resource.Parse(model)
		if err != nil || name.Kind() != resource.KindModelVersion {
			return fault.InvalidArgument("the replica is to serve %q, which is not a version of a model", model)
		}
		dir := path.Join(modelDir, name.Parent().ID(), name.ID())
		if err := work.MkdirAll(dir, 0o755); err != nil {
			return written(err)
		}
		if err := s.downloadOne(ctx, l, work, dir, model); err != nil {
			return err
		}
	}
	return nil
}

func (*serving) downloadOne(ctx context.Context, l *link, work *os.Root, dir, model string) error {
	folder, err := work.OpenRoot(dir)
	if err != nil {
		return written(err)
	}
	defer func() { _ = folder.Close() }()
	err = l.retryEach(ctx, 0, func(ctx context.Context) error {
		stream, err := l.models.DownloadModelVersion(ctx, &inferencev1.DownloadModelVersionRequest{Name: model})
		if err != nil {
			return err
		}
		return receive(folder, "model", func() (*entry, []byte, error) {
			m, err := stream.Recv()
			if f := m.GetFile(); err == nil && f != nil {
				return &entry{path: f.GetPath(), size: f.GetSize(), digest: f.GetDigest()}, m.GetData(), nil
			}
			return nil, m.GetData(), err
		})
	})
	if err != nil && fault.Code(fault.FromStatus(err)) == codes.NotFound {
		return fault.Wrap(err, codes.FailedPrecondition, faultv1.Reason_PRECONDITION_FAILED, "the model %s is gone, or who deployed it may not read it any more", model)
	}
	return err
}

// handler serves the run's endpoint of a replica: connections of workers, and the host's last words. It logs no metrics.
func (s *serving) handler(r *relay.Relay, host string) http.Handler {
	mux := http.NewServeMux()
	mux.Handle(relay.Path, r)
	mux.HandleFunc("POST "+hostPath, func(w http.ResponseWriter, req *http.Request) {
		var said struct {
			Message string `json:"message"`
		}
		body, err := io.ReadAll(http.MaxBytesReader(w, req.Body, mostWords))
		if err != nil || json.Unmarshal(body, &said) != nil {
			http.Error(w, "not a message of the host's", http.StatusBadRequest)
			return
		}
		s.mu.Lock()
		s.words = said.Message
		s.mu.Unlock()
		w.WriteHeader(http.StatusNoContent)
	})
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Host != host {
			http.Error(w, "this endpoint is at http://"+host, http.StatusForbidden)
			return
		}
		mux.ServeHTTP(w, req)
	})
}

// relay joins workers with inference.
func (c *carry) relay() (*relay.Relay, error) {
	spec := c.serve.spec
	return relay.New(relay.Config{
		Address: spec.GetAddress(), Workers: int(spec.GetWorkers()), Identity: c.a.link.identity, Now: c.a.cfg.Now, Logger: c.a.cfg.Logger,
		Changed: func(problem string) {
			if problem == "" {
				problem = "the replica's connections with inference are open"
			}
			c.logs.note("%s", problem)
		},
	})
}

// judge says what the end of a host means that was not asked to end.
func (s *serving) judge(out outcome) outcome {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case out.reason != faultv1.Reason_REASON_UNSPECIFIED:
	case s.words != "":
		out.message = s.words
	case out.state == computev1.Run_STATE_COMPLETED:
		out.message = "the scoring host ended by itself; see the replica's log"
	default:
		out.message = "the scoring host was ended: " + out.message + "; see the replica's log"
	}
	out.state = computev1.Run_STATE_FAILED
	return out
}

var errNoIdentity = errors.New("agent: identity has given no certificate for this run")
