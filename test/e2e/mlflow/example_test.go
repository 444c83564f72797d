package mlflow

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestExample runs the script that needs nothing but Python, and the stock client's where it is installed.
func TestExample(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("no python3 here")
	}
	c := newClient(t, "example")
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, mesh.CA, 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(script string) (string, error) {
		cmd := exec.CommandContext(t.Context(), python, filepath.Join("../../../examples/mlflow", script))
		cmd.Env = append(os.Environ(), "MLFLOW_TRACKING_URI="+c.base, "MLFLOW_TRACKING_TOKEN="+c.bearer, "MLFLOW_TRACKING_SERVER_CERT_PATH="+ca, "NO_PROXY=127.0.0.1,localhost")
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	for range 2 { // what is there already is no obstacle
		out, err := run("rest.py")
		if err != nil || !strings.Contains(out, "best: rate-0.5") || !strings.Contains(out, `holds {"rate": 0.5`) {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	if exec.CommandContext(t.Context(), python, "-c", "import mlflow").Run() != nil {
		out, err := run("stock_client.py")
		if err == nil || !strings.Contains(out, "MLflow's client is not installed here") {
			t.Errorf("without the client: %v\n%s", err, out)
		}
		return
	}
	out, err := run("stock_client.py")
	if err != nil || !strings.Contains(out, "best: rate-0.5") || !strings.Contains(out, "'rate': 0.5") {
		t.Fatalf("%v\n%s", err, out)
	}
}
