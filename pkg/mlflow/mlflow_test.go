package mlflow

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// TestNumbers: what JSON cannot say is a string, and integers keep their 64 bits.
func TestNumbers(t *testing.T) {
	for text, want := range map[string]float64{`1`: 1, `"1.5"`: 1.5, `-2e3`: -2000, `"NaN"`: math.NaN(), `"Infinity"`: math.Inf(1), `"-Infinity"`: math.Inf(-1)} {
		var n Number
		if err := json.Unmarshal([]byte(text), &n); err != nil || float64(n) != want && !(math.IsNaN(want) && math.IsNaN(float64(n))) {
			t.Errorf("%s is %v: %v", text, n, err)
		}
		b, err := json.Marshal(n)
		var again Number
		if err != nil || json.Unmarshal(b, &again) != nil || again != n && !math.IsNaN(want) {
			t.Errorf("%s is written as %s: %v", text, b, err)
		}
	}
	for _, text := range []string{`"high"`, `"nan"`, `"inf"`, `"0x10"`, `"1_0"`, `true`, `{}`, `""`, `1e999`} {
		if err := json.Unmarshal([]byte(text), new(Number)); err == nil {
			t.Errorf("%s is a number", text)
		}
	}
	for text, want := range map[string]int64{`1`: 1, `"-5"`: -5, `9223372036854775807`: math.MaxInt64, `"9007199254740993"`: 1<<53 + 1, `2.0`: 2, `1e3`: 1000} {
		var n Integer
		if err := json.Unmarshal([]byte(text), &n); err != nil || int64(n) != want {
			t.Errorf("%s is %v: %v", text, n, err)
		}
	}
	for _, text := range []string{`1.5`, `9223372036854775808`, `1e300`, `"x"`, `"0x1"`, `[]`} {
		if err := json.Unmarshal([]byte(text), new(Integer)); err == nil {
			t.Errorf("%s is an integer", text)
		}
	}
}

// TestRefusals: what clients would repeat in vain has no status that they repeat.
func TestRefusals(t *testing.T) {
	for name, c := range map[string]struct {
		err    error
		status int
		code   string
		after  string
	}{
		"its own":         {fmt.Errorf("x: %w", NotImplemented("no")), 501, "NOT_IMPLEMENTED", ""},
		"not found":       {fault.NotFound("no"), 404, "RESOURCE_DOES_NOT_EXIST", ""},
		"exists":          {fault.AlreadyExists("no"), 400, "RESOURCE_ALREADY_EXISTS", ""},
		"invalid":         {fault.InvalidArgument("no"), 400, "INVALID_PARAMETER_VALUE", ""},
		"state":           {fault.FailedPrecondition("no"), 400, "INVALID_PARAMETER_VALUE", ""},
		"in use":          {fault.New(codes.FailedPrecondition, faultv1.Reason_RESOURCE_IN_USE, "no"), 409, "RESOURCE_CONFLICT", ""},
		"conflict":        {fault.Aborted("no"), 409, "RESOURCE_CONFLICT", ""},
		"denied":          {fault.PermissionDenied("no"), 403, "PERMISSION_DENIED", ""},
		"nobody":          {fault.Unauthenticated("no"), 401, "UNAUTHENTICATED", ""},
		"a used up limit": {fault.ResourceExhausted("no"), 400, "INVALID_PARAMETER_VALUE", ""},
		"a rate":          {fault.New(codes.ResourceExhausted, faultv1.Reason_RATE_LIMITED, "no").Retry(1500 * time.Millisecond), 429, "REQUEST_LIMIT_EXCEEDED", "2"},
		"away":            {fault.Unavailable("no"), 503, "TEMPORARILY_UNAVAILABLE", "1"},
		"a deadline":      {fault.New(codes.DeadlineExceeded, faultv1.Reason_DEADLINE_PASSED, "no"), 503, "TEMPORARILY_UNAVAILABLE", "1"},
		"unimplemented":   {fault.New(codes.Unimplemented, faultv1.Reason_METHOD_UNKNOWN, "no"), 501, "NOT_IMPLEMENTED", ""},
		"internal":        {fault.Internal(errors.New("/var/lib/x"), "no"), 500, "INTERNAL_ERROR", ""},
		"damaged":         {fault.New(codes.DataLoss, faultv1.Reason_DATA_DAMAGED, "no"), 500, "INTERNAL_ERROR", ""},
		"anything":        {errors.New("/var/lib/x"), 500, "INTERNAL_ERROR", ""},
		"over the wire":   {fault.ToStatus(fault.NotFound("no"), "d", "r").Err(), 404, "RESOURCE_DOES_NOT_EXIST", ""},
	} {
		w := httptest.NewRecorder()
		RefusalOf(c.err).Answer(w)
		var out map[string]string
		if err := json.Unmarshal(w.Body.Bytes(), &out); err != nil {
			t.Errorf("%s: %q", name, w.Body)
		}
		if w.Code != c.status || out["error_code"] != c.code || out["message"] == "" || len(out) != 2 || w.Header().Get("Retry-After") != c.after || strings.Contains(w.Body.String(), "/var/lib") {
			t.Errorf("%s: %d %v %v", name, w.Code, out, w.Header())
		}
	}
	if RefusalOf(nil) != nil {
		t.Error("no error is a refusal")
	}
}

func TestBatch(t *testing.T) {
	now := time.UnixMilli(1700000000000)
	read := func(text string) (*Logged, *Refusal) {
		b := &Batch{}
		if bad := Decode([]byte(text), b); bad != nil {
			return nil, bad
		}
		return b.Check(now)
	}
	got, bad := read(`{"metrics":[{"key":"a","value":"NaN"},{"key":"b","value":1,"timestamp":"5","step":"7","unknown":{}}],"params":[{"key":"p","value":""}],"tags":[{"key":"t","value":"v"}]}`)
	if bad != nil || len(got.Metrics) != 2 || got.Metrics[0].GetTime().AsTime().UnixMilli() != now.UnixMilli() || got.Metrics[1].GetTime().AsTime().UnixMilli() != 5 || got.Metrics[1].GetStep() != 7 || len(got.Params) != 1 || len(got.Tags) != 1 {
		t.Fatalf("%v %v", got, bad)
	}
	many := func(n int, item string) string { return strings.TrimSuffix(strings.Repeat(item+",", n), ",") }
	for text, code := range map[string]string{
		`{"metrics":[` + many(1001, `{"key":"a","value":1}`) + `]}`:                   "INVALID_PARAMETER_VALUE",
		`{"params":[` + many(101, `{"key":"a","value":"1"}`) + `]}`:                   "INVALID_PARAMETER_VALUE",
		`{"tags":[` + many(101, `{"key":"a","value":"1"}`) + `]}`:                     "INVALID_PARAMETER_VALUE",
		`{"metrics":[{"key":"a"}]}`:                                                   "INVALID_PARAMETER_VALUE",
		`{"metrics":[{"value":1}]}`:                                                   "INVALID_PARAMETER_VALUE",
		`{"metrics":[{"key":"a","value":1,"timestamp":9223372036854775807}]}`:         "INVALID_PARAMETER_VALUE",
		`{"params":[{"key":"a"}]}`:                                                    "INVALID_PARAMETER_VALUE",
		`{"params":[{"key":"a","value":"` + strings.Repeat("v", MostParam+1) + `"}]}`: "INVALID_PARAMETER_VALUE",
		`{"tags":[{"key":"` + strings.Repeat("k", MostKey+1) + `","value":"v"}]}`:     "INVALID_PARAMETER_VALUE",
		`{"metrics":{}}`:                        "INVALID_PARAMETER_VALUE",
		`{"metrics":[{"key":"a","value":NaN}]}`: "BAD_REQUEST",
		`[]`:                                    "INVALID_PARAMETER_VALUE",
		``:                                      "BAD_REQUEST",
	} {
		if _, bad := read(text); bad == nil || bad.Code != code || bad.Status != 400 {
			t.Errorf("%.80s: %v", text, bad)
		}
	}
}

func TestRunIDs(t *testing.T) {
	for _, c := range []struct {
		ids  RunIDs
		want string
	}{{RunIDs{"a", ""}, "a"}, {RunIDs{"", "a"}, "a"}, {RunIDs{"a", "a"}, "a"}, {RunIDs{"a", "b"}, ""}, {RunIDs{}, ""}} {
		if id, bad := c.ids.ID(); id != c.want || (bad == nil) != (c.want != "") {
			t.Errorf("%v: %q %v", c.ids, id, bad)
		}
	}
}
