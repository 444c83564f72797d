package console

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	"github.com/redoubt-ml/redoubt/internal/agent/sandbox"
	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/pkg/redact"
)

// script logs two metrics ten times a second, for half a minute, unless it is cancelled.
const script = `import json, math, os, time, urllib.request

def log(route, **fields):
    body = json.dumps({"run_id": os.environ["MLFLOW_RUN_ID"], **fields}).encode()
    url = os.environ["MLFLOW_TRACKING_URI"] + "/api/2.0/mlflow/runs/" + route
    urllib.request.urlopen(urllib.request.Request(url, body, {"Content-Type": "application/json"})).read()

log("set-tag", key="note", value="</td><script>document.title='broken'</script>")
for step in range(1, 301):
    now = int(time.time() * 1000)
    log("log-batch", metrics=[
        {"key": "loss", "value": math.exp(-step / 20) + 0.05 * math.sin(step), "timestamp": now, "step": step},
        {"key": "validation/accuracy", "value": 1 - math.exp(-step / 30), "timestamp": now, "step": step},
    ])
    time.sleep(0.1)
`

// chromium gives a browser that believes this installation's certificate and no other.
func chromium(t *testing.T) context.Context {
	t.Helper()
	var program string
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if p, err := exec.LookPath(name); err == nil {
			program = p
			break
		}
	}
	if program == "" {
		t.Skip("no chromium on the PATH: the pages are not tried in a browser")
	}
	d := tls.Dialer{Config: &tls.Config{RootCAs: mesh.TLS().RootCAs, MinVersion: tls.VersionTLS13}}
	conn, err := d.DialContext(t.Context(), "tcp", strings.TrimPrefix(mesh.URL, "https://"))
	if err != nil {
		t.Fatal(err)
	}
	leaf := conn.(*tls.Conn).ConnectionState().PeerCertificates[0]
	_ = conn.Close()
	pin := sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
	opts := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(program), chromedp.UserDataDir(t.TempDir()), chromedp.NoSandbox, // it runs as root in CI
		chromedp.Flag("ignore-certificate-errors-spki-list", base64.StdEncoding.EncodeToString(pin[:])),
		chromedp.WindowSize(1100, 900),
	)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(cancel)
	ctx, stop := chromedp.NewExecAllocator(ctx, opts...)
	t.Cleanup(stop)
	ctx, leave := chromedp.NewContext(ctx)
	t.Cleanup(leave)
	return ctx
}

func TestALiveCurveInABrowser(t *testing.T) {
	if _, _, err := sandbox.Interpreter(t.Context(), "python3"); err != nil {
		t.Skipf("no python3 to run a script: %v", err)
	}
	if err := sandbox.Check(t.Context()); err != nil {
		t.Skipf("this machine cannot isolate a run: %v", err)
	}
	ctx := chromium(t)
	ws := workspace(t, "curves")
	admin, err := client.Dial(client.Context{Name: "test", Server: mesh.URL, CAPEM: mesh.CA}, redact.FromString(mesh.Admin(t)))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = admin.Close() }()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "curve.py"), []byte(script), 0o600); err != nil {
		t.Fatal(err)
	}
	snapshot, err := admin.UploadSnapshot(t.Context(), ws.GetName(), dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	target, err := admin.Computes().CreateCompute(t.Context(), &computev1.CreateComputeRequest{Parent: ws.GetName(), ComputeId: "here", Kind: computev1.Compute_KIND_LOCAL})
	if err != nil {
		t.Fatal(err)
	}
	run, err := admin.Runs().SubmitRun(t.Context(), &computev1.SubmitRunRequest{
		Parent: ws.GetName(), RunId: "curve-1", Compute: target.GetName(), Snapshot: snapshot.GetName(), Command: []string{"python3", "curve.py"}, DisplayName: "a live curve",
	})
	if err != nil {
		t.Fatal(err)
	}

	const loss = `figure[data-key="loss"]`
	if err := chromedp.Do(ctx, chromedp.Navigate(mesh.URL+"/console/enter?code="+code(t, mesh.Admin(t)))); err != nil {
		t.Fatal(err)
	}
	follow(ctx, t, "main button", `a[href="/console/w/default/default/curves/"]`)
	if list := ask(ctx, t, chromedp.Text(chromedp.CSS("main"))); !strings.Contains(list, "<script>alert(1)</script>") {
		t.Errorf("the workspaces read %q", list)
	}
	follow(ctx, t, `a[href="/console/w/default/default/curves/"]`, `a[href$="/runs/curve-1"]`)
	// The chart comes to a page that was loaded before there was anything to draw, or stands there already; and goes on by itself.
	follow(ctx, t, `a[href$="/runs/curve-1"]`, loss)
	first := ask(ctx, t, chromedp.Evaluate[int](`+document.querySelector('figure[data-key="loss"] .step').textContent`))
	become(ctx, t, "five more points", `(from) => +document.querySelector('figure[data-key="loss"] .step').textContent > from + 5`, first)
	become(ctx, t, "the chart, drawn anew", `() => { const i = document.querySelector('figure[data-key="loss"] img'); return i.complete && i.naturalWidth > 100 && i.src.includes("v=") }`)
	if n := ask(ctx, t, chromedp.Evaluate[int](`document.querySelectorAll("figure").length`)); n != 2 {
		t.Errorf("%d charts", n)
	}
	if title := ask(ctx, t, chromedp.Title()); title != "curve-1 · Redoubt" {
		t.Errorf("the title is %q: what a tenant wrote was run", title)
	}
	picture(ctx, t, "run.png")
	if _, err := admin.Runs().CancelRun(t.Context(), &computev1.CancelRunRequest{Name: run.GetName()}); err != nil {
		t.Fatal(err)
	}
	become(ctx, t, "the end of the run", `() => document.getElementById("state").textContent === "canceled"`)
	follow(ctx, t, `nav a[href$="/activity"]`, "main table")
	picture(ctx, t, "activity.png")
}

// follow clicks, and waits for what comes.
func follow(ctx context.Context, t *testing.T, click, wait string) {
	t.Helper()
	if err := chromedp.Do(ctx, chromedp.Click(chromedp.CSS(click)), chromedp.WaitVisible(chromedp.CSS(wait))); err != nil {
		t.Fatalf("from %s to %s: %v", click, wait, err)
	}
}

func ask[T any](ctx context.Context, t *testing.T, a chromedp.Action[T]) T {
	t.Helper()
	v, err := chromedp.Run(ctx, a)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// become waits until a function of the page says so.
func become(ctx context.Context, t *testing.T, what, function string, args ...any) {
	t.Helper()
	ok, err := chromedp.Run(ctx, chromedp.PollFunction[bool](function, chromedp.WithPollingArgs(args...), chromedp.WithPollingTimeout(time.Minute)))
	if err != nil || !ok {
		t.Fatalf("%s: %v %v", what, ok, err)
	}
}

// picture leaves a screenshot where one is asked for.
func picture(ctx context.Context, t *testing.T, name string) {
	t.Helper()
	dir := os.Getenv("REDOUBT_SCREENSHOTS")
	if dir == "" {
		return
	}
	png := ask(ctx, t, chromedp.FullScreenshot(100))
	if err := os.WriteFile(filepath.Join(dir, name), png, 0o600); err != nil {
		t.Fatal(err)
	}
}
