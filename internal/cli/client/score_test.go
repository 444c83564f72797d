package client

import (
	"crypto/tls"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
)

// A credential goes to the endpoint's own address, over TLS that is believed, and nowhere else.
func TestScoreAt(t *testing.T) {
	seen := make(map[string]string) // path → credential
	handler := http.NewServeMux()
	handler.HandleFunc("/score", func(w http.ResponseWriter, r *http.Request) {
		seen[r.URL.Path] = r.Header.Get("Authorization")
		w.Header().Set("X-Request-Id", "r1")
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(r.Method + r.Header.Get("Content-Type") + r.Header.Get("azureml-model-deployment")))
	})
	handler.HandleFunc("/away", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "/stolen", http.StatusTemporaryRedirect)
	})
	handler.HandleFunc("/stolen", func(_ http.ResponseWriter, r *http.Request) { seen[r.URL.Path] = r.Header.Get("Authorization") })
	ca, cert := root(t)
	other, _ := root(t)
	s := httptest.NewUnstartedServer(handler)
	s.TLS = &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}}
	s.StartTLS()
	defer s.Close()
	plain := httptest.NewServer(handler)
	defer plain.Close()
	file := filepath.Join(t.TempDir(), "ca.pem")
	must(t, os.WriteFile(file, ca, 0o600))

	ask := func(c Context, uri, caFile string) (*ScoringAnswer, error) {
		return ScoreAt(t.Context(), c, ScoringRequest{URI: uri, Credential: redact.FromString("rdk_secret"), Deployment: "blue", ContentType: "text/csv", Body: []byte("1"), CAFile: caFile})
	}
	for name, c := range map[string]struct {
		ctx  Context
		file string
	}{"the context's root": {Context{CAPEM: ca}, ""}, "a root of its own": {Context{CAPEM: other}, file}} {
		r, err := ask(c.ctx, s.URL+"/score", c.file)
		if err != nil || r.Status != 200 || string(r.Body) != "POSTtext/csvblue" || r.RequestID != "r1" || seen["/score"] != "Bearer rdk_secret" {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
	clear(seen)
	if r, err := ask(Context{CAPEM: ca}, s.URL+"/away", ""); err != nil || r.Status != http.StatusTemporaryRedirect {
		t.Errorf("a redirection: %+v, %v", r, err)
	}
	_, err := ask(Context{CAPEM: other}, s.URL+"/score", "")
	if err == nil || !strings.Contains(err.Error(), "--scoring-ca") || strings.Contains(err.Error(), "rdk_") {
		t.Errorf("another root: %v", err)
	}
	for _, uri := range []string{plain.URL + "/score", "", "https://", "https://user:pw@" + strings.TrimPrefix(s.URL, "https://") + "/score", "file:///etc/passwd"} {
		if _, err := ask(Context{CAPEM: ca}, uri, ""); !fault.Is(err, codes.FailedPrecondition) {
			t.Errorf("%q: %v", uri, err)
		}
	}
	if len(seen) > 0 {
		t.Errorf("it was seen at %v", seen)
	}
}
