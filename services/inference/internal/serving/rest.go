package serving

import (
	"encoding/json"
	"net/http"
	"strings"

	"google.golang.org/grpc/codes"

	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/services/inference/internal/serving/tensor"
)

// textBody is a refusal in the words of the Open Inference Protocol, and of KServe.
func textBody(r *refusal) []byte { return jsonBody(map[string]string{"error": r.Message()}) }

// mlflowBody is a refusal in the words of MLflow.
func mlflowBody(r *refusal) []byte {
	code := "INTERNAL_ERROR"
	switch fault.Code(r.Error) {
	case codes.InvalidArgument:
		code = "BAD_REQUEST"
	case codes.Unauthenticated:
		code = "UNAUTHENTICATED"
	case codes.NotFound:
		code = "RESOURCE_DOES_NOT_EXIST"
	case codes.Unimplemented:
		code = "ENDPOINT_NOT_FOUND"
	case codes.ResourceExhausted, codes.Unavailable, codes.DeadlineExceeded:
		code = "TEMPORARILY_UNAVAILABLE"
		if r.status == http.StatusRequestEntityTooLarge {
			code = "REQUEST_LIMIT_EXCEEDED"
		}
	}
	return jsonBody(map[string]string{"error_code": code, "message": r.Message()})
}

func jsonBody(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil { // strings, numbers and lists of them always encode
		return []byte("{}")
	}
	return b
}

// oip serves the Open Inference Protocol, version 2, over REST.
func (q *request) oip(rest string) *refusal {
	path := strings.TrimPrefix(strings.TrimPrefix(rest, "v2"), "/")
	switch path {
	case "":
		if refused := q.readable(); refused != nil {
			return refused
		}
		q.answer(http.StatusOK, jsonType, jsonBody(map[string]any{"name": serverName, "version": q.s.cfg.Version, "extensions": []string{}}))
		return nil
	case "health/live":
		if refused := q.readable(); refused != nil {
			return refused
		}
		q.answer(http.StatusOK, jsonType, []byte(`{"live":true,"ready":true}`))
		return nil
	case "health/ready":
		return q.readiness(nil)
	}
	path, ok := strings.CutPrefix(path, "models/")
	if !ok {
		return notFound("the Open Inference Protocol has no such path")
	}
	name, what, _ := strings.Cut(path, "/")
	version := ""
	if after, ok := strings.CutPrefix(what, "versions/"); ok {
		if version, what, _ = strings.Cut(after, "/"); version == "" {
			return notFound("the version is missing in the path")
		}
	}
	if q.fit(name, version); name == "" {
		return notFound("the model is missing in the path")
	}
	switch what {
	case "":
		return q.metadata(name)
	case "ready":
		return q.readiness(map[string]any{"name": name})
	case "infer":
		return q.infer(name)
	}
	return notFound("the Open Inference Protocol has no such path")
}

// readiness answers under both names that the protocol's text has for it.
func (q *request) readiness(body map[string]any) *refusal {
	if refused := q.readable(); refused != nil {
		return refused
	}
	if body == nil {
		body = make(map[string]any, 2)
	} else if refused := q.choose(); refused != nil {
		return refused
	}
	status, ready := http.StatusOK, q.ready()
	if !ready {
		status = http.StatusServiceUnavailable
	}
	body["ready"], body["live"] = ready, ready
	q.answer(status, jsonType, jsonBody(body))
	return nil
}

func (q *request) metadata(name string) *refusal {
	if refused := q.readable(); refused != nil {
		return refused
	}
	if refused := q.choose(); refused != nil {
		return refused
	}
	q.answer(http.StatusOK, jsonType, jsonBody(map[string]any{
		"name": name, "versions": q.versions(), "platform": platform, "inputs": []string{}, "outputs": []string{},
	}))
	return nil
}

// platform is what the protocol calls the kind of a model: whatever an entry script makes of it.
const platform = "redoubt_python"

// versions are those of the model that the endpoint serves.
func (c *call) versions() []string {
	list := []string{}
	seen := make(map[string]struct{})
	for _, share := range c.endpoint.Traffic {
		d := c.endpoint.Deployments[share.Deployment]
		if d == nil || c.fits != nil && !c.fits(d) {
			continue
		}
		if _, ok := seen[d.ModelVersion]; !ok {
			seen[d.ModelVersion] = struct{}{}
			list = append(list, d.ModelVersion)
		}
	}
	return list
}

func (q *request) infer(name string) *refusal {
	if q.r.Header["Inference-Header-Content-Length"] != nil {
		return badRequest("the binary extension is not spoken here: send data as JSON, or use gRPC with raw_input_contents")
	}
	if refused := q.readJSON(); refused != nil {
		return refused
	}
	req, err := tensor.ParseREST(q.body.Bytes())
	if err != nil {
		return badRequest("%s", err)
	}
	out, refused := q.tensors(q.r.Context(), req)
	if refused != nil {
		return refused
	}
	size := 512 + len(name)*6 + len(req.ID)*6 + tensor.Size(out)
	q.answer(http.StatusOK, jsonType, tensor.AppendREST(make([]byte, 0, size), name, q.deployment.ModelVersion, req.ID, out))
	return nil
}

// kserve serves what most clients of KServe's first version send.
func (q *request) kserve(rest string) *refusal {
	name, ok := strings.CutPrefix(rest, "v1/models/")
	if !ok || strings.Contains(name, "/") {
		return notFound("KServe's first version has /v1/models/{model} and /v1/models/{model}:predict here")
	}
	name, predict := strings.CutSuffix(name, ":predict")
	q.fit(name, "")
	if !predict {
		return q.readiness(map[string]any{"name": name})
	}
	if refused := q.readJSON(); refused != nil {
		return refused
	}
	asked, err := tensor.Instances(q.body.Bytes())
	if err != nil {
		return badRequest("%s", err)
	}
	return q.predictions(asked)
}

// mlflow serves what MLflow's scoring server has.
func (q *request) mlflow(rest string) *refusal {
	if rest == "invocations" {
		if refused := q.readJSON(); refused != nil {
			return refused
		}
		asked, err := tensor.Invocation(q.body.Bytes())
		if err != nil {
			return badRequest("%s", err)
		}
		return q.predictions(asked)
	}
	if refused := q.readable(); refused != nil {
		return refused
	}
	switch rest {
	case "ping", "health":
		if !q.ready() {
			return noReplica()
		}
		q.answer(http.StatusOK, jsonType, []byte("\n"))
		return nil
	case "version":
		q.answer(http.StatusOK, "text/plain; charset=utf-8", []byte(q.s.cfg.Version))
		return nil
	}
	return notFound("MLflow's scoring server has no such path")
}

// predictions asks the worker and answers {"predictions": …}.
func (q *request) predictions(asked []byte) *refusal {
	if refused := q.translated(len(asked), func(b []byte) []byte { return append(b, asked...) }); refused != nil {
		return refused
	}
	said, refused := q.ask(q.r.Context())
	if refused != nil {
		return refused
	}
	list, err := tensor.Predictions(said)
	if err != nil {
		return modelFailed(http.StatusBadGateway, "%s", err)
	}
	body := make([]byte, 0, len(list)+20)
	body = append(append(append(body, `{"predictions":`...), list...), '}')
	q.answer(http.StatusOK, jsonType, body)
	return nil
}
