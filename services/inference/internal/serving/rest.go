package serving

import (
	"encoding/json"
	"net/http"
	"strings"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/services/inference/internal/serving/flow"
	"github.com/redoubt-ml/redoubt/services/inference/internal/serving/tensor"
)

const (
	jsonType   = "application/json"
	scorePath  = "/score"
	serverName = "redoubt"
	// platform is what the Open Inference Protocol calls the kind of a model: whatever an entry script makes of it.
	platform = "redoubt_python"
)

// errorBody is a refusal in the words of our own protocol.
func errorBody(r *flow.Refusal) []byte {
	type inner struct {
		Code    string `json:"code"`
		Reason  string `json:"reason"`
		Message string `json:"message"`
	}
	b, err := json.Marshal(struct {
		Error inner `json:"error"`
	}{inner{fault.CodeName(fault.Code(r.Error)), fault.ReasonOf(r.Error).String(), r.Message()}})
	if err != nil { // strings always encode
		return []byte(`{}`)
	}
	return b
}

// textBody is a refusal in the words of the Open Inference Protocol, and of KServe.
func textBody(r *flow.Refusal) []byte { return jsonBody(map[string]string{"error": r.Message()}) }

// mlflowBody is a refusal in the words of MLflow.
func mlflowBody(r *flow.Refusal) []byte {
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
		if r.Status == http.StatusRequestEntityTooLarge {
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

// asJSON refuses a body that says it is something else.
func (q *request) asJSON() *flow.Refusal {
	contentType, _, _ := strings.Cut(one(q.r.Header, "Content-Type"), ";")
	switch strings.ToLower(strings.TrimSpace(contentType)) {
	case "", jsonType:
		return nil
	}
	return flow.Refuse(http.StatusUnsupportedMediaType, codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID, "this path takes application/json only")
}

// readJSON reads the body of a request that is translated.
func (q *request) readJSON() *flow.Refusal {
	if q.r.Method != http.MethodPost {
		return flow.WrongMethod(http.MethodPost)
	}
	if refused := q.asJSON(); refused != nil {
		return refused
	}
	if refused := q.Choose(); refused != nil {
		return refused
	}
	return q.ReadBody(q.w, q.r, q.Deployment.BodyLimit())
}

// oip serves the Open Inference Protocol, version 2, over REST.
func (q *request) oip(rest string) *flow.Refusal {
	path := strings.TrimPrefix(strings.TrimPrefix(rest, "v2"), "/")
	switch path {
	case "":
		if refused := q.readable(); refused != nil {
			return refused
		}
		q.answer(http.StatusOK, jsonType, jsonBody(map[string]any{"name": serverName, "version": q.server.cfg.Version, "extensions": []string{}}))
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
		return flow.NotFound("the Open Inference Protocol has no such path")
	}
	name, what, _ := strings.Cut(path, "/")
	version := ""
	if after, ok := strings.CutPrefix(what, "versions/"); ok {
		if version, what, _ = strings.Cut(after, "/"); version == "" {
			return flow.NotFound("the version is missing in the path")
		}
	}
	if q.Fit(name, version); name == "" {
		return flow.NotFound("the model is missing in the path")
	}
	switch what {
	case "":
		return q.metadata(name)
	case "ready":
		return q.readiness(map[string]any{"name": name})
	case "infer":
		return q.infer(name)
	}
	return flow.NotFound("the Open Inference Protocol has no such path")
}

// readiness answers under both names that the protocol's text has for it.
func (q *request) readiness(body map[string]any) *flow.Refusal {
	if refused := q.readable(); refused != nil {
		return refused
	}
	if body == nil {
		body = make(map[string]any, 2)
	} else if refused := q.Choose(); refused != nil {
		return refused
	}
	status, ready := http.StatusOK, q.Ready()
	if !ready {
		status = http.StatusServiceUnavailable
	}
	body["ready"], body["live"] = ready, ready
	q.answer(status, jsonType, jsonBody(body))
	return nil
}

func (q *request) metadata(name string) *flow.Refusal {
	if refused := q.readable(); refused != nil {
		return refused
	}
	if refused := q.Choose(); refused != nil {
		return refused
	}
	q.answer(http.StatusOK, jsonType, jsonBody(map[string]any{
		"name": name, "versions": q.Versions(), "platform": platform, "inputs": []string{}, "outputs": []string{},
	}))
	return nil
}

func (q *request) infer(name string) *flow.Refusal {
	if q.r.Header["Inference-Header-Content-Length"] != nil {
		return flow.BadRequest("the binary extension is not spoken here: send data as JSON, or use gRPC with raw_input_contents")
	}
	if refused := q.readJSON(); refused != nil {
		return refused
	}
	req, err := tensor.ParseREST(q.Body.Bytes())
	if err != nil {
		return flow.BadRequest("%s", err)
	}
	out, refused := q.Tensors(q.r.Context(), req)
	if refused != nil {
		return refused
	}
	size := 512 + len(name)*6 + len(req.ID)*6 + tensor.Size(out)
	q.answer(http.StatusOK, jsonType, tensor.AppendREST(make([]byte, 0, size), name, q.Deployment.ModelVersion, req.ID, out))
	return nil
}

// kserve serves what most clients of KServe's first version send.
func (q *request) kserve(rest string) *flow.Refusal {
	name, ok := strings.CutPrefix(rest, "v1/models/")
	if !ok || strings.Contains(name, "/") {
		return flow.NotFound("KServe's first version has /v1/models/{model} and /v1/models/{model}:predict here")
	}
	name, predict := strings.CutSuffix(name, ":predict")
	q.Fit(name, "")
	if !predict {
		return q.readiness(map[string]any{"name": name})
	}
	if refused := q.readJSON(); refused != nil {
		return refused
	}
	asked, err := tensor.Instances(q.Body.Bytes())
	if err != nil {
		return flow.BadRequest("%s", err)
	}
	return q.predictions(asked)
}

// mlflow serves what MLflow's scoring server has.
func (q *request) mlflow(rest string) *flow.Refusal {
	if rest == "invocations" {
		if refused := q.readJSON(); refused != nil {
			return refused
		}
		asked, err := tensor.Invocation(q.Body.Bytes())
		if err != nil {
			return flow.BadRequest("%s", err)
		}
		return q.predictions(asked)
	}
	if refused := q.readable(); refused != nil {
		return refused
	}
	switch rest {
	case "ping", "health":
		if !q.Ready() {
			return flow.NoReplica()
		}
		q.answer(http.StatusOK, jsonType, []byte("\n"))
		return nil
	case "version":
		q.answer(http.StatusOK, "text/plain; charset=utf-8", []byte(q.server.cfg.Version))
		return nil
	}
	return flow.NotFound("MLflow's scoring server has no such path")
}

// predictions asks the worker and answers {"predictions": …}.
func (q *request) predictions(asked []byte) *flow.Refusal {
	if refused := q.Translate(len(asked), func(b []byte) []byte { return append(b, asked...) }); refused != nil {
		return refused
	}
	said, refused := q.Ask(q.r.Context())
	if refused != nil {
		return refused
	}
	list, err := tensor.Predictions(said)
	if err != nil {
		return flow.ModelFailed(http.StatusBadGateway, "%s", err)
	}
	body := make([]byte, 0, len(list)+20)
	body = append(append(append(body, `{"predictions":`...), list...), '}')
	q.answer(http.StatusOK, jsonType, body)
	return nil
}
