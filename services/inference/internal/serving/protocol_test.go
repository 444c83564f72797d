package serving

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	"github.com/redoubt-ml/redoubt/gen/inference"
	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/services/inference/internal/serving/flow"
)

// sums is a model: of each row the sum.
func sums(w *bufio.Writer, r *http.Request, body []byte) {
	if r.URL.Path == "/swagger.json" {
		reply(w, 200, "application/json", []byte(fmt.Sprintf(`{"swagger":%q}`, r.URL.RawQuery)))
		return
	}
	var in struct {
		Data json.RawMessage `json:"data"`
	}
	if err := json.Unmarshal(body, &in); err != nil || r.Header.Get("Content-Type") != "application/json" {
		reply(w, 400, "application/json", []byte(`{"error":"not asked in JSON"}`))
		return
	}
	var rows [][]float64
	var flat []float64
	var named map[string][]float64
	out := []float64{}
	switch {
	case json.Unmarshal(in.Data, &rows) == nil:
	case json.Unmarshal(in.Data, &flat) == nil:
		rows = [][]float64{flat}
	case json.Unmarshal(in.Data, &named) == nil:
		for _, n := range []string{"a", "b"} {
			rows = append(rows, named[n])
		}
	case strings.Contains(string(in.Data), "ragged"):
		reply(w, 200, "application/json", []byte(`[[1],[2,3]]`))
		return
	case strings.Contains(string(in.Data), "html"):
		reply(w, 200, "text/html", []byte(`<html>`))
		return
	case strings.Contains(string(in.Data), "busy"):
		reply(w, 429, "application/json", []byte(`{"error":"too much"}`))
		return
	default:
		reply(w, 500, "application/json", []byte(`{"error":"could not convert string to float"}`), "X-Redoubt-Model-Error: raised")
		return
	}
	for _, row := range rows {
		sum := 0.0
		for _, v := range row {
			sum += v
		}
		out = append(out, sum)
	}
	b, err := json.Marshal(out)
	if err != nil {
		panic(err)
	}
	reply(w, 200, "application/json", b)
}

func TestProtocolsOverHTTP(t *testing.T) {
	l, _ := serving(t, sums)
	const row = `{"inputs":[{"name":"x","datatype":"FP32","shape":[2,2],"data":[1,2,3,4.5]}]}`
	for _, c := range []struct {
		name, method, path, body string
		headers                  []string
		status                   int
		want                     string // the whole body, or for a refusal a part of its message
		protocol, reason         string
	}{
		{"swagger", "GET", "swagger.json", "", nil, 200, `{"swagger":""}`, "http", ""},
		{"swagger 3", "GET", "swagger.json?version=3", "", nil, 200, `{"swagger":"version=3"}`, "http", ""},
		{"swagger 4", "GET", "swagger.json?version=4", "", nil, 400, "2 or 3", "http", "REQUEST_INVALID"},
		{"swagger by POST", "POST", "swagger.json", "", nil, 405, "GET", "http", "METHOD_UNKNOWN"},

		{"server", "GET", "v2", "", nil, 200, `{"extensions":[],"name":"redoubt","version":"1.2.3"}`, "oip-rest", ""},
		{"server with a slash", "GET", "v2/", "", nil, 200, `{"extensions":[],"name":"redoubt","version":"1.2.3"}`, "oip-rest", ""},
		{"live", "GET", "v2/health/live", "", nil, 200, `{"live":true,"ready":true}`, "oip-rest", ""},
		{"ready", "GET", "v2/health/ready", "", nil, 200, `{"live":true,"ready":true}`, "oip-rest", ""},
		{"model", "GET", "v2/models/m", "", nil, 200, `{"inputs":[],"name":"m","outputs":[],"platform":"redoubt_python","versions":["1"]}`, "oip-rest", ""},
		{"model by version", "GET", "v2/models/m/versions/1", "", nil, 200, `{"inputs":[],"name":"m","outputs":[],"platform":"redoubt_python","versions":["1"]}`, "oip-rest", ""},
		{"model by the endpoint's name", "GET", "v2/models/ep-1/ready", "", nil, 200, `{"live":true,"name":"ep-1","ready":true}`, "oip-rest", ""},
		{"model by the endpoint's uid", "GET", "v2/models/ep_1/ready", "", nil, 200, `{"live":true,"name":"ep_1","ready":true}`, "oip-rest", ""},
		{"another model", "GET", "v2/models/n", "", nil, 404, "no such model", "oip-rest", "RESOURCE_NOT_FOUND"},
		{"another version", "GET", "v2/models/m/versions/2/ready", "", nil, 404, "no such model", "oip-rest", "RESOURCE_NOT_FOUND"},
		{"no version", "GET", "v2/models/m/versions/", "", nil, 404, "version is missing", "oip-rest", "RESOURCE_NOT_FOUND"},
		{"no model", "GET", "v2/models/", "", nil, 404, "model is missing", "oip-rest", "RESOURCE_NOT_FOUND"},
		{"no path", "GET", "v2/models", "", nil, 404, "no such path", "oip-rest", "RESOURCE_NOT_FOUND"},
		{"load", "POST", "v2/repository/models/m/load", "", nil, 404, "no such path", "oip-rest", "RESOURCE_NOT_FOUND"},
		{"live by POST", "POST", "v2/health/live", "", nil, 405, "GET", "oip-rest", "METHOD_UNKNOWN"},

		{"infer", "POST", "v2/models/m/infer", row, nil, 200, `{"model_name":"m","model_version":"1","outputs":[{"name":"output-0","datatype":"FP64","shape":[2],"data":[3,7.5]}]}`, "oip-rest", ""},
		{"infer a version", "POST", "v2/models/m/versions/1/infer", `{"id":"i","inputs":[{"name":"x","datatype":"INT32","shape":[2],"data":[1,2]}],"outputs":[{"name":"y"}]}`, []string{"Content-Type", "application/json; charset=utf-8"}, 200, `{"model_name":"m","model_version":"1","id":"i","outputs":[{"name":"y","datatype":"INT64","shape":[1],"data":[3]}]}`, "oip-rest", ""},
		{"infer two", "POST", "v2/models/m/infer", `{"inputs":[{"name":"a","datatype":"INT32","shape":[2],"data":[1,2]},{"name":"b","datatype":"INT32","shape":[1],"data":[5]}]}`, nil, 200, `{"model_name":"m","model_version":"1","outputs":[{"name":"output-0","datatype":"INT64","shape":[2],"data":[3,5]}]}`, "oip-rest", ""},
		{"infer by GET", "GET", "v2/models/m/infer", "", nil, 405, "POST", "oip-rest", "METHOD_UNKNOWN"},
		{"infer another version", "POST", "v2/models/m/versions/9/infer", row, nil, 404, "no such model", "oip-rest", "RESOURCE_NOT_FOUND"},
		{"shape and data disagree", "POST", "v2/models/m/infer", `{"inputs":[{"name":"x","datatype":"FP32","shape":[3],"data":[1]}]}`, nil, 400, "asks for 3 elements", "oip-rest", "REQUEST_INVALID"},
		{"unknown datatype", "POST", "v2/models/m/infer", `{"inputs":[{"name":"x","datatype":"F","shape":[1],"data":[1]}]}`, nil, 400, "is not known", "oip-rest", "REQUEST_INVALID"},
		{"binary extension", "POST", "v2/models/m/infer", row, []string{"Inference-Header-Content-Length", "10"}, 400, "binary extension", "oip-rest", "REQUEST_INVALID"},
		{"not JSON", "POST", "v2/models/m/infer", row, []string{"Content-Type", "application/octet-stream"}, 415, "application/json only", "oip-rest", "REQUEST_INVALID"},
		{"empty", "POST", "v2/models/m/infer", "", nil, 400, "no JSON", "oip-rest", "REQUEST_INVALID"},
		{"the model raises", "POST", "v2/models/m/infer", `{"inputs":[{"name":"x","datatype":"BYTES","shape":[1],"data":["a"]}]}`, nil, 500, "could not convert", "oip-rest", "MODEL_FAILED"},
		{"the model is busy", "POST", "v2/models/m/infer", `{"inputs":[{"name":"x","datatype":"BYTES","shape":[1],"data":["busy"]}]}`, nil, 429, "too much", "oip-rest", "MODEL_FAILED"},
		{"the answer is ragged", "POST", "v2/models/m/infer", `{"inputs":[{"name":"x","datatype":"BYTES","shape":[1],"data":["ragged"]}]}`, nil, 502, "not of one length", "oip-rest", "MODEL_FAILED"},
		{"the answer is no JSON", "POST", "v2/models/m/infer", `{"inputs":[{"name":"x","datatype":"BYTES","shape":[1],"data":["html"]}]}`, nil, 502, "no JSON", "oip-rest", "MODEL_FAILED"},

		{"KServe ready", "GET", "v1/models/m", "", nil, 200, `{"live":true,"name":"m","ready":true}`, "kserve-v1", ""},
		{"KServe", "POST", "v1/models/m:predict", `{"instances":[[1,2],[3,4]]}`, nil, 200, `{"predictions":[3,7]}`, "kserve-v1", ""},
		{"KServe, another model", "POST", "v1/models/n:predict", `{"instances":[[1,2]]}`, nil, 404, "no such model", "kserve-v1", "RESOURCE_NOT_FOUND"},
		{"KServe, no instances", "POST", "v1/models/m:predict", `{"inputs":[[1,2]]}`, nil, 400, "instances", "kserve-v1", "REQUEST_INVALID"},
		{"KServe, the model raises", "POST", "v1/models/m:predict", `{"instances":["a"]}`, nil, 500, "could not convert", "kserve-v1", "MODEL_FAILED"},
		{"KServe explain", "POST", "v1/models/m:explain", `{}`, nil, 405, "", "kserve-v1", ""},

		{"MLflow split", "POST", "invocations", `{"dataframe_split":{"columns":["a","b"],"data":[[1,2]]}}`, nil, 200, `{"predictions":[3]}`, "mlflow", ""},
		{"MLflow records", "POST", "invocations", `{"dataframe_records":[{"a":1,"b":2},{"b":4,"a":3}]}`, nil, 200, `{"predictions":[3,7]}`, "mlflow", ""},
		{"MLflow instances", "POST", "invocations", `{"instances":[[1]]}`, nil, 200, `{"predictions":[1]}`, "mlflow", ""},
		{"MLflow inputs", "POST", "invocations", `{"inputs":{"a":[1],"b":[2]}}`, nil, 200, `{"predictions":[1,2]}`, "mlflow", ""},
		{"MLflow, a plain list", "POST", "invocations", `[[1]]`, nil, 400, "dataframe_split", "mlflow", "REQUEST_INVALID"},
		{"MLflow, CSV", "POST", "invocations", "a,b\n1,2\n", []string{"Content-Type", "text/csv"}, 415, "application/json only", "mlflow", "REQUEST_INVALID"},
		{"MLflow, the model raises", "POST", "invocations", `{"instances":["a"]}`, nil, 500, "could not convert", "mlflow", "MODEL_FAILED"},
		{"MLflow ping", "GET", "ping", "", nil, 200, "\n", "mlflow", ""},
		{"MLflow health", "GET", "health", "", nil, 200, "\n", "mlflow", ""},
		{"MLflow version", "GET", "version", "", nil, 200, "1.2.3", "mlflow", ""},
		{"MLflow, below", "GET", "ping/x", "", nil, 404, "no such path", "mlflow", "RESOURCE_NOT_FOUND"},
		{"MLflow by GET", "GET", "invocations", "", nil, 405, "POST", "mlflow", "METHOD_UNKNOWN"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := l.call(l.client, c.method, "/endpoints/ep_1/"+c.path, c.body, append([]string{bearer, "Bearer primary"}, c.headers...)...)
			rec := l.log.last(t)
			if got.status != c.status {
				t.Fatalf("%d %s, want %d", got.status, got.body, c.status)
			}
			if rec.GetStatusCode() != int32(c.status) || rec.GetProtocol() != c.protocol || c.reason != "" && rec.GetReason() != c.reason || rec.GetResponseBytes() != int64(len(got.body)) {
				t.Errorf("recorded %v", rec)
			}
			if c.status == 200 {
				if got.body != c.want {
					t.Errorf("%s, want %s", got.body, c.want)
				}
				return
			}
			// The words of the protocol.
			var m map[string]any
			if err := json.Unmarshal([]byte(got.body), &m); err != nil {
				t.Fatalf("%s: %v", got.body, err)
			}
			said, _ := m["error"].(string)
			switch c.protocol {
			case "http":
				inner, _ := m["error"].(map[string]any)
				said, _ = inner["message"].(string)
			case "mlflow":
				said, _ = m["message"].(string)
				if code, _ := m["error_code"].(string); code == "" || len(m) != 2 {
					t.Errorf("%s", got.body)
				}
			}
			if said == "" || !strings.Contains(said, c.want) {
				t.Errorf("%s does not say %q", got.body, c.want)
			}
		})
	}
	for path, want := range map[string]string{"v2/models/m/infer": `{"error":"`, "v1/models/m:predict": `{"error":"`, "invocations": `{"error_code":"UNAUTHENTICATED"`} {
		if got := l.call(l.client, "POST", "/endpoints/ep_1/"+path, row); got.status != 401 || !strings.HasPrefix(got.body, want) {
			t.Errorf("%s: %v", path, got)
		}
	}
}

// TestModelsShareAnEndpoint: a model's name chooses among the deployments that traffic goes to.
func TestModelsShareAnEndpoint(t *testing.T) {
	l := newLab(t)
	e, blue, green := two(t, l)
	_, _ = blue, green
	n := *e
	n.Traffic = []Share{{Deployment: "blue", Percent: 50}, {Deployment: "green", Percent: 50}}
	l.Set(&n)
	for range 20 {
		got := l.call(l.client, "GET", "/endpoints/ep_1/v2/models/m/versions/2", "", bearer, "Bearer primary")
		if got.status != 200 || got.header.Get("azureml-model-deployment") != "green" {
			t.Fatal(got)
		}
	}
	got := l.call(l.client, "GET", "/endpoints/ep_1/v2/models/m", "", bearer, "Bearer primary")
	if !strings.Contains(got.body, `"versions":["1","2"]`) {
		t.Error(got)
	}
	if got := l.call(l.client, "GET", "/endpoints/ep_1/v2/models/m/versions/2", "", bearer, "Bearer primary", "Azureml-Model-Deployment", "blue"); got.status != 404 {
		t.Error(got)
	}
}

func (l *lab) grpc() *grpc.ClientConn {
	l.t.Helper()
	c, err := grpc.NewClient(l.addr, grpc.WithTransportCredentials(credentials.NewTLS(l.tls())), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(100<<20)))
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { _ = c.Close() })
	return c
}

func outgoing(t testing.TB, pairs ...string) context.Context {
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(context.Background(), pairs...), longTime)
	t.Cleanup(cancel)
	return ctx
}

func fp32(shape []int64, v ...float32) *inference.ModelInferRequest {
	return &inference.ModelInferRequest{ModelName: "m", Id: "i", Inputs: []*inference.ModelInferRequest_InferInputTensor{{
		Name: "x", Datatype: "FP32", Shape: shape, Contents: &inference.InferTensorContents{Fp32Contents: v},
	}}}
}

func TestOIPByGRPC(t *testing.T) {
	l, _ := serving(t, sums)
	oip := inference.NewGRPCInferenceServiceClient(l.grpc())
	full := simple("ep_1").Name
	right := []string{"authorization", "Bearer primary", "redoubt-endpoint", "ep_1", "x-request-id", "req-9"}
	var header metadata.MD
	out, err := oip.ModelInfer(outgoing(t, right...), fp32([]int64{2, 2}, 1, 2, 3, 4), grpc.Header(&header))
	if err != nil {
		t.Fatal(err)
	}
	if o := out.GetOutputs(); len(o) != 1 || o[0].GetDatatype() != "INT64" || fmt.Sprint(o[0].GetContents().GetInt64Contents()) != "[3 7]" || out.GetId() != "i" || out.GetModelName() != "m" || out.GetModelVersion() != "1" {
		t.Errorf("%v", out)
	}
	if fmt.Sprint(header["azureml-model-deployment"], header["x-request-id"]) != "[blue] [req-9]" {
		t.Errorf("%v", header)
	}
	rec := l.log.last(t)
	if rec.GetProtocol() != "oip-grpc" || rec.GetGrpcCode() != "OK" || rec.GetStatusCode() != 200 || rec.GetModelStatusCode() != 200 || rec.GetHttpMethod() != "POST" ||
		rec.GetRequestUrl() != "/inference.GRPCInferenceService/ModelInfer" || rec.GetAuth() != "key-primary" || rec.GetRequestBytes() == 0 || rec.GetResponseBytes() == 0 ||
		rec.GetRequestId() != "req-9" || rec.GetDeployment() != "blue" || rec.GetReplicaUid() != "run_1" || !strings.HasPrefix(rec.GetUserAgent(), "grpc-go/") {
		t.Errorf("%v", rec)
	}
	raw := fp32([]int64{1, 2})
	raw.Inputs[0].Contents, raw.RawInputContents = nil, [][]byte{{0, 0, 128, 63, 0, 0, 0, 64}}
	if out, err = oip.ModelInfer(outgoing(t, right...), raw); err != nil || len(out.GetRawOutputContents()) != 1 || out.GetRawOutputContents()[0][0] != 3 {
		t.Errorf("raw: %v %v", out, err)
	}

	big := fp32([]int64{3 << 20}, make([]float32, 3<<20)...)
	for _, c := range []struct {
		name   string
		md     []string
		in     *inference.ModelInferRequest
		code   codes.Code
		reason string // "" where gRPC itself refuses
		words  string
		status int32
	}{
		{"by the full name", []string{"authorization", "Bearer primary", "redoubt-endpoint", full}, fp32([]int64{1}, 1), codes.OK, "", "", 200},
		{"by the model's name", []string{"authorization", "Bearer primary"}, func() *inference.ModelInferRequest { r := fp32([]int64{1}, 1); r.ModelName = "ep_1"; return r }(), codes.OK, "", "", 200},
		{"by the model's full name", []string{"authorization", "Bearer secondary"}, func() *inference.ModelInferRequest { r := fp32([]int64{1}, 1); r.ModelName = full; return r }(), codes.OK, "", "", 200},
		{"a deployment", append([]string{"azureml-model-deployment", "blue"}, right...), fp32([]int64{1}, 1), codes.OK, "", "", 200},
		{"no endpoint", []string{"authorization", "Bearer primary"}, fp32([]int64{1}, 1), codes.Unauthenticated, "ENDPOINT_CREDENTIAL_INVALID", "no such endpoint", 0},
		{"an unknown endpoint", []string{"authorization", "Bearer primary", "redoubt-endpoint", "ep_9"}, fp32([]int64{1}, 1), codes.Unauthenticated, "ENDPOINT_CREDENTIAL_INVALID", "no such endpoint", 0},
		{"a wrong key", []string{"authorization", "Bearer wrong", "redoubt-endpoint", "ep_1"}, fp32([]int64{1}, 1), codes.Unauthenticated, "ENDPOINT_CREDENTIAL_INVALID", "no such endpoint", 401},
		{"a wrong key, by the model", []string{"authorization", "Bearer wrong"}, func() *inference.ModelInferRequest { r := fp32([]int64{1}, 1); r.ModelName = "ep_1"; return r }(), codes.Unauthenticated, "ENDPOINT_CREDENTIAL_INVALID", "no such endpoint", 401},
		{"no key", []string{"redoubt-endpoint", "ep_1"}, fp32([]int64{1}, 1), codes.Unauthenticated, "ENDPOINT_CREDENTIAL_INVALID", "no such endpoint", 401},
		{"the other form", []string{"authorization", "Bearer token", "redoubt-endpoint", "ep_1"}, fp32([]int64{1}, 1), codes.Unauthenticated, "ENDPOINT_CREDENTIAL_INVALID", "takes a key", 401},
		{"two keys", append([]string{"authorization", "Bearer primary"}, right...), fp32([]int64{1}, 1), codes.InvalidArgument, "REQUEST_INVALID", "2 times", 400},
		{"two endpoints", append([]string{"redoubt-endpoint", "ep_1"}, right...), fp32([]int64{1}, 1), codes.InvalidArgument, "REQUEST_INVALID", "2 times", 0},
		{"an unknown deployment", append([]string{"azureml-model-deployment", "red"}, right...), fp32([]int64{1}, 1), codes.NotFound, "DEPLOYMENT_MISSING", "", 404},
		{"an unknown model", right, func() *inference.ModelInferRequest { r := fp32([]int64{1}, 1); r.ModelName = "n"; return r }(), codes.NotFound, "RESOURCE_NOT_FOUND", "no such model", 404},
		{"shape and contents disagree", right, fp32([]int64{2}, 1), codes.InvalidArgument, "REQUEST_INVALID", "asks for 2 elements", 400},
		{"too large for the deployment", right, big, codes.ResourceExhausted, "MESSAGE_TOO_LARGE", "", 413},
		{"too large for a stranger", []string{"authorization", "Bearer primary"}, big, codes.ResourceExhausted, "", "larger than max", 0},
		{"the model raises", right, func() *inference.ModelInferRequest {
			r := fp32([]int64{1})
			r.Inputs[0].Datatype, r.Inputs[0].Contents = "BYTES", &inference.InferTensorContents{BytesContents: [][]byte{[]byte("100%\né")}}
			return r
		}(), codes.Internal, "MODEL_FAILED", "could not convert", 500},
		{"the answer is ragged", right, func() *inference.ModelInferRequest {
			r := fp32([]int64{1})
			r.Inputs[0].Datatype, r.Inputs[0].Contents = "BYTES", &inference.InferTensorContents{BytesContents: [][]byte{[]byte("ragged")}}
			return r
		}(), codes.Internal, "MODEL_FAILED", "not of one length", 502},
	} {
		t.Run(c.name, func(t *testing.T) {
			records := len(l.log.all())
			_, err := oip.ModelInfer(outgoing(t, c.md...), c.in)
			if status.Code(err) != c.code || c.code != codes.OK && !strings.Contains(err.Error(), c.words) {
				t.Fatalf("%v, want %v", err, c.code)
			}
			if c.reason != "" && fault.ReasonOf(fault.FromStatus(err)).String() != c.reason {
				t.Errorf("reason %v in %v", fault.ReasonOf(fault.FromStatus(err)), err)
			}
			all := l.log.all()
			if c.status == 0 {
				if len(all) != records {
					t.Errorf("recorded %v", all[records])
				}
				return
			}
			if len(all) != records+1 {
				t.Fatalf("%d records", len(all)-records)
			}
			if r := all[records]; r.GetStatusCode() != c.status || r.GetReason() != c.reason || r.GetGrpcCode() != fault.CodeName(c.code) {
				t.Errorf("recorded %v", r)
			}
		})
	}
	eventually(t, func() bool { return l.InFlight() == 0 }) // what was answered is let go a moment later
}

func TestOIPMetadataByGRPC(t *testing.T) {
	l, _ := serving(t, sums)
	conn := l.grpc()
	oip := inference.NewGRPCInferenceServiceClient(conn)
	right := []string{"authorization", "Bearer primary", "redoubt-endpoint", "ep_1"}
	if out, err := oip.ServerLive(outgoing(t), &inference.ServerLiveRequest{}); err != nil || !out.GetLive() {
		t.Errorf("live: %v %v", out, err)
	}
	if out, err := oip.ServerMetadata(outgoing(t), &inference.ServerMetadataRequest{}); err != nil || out.GetVersion() != "" {
		t.Errorf("metadata for strangers: %v %v", out, err)
	}
	if out, err := oip.ServerMetadata(outgoing(t, right...), &inference.ServerMetadataRequest{}); err != nil || out.GetVersion() != "1.2.3" || out.GetName() != "redoubt" {
		t.Errorf("metadata: %v %v", out, err)
	}
	if out, err := oip.ServerReady(outgoing(t, right...), &inference.ServerReadyRequest{}); err != nil || !out.GetReady() {
		t.Errorf("ready: %v %v", out, err)
	}
	if _, err := oip.ServerReady(outgoing(t, "authorization", "Bearer wrong", "redoubt-endpoint", "ep_1"), &inference.ServerReadyRequest{}); status.Code(err) != codes.Unauthenticated {
		t.Errorf("ready, wrong key: %v", err)
	}
	if out, err := oip.ModelReady(outgoing(t, right...), &inference.ModelReadyRequest{Name: "m", Version: "1"}); err != nil || !out.GetReady() {
		t.Errorf("model ready: %v %v", out, err)
	}
	if _, err := oip.ModelReady(outgoing(t, right...), &inference.ModelReadyRequest{Name: "m", Version: "3"}); status.Code(err) != codes.NotFound {
		t.Errorf("another version: %v", err)
	}
	if _, err := oip.ModelReady(outgoing(t), &inference.ModelReadyRequest{Name: "ep_1"}); status.Code(err) != codes.Unauthenticated {
		t.Errorf("a stranger: %v", err)
	}
	if out, err := oip.ModelMetadata(outgoing(t, right...), &inference.ModelMetadataRequest{Name: "m"}); err != nil || fmt.Sprint(out.GetVersions()) != "[1]" {
		t.Errorf("model: %v %v", out, err)
	}
	// Methods of extensions, of the service and without it.
	for _, method := range []string{"/inference.GRPCInferenceService/ModelStreamInfer", "/inference.GRPCInferenceService/RepositoryModelLoad", "/redoubt.inference.v1.EndpointService/ListEndpoints", "/x/y"} {
		err := conn.Invoke(outgoing(t, right...), method, &inference.ServerLiveRequest{}, &inference.ServerLiveResponse{})
		if status.Code(err) != codes.Unimplemented {
			t.Errorf("%s: %v", method, err)
		}
	}
	if r := l.log.last(t); r.GetGrpcCode() != "UNIMPLEMENTED" || r.GetStatusCode() != 501 {
		t.Errorf("%v", r)
	}
	if out, err := healthpb.NewHealthClient(conn).Check(outgoing(t), &healthpb.HealthCheckRequest{}); err != nil || out.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("health: %v %v", out, err)
	}
	stream, err := grpc_reflection_v1.NewServerReflectionClient(conn).ServerReflectionInfo(outgoing(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&grpc_reflection_v1.ServerReflectionRequest{MessageRequest: &grpc_reflection_v1.ServerReflectionRequest_ListServices{}}); err != nil {
		t.Fatal(err)
	}
	list, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if s := fmt.Sprint(list); !strings.Contains(s, "inference.GRPCInferenceService") || strings.Contains(s, "redoubt.") {
		t.Errorf("reflection: %s", s)
	}
	_ = stream.CloseSend()
	_, _ = stream.Recv()
}

// TestGRPCCallerGoes: the handler of a call that was left does not outlive it, and its worker is free again.
func TestGRPCCallerGoes(t *testing.T) {
	hold := make(chan struct{})
	l, a := serving(t, waiting(hold))
	oip := inference.NewGRPCInferenceServiceClient(l.grpc())
	ctx, cancel := context.WithCancel(outgoing(t, "authorization", "Bearer primary", "redoubt-endpoint", "ep_1"))
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() { _, _ = oip.ModelInfer(ctx, fp32([]int64{1}, 1)) })
	}
	eventually(t, func() bool { return a.served.Load() == 1 && l.Waiting("dep_ep_1") == 2 })
	cancel()
	wg.Wait()
	eventually(t, func() bool { return l.Waiting("dep_ep_1") == 0 })
	close(hold)
	eventually(t, func() bool { return len(l.log.all()) == 3 })
	for _, r := range l.log.all() {
		if r.GetStatusCode() != flow.ClientGone && r.GetStatusCode() != 502 && r.GetStatusCode() != 200 { // what the worker had, it answered: with an echo
			t.Errorf("%v", r)
		}
	}
	eventually(t, func() bool { return l.InFlight() == 0 }) // what was answered is let go a moment later
}

// TestSlowGRPC has a message that does not come.
func TestSlowGRPC(t *testing.T) {
	l, _ := serving(t, echo, func(c *Config) { c.BodyGrace = -time.Second + 50*time.Millisecond })
	conn := l.grpc()
	stream, err := conn.NewStream(outgoing(t, "authorization", "Bearer primary", "redoubt-endpoint", "ep_1"), &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, "/inference.GRPCInferenceService/ModelInfer")
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.RecvMsg(&inference.ModelInferResponse{}); err == nil || status.Code(err) == codes.DeadlineExceeded {
		t.Errorf("%v", err)
	}
	if r := l.log.last(t); r.GetStatusCode() == 200 {
		t.Errorf("%v", r)
	}
}

// TestCredentialsByGRPC is the table of A5 for the forms that HTTP's does not cover.
func TestCredentialsByGRPC(t *testing.T) {
	l, _ := serving(t, sums)
	oip := inference.NewGRPCInferenceServiceClient(l.grpc())
	ask := func(md ...string) codes.Code {
		_, err := oip.ModelInfer(outgoing(t, append(md, "redoubt-endpoint", "ep_1")...), fp32([]int64{1}, 1))
		return status.Code(err)
	}
	e := simple("ep_1", "run_1")
	e.Auth, e.Credentials, e.Others = inferencev1.Endpoint_AUTH_TOKEN, e.Others, e.Credentials
	l.Set(e)
	if a, b, c := ask("authorization", "Bearer token"), ask("authorization", "Bearer primary"), ask(); a != codes.OK || b != codes.Unauthenticated || c != codes.Unauthenticated {
		t.Errorf("token: %v %v %v", a, b, c)
	}
	e = simple("ep_1", "run_1")
	e.Auth, e.Credentials = inferencev1.Endpoint_AUTH_NONE, nil
	l.Set(e)
	if a, b := ask(), ask("authorization", "Bearer wrong"); a != codes.OK || b != codes.OK {
		t.Errorf("none: %v %v", a, b)
	}
	e = simple("ep_1", "run_1")
	e.Auth = 0
	l.Set(e)
	if a := ask("authorization", "Bearer primary"); a != codes.Unauthenticated {
		t.Errorf("unset: %v", a)
	}
}
