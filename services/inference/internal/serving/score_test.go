package serving

import (
	"bufio"
	"io"
	"net/http"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	"github.com/redoubt-ml/redoubt/pkg/authz"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
)

// TestScoreRPC has callers whom the chain has let in, by a role.
func TestScoreRPC(t *testing.T) {
	l, a := serving(t, func(w *bufio.Writer, r *http.Request, b []byte) {
		switch string(b) {
		case "raise":
			reply(w, 500, "application/json", []byte(`{"error":"x"}`), "X-Redoubt-Model-Error: raised")
		case "stream":
			io.WriteString(w, "HTTP/1.1 201 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: text/plain\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n")
		case "endless":
			io.WriteString(w, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
			for piece := "100000\r\n" + strings.Repeat("x", 1<<20) + "\r\n"; ; {
				if _, err := io.WriteString(w, piece); err != nil {
					return
				}
			}
		default:
			echo(w, r, b)
		}
	})
	e := simple("ep_1", "run_1")
	e.Auth = inferencev1.Endpoint_AUTH_TOKEN // whatever the form is
	e.Deployments["blue"].MaxBodyBytes = 1000
	l.Set(e)
	o := &scoring{s: l.Server}
	name := e.Name
	for _, c := range []struct {
		name, principal, workspace string
		in                         *inferencev1.ScoreRequest
		code                       codes.Code
		reason                     string
		status                     int32 // the model's
		data, contentType          string
		recorded                   int32 // 0: nothing
	}{
		{"right", "usr_1", workspace, &inferencev1.ScoreRequest{Endpoint: name, Data: []byte("{}")}, codes.OK, "", 200, "{}", "application/json", 200},
		{"with a type", "usr_1", workspace, &inferencev1.ScoreRequest{Endpoint: name, Data: []byte("a,b"), ContentType: "text/csv", Deployment: "blue"}, codes.OK, "", 200, "a,b", "text/csv", 200},
		{"a stream is one message", "usr_1", workspace, &inferencev1.ScoreRequest{Endpoint: name, Data: []byte("stream")}, codes.OK, "", 201, "onetwo", "text/plain", 200},
		{"the model raises", "usr_1", workspace, &inferencev1.ScoreRequest{Endpoint: name, Data: []byte("raise")}, codes.OK, "MODEL_FAILED", 500, `{"error":"x"}`, "application/json", 200},
		{"too long an answer", "usr_1", workspace, &inferencev1.ScoreRequest{Endpoint: name, Data: []byte("endless")}, codes.Internal, "MODEL_FAILED", 0, "", "", 502},
		{"too large", "usr_1", workspace, &inferencev1.ScoreRequest{Endpoint: name, Data: make([]byte, 1001)}, codes.ResourceExhausted, "MESSAGE_TOO_LARGE", 0, "", "", 413},
		{"a header in the type", "usr_1", workspace, &inferencev1.ScoreRequest{Endpoint: name, ContentType: "a/b\r\nX-A: b"}, codes.InvalidArgument, "REQUEST_INVALID", 0, "", "", 400},
		{"no such deployment", "usr_1", workspace, &inferencev1.ScoreRequest{Endpoint: name, Deployment: "red"}, codes.NotFound, "DEPLOYMENT_MISSING", 0, "", "", 404},
		{"no such endpoint", "usr_1", workspace, &inferencev1.ScoreRequest{Endpoint: name + "x"}, codes.NotFound, "RESOURCE_NOT_FOUND", 0, "", "", 0},
		{"of the workspace that had the name before", "usr_1", "ws_2", &inferencev1.ScoreRequest{Endpoint: name}, codes.NotFound, "RESOURCE_NOT_FOUND", 0, "", "", 0},
		{"nobody", "", workspace, &inferencev1.ScoreRequest{Endpoint: name}, codes.NotFound, "RESOURCE_NOT_FOUND", 0, "", "", 404},
	} {
		t.Run(c.name, func(t *testing.T) {
			if l.Ready("run_1") == 0 {
				a.work(0, echo)
				l.ready("run_1", 1)
			}
			records := len(l.log.all())
			ctx := &rpc.Call{Context: t.Context(), RequestID: "req-1", Principal: c.principal, Address: "192.0.2.1", Scope: authz.Scope{WorkspaceUID: c.workspace}}
			out, err := o.Score(ctx, c.in)
			if fault.Code(err) != c.code || err != nil && fault.ReasonOf(err).String() != c.reason {
				t.Fatalf("%v, want %v", err, c.code)
			}
			if err == nil && (out.GetStatus() != c.status || string(out.GetData()) != c.data || out.GetContentType() != c.contentType || out.GetDeployment() != "blue" || out.GetRequestId() != "req-1") {
				t.Errorf("%v", out)
			}
			all := l.log.all()
			if c.recorded == 0 {
				if len(all) != records {
					t.Errorf("recorded %v", all[records])
				}
				return
			}
			r := all[len(all)-1]
			auth := ""
			if c.principal != "" {
				auth = "role"
			}
			if len(all) != records+1 || r.GetStatusCode() != c.recorded || r.GetModelStatusCode() != c.status && c.code == codes.OK || r.GetReason() != c.reason || r.GetAuth() != auth ||
				r.GetPrincipal() != c.principal || r.GetProtocol() != "rpc" || r.GetAddress() != "192.0.2.1" || r.GetRequestId() != "req-1" || r.GetGrpcCode() != fault.CodeName(c.code) {
				t.Errorf("%d recorded, %v", len(all)-records, r)
			}
		})
	}
	eventually(t, func() bool { return l.InFlight() == 0 }) // what was answered is let go a moment later
}
