package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/durationpb"

	"crypto/rand"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/internal/node"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/authn/password"
	"github.com/redoubt-ml/redoubt/pkg/redact"
)

// serveInstallation is the server process "installation": all services, as `redoubt up` runs them; "installation-passwords" has dear passwords, and
// "installation-passwords-inside" computes their hashes itself.
func serveInstallation(ctx context.Context, kind string) error {
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	log, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer log.Close()
	opts := node.Options{LogWriter: log, Password: password.Config{Apart: true}}
	if kind != "installation" {
		opts.Password = passwords()
		opts.Password.Apart = kind == "installation-passwords"
	}
	in, err := node.Up(ctx, node.UpConfig{Data: filepath.Join(dir, "data"), Listen: "127.0.0.1:0", Log: node.Log{Level: "error"}, Options: opts})
	if err != nil {
		return err
	}
	defer in.Stop()
	stop, err := profiled()
	if err != nil {
		return err
	}
	defer stop()
	anyone, err := client.Dial(client.Context{Name: "bench", Server: in.URL, CAPEM: in.CA}, redact.Secret{})
	if err != nil {
		return err
	}
	s, err := anyone.SignIn(ctx, strings.TrimPrefix(in.Admin, "users/"), in.FirstPassword)
	if err != nil {
		return err
	}
	if err := json.NewEncoder(os.Stdout).Encode(hello{Gateway: in.URL, Direct: in.MTLSURL, Root: in.CA, Token: s.GetAccessToken()}); err != nil {
		return err
	}
	_, _ = bufio.NewReader(os.Stdin).ReadByte() // until who started it is done
	// Agents outlive an installation: those of replicas that are being stopped have their time.
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if left, err := filepath.Glob(filepath.Join(dir, "data", "compute", "runs", "run_*")); err != nil || len(left) == 0 {
			break
		}
	}
	return nil
}

// installation is one that this process is a client of, with an endpoint in it.
type installation struct {
	*process
	admin                        *client.Client
	roots                        *x509.CertPool
	workspace, compute, endpoint string
	scoring                      string
	key                          string
}

func newInstallation(ctx context.Context, o options, kind computev1.Compute_Kind) (*installation, error) {
	p, err := start(ctx, o, "installation")
	if err != nil {
		return nil, err
	}
	in := &installation{process: p, roots: x509.NewCertPool()}
	if !in.roots.AppendCertsFromPEM(p.Root) {
		return nil, errors.New("the installation's root is no certificate")
	}
	if in.admin, err = client.Dial(client.Context{Name: "bench", Server: p.hello.Gateway, CAPEM: p.Root}, redact.FromString(p.Token)); err != nil {
		return nil, err
	}
	ws, err := in.admin.Resources().CreateWorkspace(ctx, &workspacev1.CreateWorkspaceRequest{Parent: "subscriptions/default/resourceGroups/default", WorkspaceId: "bench"})
	if err != nil {
		return nil, err
	}
	in.workspace = ws.GetName()
	c, err := in.admin.Computes().CreateCompute(ctx, &computev1.CreateComputeRequest{Parent: in.workspace, ComputeId: "here", Kind: kind, MaxRuns: 8})
	if err != nil {
		return nil, err
	}
	in.compute = c.GetName()
	return in, nil
}

// folder uploads files as a snapshot.
func (in *installation) folder(ctx context.Context, files map[string]string) (string, error) {
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return "", err
		}
	}
	s, err := in.admin.UploadSnapshot(ctx, in.workspace, dir, nil)
	return s.GetName(), err
}

// deploy makes a model of one small file and an endpoint with one deployment of it. ready is called once it is submitted.
func (in *installation) deploy(ctx context.Context, code string, workers int32, ready func() error) error {
	snapshot, err := in.folder(ctx, map[string]string{"score.py": code})
	if err != nil {
		return err
	}
	upload, err := inferencev1.NewModelServiceClient(in.admin.Conn()).UploadModelVersion(ctx)
	if err != nil {
		return err
	}
	content := []byte("a model\n")
	sum := sha256.Sum256(content)
	for _, m := range []*inferencev1.UploadModelVersionRequest{
		{Parent: in.workspace + "/models/m", CreateModel: true},
		{File: &inferencev1.ModelFile{Path: "model.txt", Size: int64(len(content)), Digest: sum[:]}, Data: content},
	} {
		if err := upload.Send(m); err != nil {
			break // the answer says why
		}
	}
	v, err := upload.CloseAndRecv()
	if err != nil {
		return err
	}
	endpoints := inferencev1.NewEndpointServiceClient(in.admin.Conn())
	e, err := endpoints.CreateEndpoint(ctx, &inferencev1.CreateEndpointRequest{Parent: in.workspace, EndpointId: "e", Endpoint: &inferencev1.NewEndpoint{Kind: inferencev1.Endpoint_KIND_LOCAL}})
	if err != nil {
		return err
	}
	in.endpoint, in.scoring = e.GetName(), e.GetScoringUri()
	k, err := endpoints.GetCredentials(ctx, &inferencev1.GetCredentialsRequest{Name: in.endpoint})
	if err != nil {
		return err
	}
	in.key = k.GetPrimaryKey()
	d, err := endpoints.CreateDeployment(ctx, &inferencev1.CreateDeploymentRequest{Parent: in.endpoint, DeploymentId: "d", Deployment: &inferencev1.DeploymentSpec{
		Model: v.GetName(), Snapshot: snapshot, Compute: in.compute, Workers: workers, QueueLength: 1000,
	}})
	if err != nil {
		return err
	}
	if err := ready(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	watch, err := endpoints.WatchDeployment(ctx, &inferencev1.WatchDeploymentRequest{Name: d.GetName()})
	if err != nil {
		return err
	}
	for d.GetState() != inferencev1.Deployment_STATE_READY {
		if d.GetState() == inferencev1.Deployment_STATE_FAILED {
			return fmt.Errorf("the deployment failed: %s", d.GetMessage())
		}
		if d, err = watch.Recv(); err != nil {
			return fmt.Errorf("waiting for the deployment (%s): %w", d.GetMessage(), err)
		}
	}
	return nil
}

// takeDown ends the replicas: agents outlive the installation that started them.
func (in *installation) takeDown(ctx context.Context) error {
	_, err := inferencev1.NewEndpointServiceClient(in.admin.Conn()).DeleteEndpoint(ctx, &inferencev1.DeleteEndpointRequest{Name: in.endpoint})
	return errors.Join(err, in.admin.Close(), in.stop())
}

// echoReplica claims the replica that waits for a self-hosted target, and serves it in this process with n workers in Go: all of the
// way but Python.
func (in *installation) echoReplica(ctx context.Context, n int) (err error) {
	claimed, err := in.admin.Computes().ClaimRun(ctx, &computev1.ClaimRunRequest{Name: in.compute, Wait: durationpb.New(10 * time.Second)})
	if err != nil {
		return err
	}
	boot := claimed.GetBootstrap()
	key, err := authn.GenerateKey()
	if err != nil {
		return err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return err
	}
	anyone, err := client.Dial(client.Context{Name: "agent", Server: in.hello.Gateway, CAPEM: in.Root}, redact.Secret{})
	if err != nil {
		return err
	}
	enrolled, err := identityv1.NewAgentServiceClient(anyone.Conn()).EnrolAgent(ctx, &identityv1.EnrolAgentRequest{JoinToken: boot.GetJoinToken(), Csr: csr})
	if err != nil {
		return err
	}
	prover, err := authn.NewProver(key, nil)
	if err != nil {
		return err
	}
	as := func(method string) (context.Context, error) {
		proof, err := prover.Proof("POST", in.hello.Gateway+method, enrolled.GetRunToken(), "")
		return metadata.AppendToOutgoingContext(ctx, "authorization", "DPoP "+enrolled.GetRunToken(), "dpop", proof), err
	}
	runs := computev1.NewAgentRunServiceClient(anyone.Conn())
	c, err := as(computev1.AgentRunService_GetAssignment_FullMethodName)
	if err != nil {
		return err
	}
	task, err := runs.GetAssignment(c, &computev1.GetAssignmentRequest{Name: boot.GetRun()})
	if err != nil {
		return err
	}
	go func() {
		for ctx.Err() == nil {
			if c, err := as(computev1.AgentRunService_Heartbeat_FullMethodName); err == nil {
				_, _ = runs.Heartbeat(c, &computev1.HeartbeatRequest{Name: boot.GetRun(), Running: true})
			}
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
			}
		}
		_ = anyone.Close()
	}()
	var chain []*x509.Certificate
	for _, der := range enrolled.GetSvid() {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return err
		}
		chain = append(chain, cert)
	}
	if len(chain) == 0 || len(chain[0].URIs) != 1 {
		return errors.New("the agent got no certificate")
	}
	id, err := spiffeid.FromURI(chain[0].URIs[0])
	if err != nil {
		return err
	}
	var roots []*x509.Certificate
	for _, der := range enrolled.GetRoots() {
		root, err := x509.ParseCertificate(der)
		if err != nil {
			return err
		}
		roots = append(roots, root)
	}
	service, err := spiffeid.FromPath(id.TrustDomain(), "/service/inference")
	if err != nil {
		return err
	}
	conf := tlsconfig.MTLSClientConfig(&x509svid.SVID{ID: id, Certificates: chain, PrivateKey: key}, x509bundle.FromX509Authorities(id.TrustDomain(), roots), tlsconfig.AuthorizeID(service))
	conf.MinVersion, conf.NextProtos = tls.VersionTLS13, []string{"redoubt-replica/1"}
	for i := range n {
		conn, err := (&tls.Dialer{Config: conf}).DialContext(ctx, "tcp", task.GetServe().GetAddress())
		if err != nil {
			return err
		}
		in := bufio.NewReader(conn)
		if _, err := fmt.Fprintf(conn, "{\"worker\":%d}\n", i); err != nil {
			return err
		}
		if line, err := in.ReadString('\n'); err != nil || line != "ok\n" {
			return fmt.Errorf("inference answered %q: %w", line, err)
		}
		go func() { _ = echo(conn, in) }()
	}
	return nil
}

// echo answers requests on one connection with their bodies.
func echo(conn net.Conn, in *bufio.Reader) error {
	defer conn.Close()
	out := bufio.NewWriter(conn)
	body := make([]byte, 0, 4096)
	for {
		req, err := http.ReadRequest(in)
		if err != nil {
			return err
		}
		body = body[:min(int64(cap(body)), max(req.ContentLength, 0))]
		for n := 0; n < len(body); {
			m, err := req.Body.Read(body[n:])
			if n += m; err != nil && n < len(body) {
				return err
			}
		}
		_ = req.Body.Close()
		fmt.Fprintf(out, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n", len(body))
		_, _ = out.Write(body)
		if err := out.Flush(); err != nil {
			return err
		}
	}
}

// pemOf is for programs that read files.
func pemOf(kind string, der ...[]byte) []byte {
	var out []byte
	for _, d := range der {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: d})...)
	}
	return out
}

// hostOf is the address of a URL.
func hostOf(s string) string {
	u, err := url.Parse(s)
	if err != nil {
		return ""
	}
	return u.Host
}
