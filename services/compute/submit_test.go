package compute

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

func TestCheckPath(t *testing.T) {
	for _, p := range []string{"a", "a/b.txt", "...", "a..b", ".hidden", "a b", "ä", strings.Repeat("a", 1024)} {
		if err := checkPath(p); err != nil {
			t.Errorf("%q: %v", p, err)
		}
	}
	for name, p := range map[string]string{
		"empty": "", "root": "/", "absolute": "/etc/passwd", "dot": ".", "dots": "..", "up": "../a", "up inside": "a/../../b", "up and back": "a/../b", "dot inside": "a/./b",
		"dot first": "./a", "slash last": "a/", "two slashes": "a//b", "two first": "//a", "up last": "a/..", "backslash": `a\b`, "windows up": `..\a`, "NUL": "a\x00b", "newline": "a\nb",
		"escape": "a\x1b[2J", "DEL": "a\x7f", "not UTF-8": "a\xff", "not NFC": "a\u0308", "too long": strings.Repeat("a", 1025),
	} {
		if err := checkPath(p); fault.ReasonOf(err) != faultv1.Reason_PATH_INVALID {
			t.Errorf("%s: %q: %v", name, p, err)
		}
	}
}

func TestLooksSecret(t *testing.T) {
	for _, tc := range []struct {
		key, value string
		secret     bool
	}{
		{"A", "plain", false}, {"EPOCHS", "10", false}, {"TOKENIZERS_PARALLELISM", "false", false}, {"MAX_TOKENS", "5", false}, {"KEYBOARD", "us", false}, {"PASSENGERS", "5", false},
		{"DATA_URL", "https://example.com/a@b", false}, {"PASSWORD", "", false}, {"MONKEY", "x", false}, {"PWD", "/srv", false}, {"PASSWORDLESS", "true", false},
		{"PASSWORD", "x", true}, {"DB_PASSWORD", "x", true}, {"db_password", "x", true}, {"PGPASSWORD", "x", true}, {"MYSQL_PWD", "x", true}, {"HF_TOKEN", "x", true}, {"API_KEY", "x", true}, {"APIKEY", "x", true},
		{"AWS_SECRET_ACCESS_KEY", "x", true}, {"MY_CREDENTIALS", "x", true}, {"PRIVATE_KEY_PATH", "x", true},
		{"A", "-----BEGIN RSA PRIVATE KEY-----", true}, {"A", "-----BEGIN PRIVATE KEY-----", true}, {"A", "-----BEGIN CERTIFICATE-----", false},
		{"A", "AKIAABCDEFGHIJKLMNOP", true}, {"A", "ASIAABCDEFGHIJKLMNOP", true}, {"A", "eyJhbGciOiJ9.eyJzdWIiOiIx.sig", true}, {"A", "ghp_" + strings.Repeat("a", 36), true},
		{"A", "github_pat_" + strings.Repeat("a", 30), true}, {"A", "xoxb-1234567890-x", true}, {"A", "glpat-" + strings.Repeat("a", 20), true}, {"A", "hf_" + strings.Repeat("a", 34), true},
		{"A", "postgres://user:pw@host/db", true}, {"A", "postgres://host/db", false}, {"A", "DefaultEndpointsProtocol=https;AccountKey=abc", true}, {"A", "rdt_abcdefgh1", true},
	} {
		if got := looksSecret(tc.key, tc.value); got != tc.secret {
			t.Errorf("%s=%s: %v", tc.key, tc.value, got)
		}
	}
}

func TestSubmit(t *testing.T) {
	l := newLab(t)
	c := l.target(computev1.Compute_KIND_LOCAL, 1)
	submit := func(change func(r *computev1.SubmitRunRequest)) (*computev1.Run, error) {
		r := l.request(c, "")
		if change != nil {
			change(r)
		}
		return l.runs().SubmitRun(l.as("owner"), r)
	}
	env := func(k, v string) func(r *computev1.SubmitRunRequest) {
		return func(r *computev1.SubmitRunRequest) { r.Environment = map[string]string{k: v} }
	}
	for _, tc := range []struct {
		name   string
		change func(r *computev1.SubmitRunRequest)
		code   codes.Code
	}{
		{"plain", nil, codes.OK},
		{"environment", env("EPOCHS", "3"), codes.OK},
		{"secret", env("DB_PASSWORD", "x"), codes.InvalidArgument},
		{"bad name", env("A-B", "x"), codes.InvalidArgument},
		{"reserved", env("REDOUBT_RUN", "x"), codes.InvalidArgument},
		{"loader", env("LD_PRELOAD", "x"), codes.InvalidArgument},
		{"NUL in a value", env("A", "x\x00"), codes.InvalidArgument},
		{"empty program", func(r *computev1.SubmitRunRequest) { r.Command = []string{""} }, codes.InvalidArgument},
		{"NUL in the command", func(r *computev1.SubmitRunRequest) { r.Command = []string{"a", "b\x00"} }, codes.InvalidArgument},
		{"negative timeout", func(r *computev1.SubmitRunRequest) {
			r.Limits = &computev1.RunLimits{Timeout: durationpb.New(-time.Second)}
		}, codes.InvalidArgument},
		{"bad id", func(r *computev1.SubmitRunRequest) { r.RunId = "../x" }, codes.InvalidArgument},
		{"the snapshot of another workspace", func(r *computev1.SubmitRunRequest) { r.Snapshot = ws2 + snap }, codes.InvalidArgument},
		{"no such compute", func(r *computev1.SubmitRunRequest) { r.Compute = ws1 + "/computes/absent" }, codes.NotFound},
	} {
		_, err := submit(tc.change)
		want(t, tc.name, err, tc.code, 0)
	}
	_, err := l.runs().SubmitRun(l.as("reader"), l.request(c, "x"))
	want(t, "by a reader", err, codes.PermissionDenied, 0)
	l.peers.set(func(p *peers) { p.snapshot = fault.NotFound("no such snapshot") })
	_, err = submit(nil)
	want(t, "no such snapshot", err, codes.NotFound, 0)
	l.peers.set(func(p *peers) { p.snapshot = nil })

	again := func(r *computev1.SubmitRunRequest) { r.RequestId = "5b2f" }
	first, err := submit(again)
	must(t, err)
	if second, err := submit(again); err != nil || second.GetUid() != first.GetUid() {
		t.Errorf("repeated: %v, %v", second, err)
	}
	_, err = submit(func(r *computev1.SubmitRunRequest) { r.RequestId, r.Command = "5b2f", []string{"other"} })
	want(t, "another request under the id", err, codes.AlreadyExists, faultv1.Reason_REQUEST_ID_REUSED)
	_, err = submit(func(r *computev1.SubmitRunRequest) { r.RunId = "mine" })
	must(t, err)
	_, err = submit(func(r *computev1.SubmitRunRequest) { r.RunId = "mine" })
	want(t, "the same run id", err, codes.AlreadyExists, 0)
}
