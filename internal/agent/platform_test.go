package agent_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"maps"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/internal/agent"
	"github.com/redoubt-ml/redoubt/internal/agent/sandbox"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/rule"
	"github.com/redoubt-ml/redoubt/pkg/svid"
)

func TestMain(m *testing.M) {
	sandbox.MaybeStage()
	if status, ok := asAgent(); ok {
		os.Exit(status)
	}
	os.Exit(m.Run())
}

const (
	runName   = "subscriptions/s/resourceGroups/g/workspaces/w/runs/r1"
	runUID    = "run_aaaaaaaaaaaaaaaaaaaaaaaaaa"
	snapshot  = "subscriptions/s/resourceGroups/g/workspaces/w/snapshots/s1"
	joinToken = "join-once"
)

// platform is all that an agent speaks to: the four services behind one TLS address, with the rules that the agent lives by.
// Tokens are bound to the key of enrolment and proofs are checked as the real chain does it.
type platform struct {
	identityv1.UnimplementedAgentServiceServer
	computev1.UnimplementedAgentRunServiceServer
	workspacev1.UnimplementedSnapshotServiceServer
	telemetryv1.UnimplementedMetricServiceServer

	t      *testing.T
	url    string
	roots  *agent.Roots
	caPEM  []byte
	addr   string
	proofs *authn.ProofChecker
	rules  *rule.Table

	ca     *svid.Authority              // signs certificates for agents, if set
	models map[string]map[string][]byte // files by version, by path

	mu        sync.Mutex
	task      *computev1.Assignment
	files     map[string][]byte
	damaged   bool          // send other content than the digests say
	tokenLife time.Duration // of each token
	cuts      *mathrand.Rand
	cutRate   float64
	logLimit  int64
	slow      time.Duration // before each message of a stream is taken
	onLog     func([]byte)

	joined    string // thumbprint
	tokens    map[string]time.Time
	cancel    bool
	ended     bool
	narrowed  bool // the run may only deliver, by the rules of the contracts
	assigned  func()
	beats     int
	renewals  int
	logMsgs   int
	log       []byte
	batches   map[string]bool
	metrics   []*telemetryv1.Metric
	params    map[string]string
	tags      map[string]string
	outputs   map[string][]byte
	reports   []*computev1.ReportRunRequest
	loseFirst bool // the answer of the first report
}

func newPlatform(t *testing.T, command ...string) *platform {
	t.Helper()
	p := &platform{
		t: t, tokenLife: 10 * time.Minute, logLimit: 1 << 40, files: map[string][]byte{}, tokens: map[string]time.Time{}, batches: map[string]bool{},
		params: map[string]string{}, tags: map[string]string{}, outputs: map[string][]byte{},
		task: &computev1.Assignment{
			Run: runName, RunUid: runUID, Command: command, Snapshot: snapshot, Heartbeat: durationpb.New(50 * time.Millisecond),
			Limits: &computev1.RunLimits{ScratchBytes: 64 << 20, MemoryBytes: 512 << 20},
		},
	}
	var err error
	if p.proofs, err = authn.NewProofChecker(authn.ProofConfig{}); err != nil {
		t.Fatal(err)
	}
	if p.rules, err = rule.Load(rule.Registered("redoubt")...); err != nil {
		t.Fatal(err)
	}
	cert := p.certificate()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p.addr, p.url = l.Addr().String(), "https://"+l.Addr().String()
	s := grpc.NewServer(
		grpc.Creds(credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}})),
		grpc.UnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			if err := p.admit(ctx, info.FullMethod); err != nil {
				return nil, wire(err)
			}
			res, err := next(ctx, req)
			return res, wire(err)
		}),
		grpc.StreamInterceptor(func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
			if err := p.admit(ss.Context(), info.FullMethod); err != nil {
				return wire(err)
			}
			return wire(next(srv, ss))
		}),
	)
	identityv1.RegisterAgentServiceServer(s, p)
	computev1.RegisterAgentRunServiceServer(s, p)
	workspacev1.RegisterSnapshotServiceServer(s, p)
	telemetryv1.RegisterMetricServiceServer(s, p)
	inferencev1.RegisterModelServiceServer(s, models{p: p})
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	return p
}

func wire(err error) error {
	if err == nil {
		return nil
	}
	return fault.ToStatus(err, "redoubt.test", "req").Err()
}

func (p *platform) certificate() tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		p.t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		p.t.Fatal(err)
	}
	p.caPEM = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	p.roots, err = agent.NewRoots(p.caPEM)
	if err != nil {
		p.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// admit checks token and proof.
func (p *platform) admit(ctx context.Context, method string) error {
	if method == identityv1.AgentService_EnrolAgent_FullMethodName {
		return nil
	}
	one := func(k string) string {
		if v := metadata.ValueFromIncomingContext(ctx, k); len(v) == 1 {
			return v[0]
		}
		return ""
	}
	token, ok := strings.CutPrefix(one("authorization"), "DPoP ")
	p.mu.Lock()
	expires, known := p.tokens[token]
	jkt, ended := p.joined, p.ended
	if m, ok := p.rules.Lookup(method); !ok || p.narrowed && !m.Rule.GetDeliver() {
		ended = true
	}
	p.mu.Unlock()
	switch {
	case !ok || !known:
		return fault.New(codes.Unauthenticated, faultv1.Reason_TOKEN_INVALID, "no token")
	case ended:
		return fault.New(codes.Unauthenticated, faultv1.Reason_TOKEN_REVOKED, "revoked")
	case !time.Now().Before(expires):
		return fault.New(codes.Unauthenticated, faultv1.Reason_TOKEN_EXPIRED, "expired")
	}
	if err := p.proofs.Check(one("dpop"), "POST", p.url+method, token, jkt); err != nil {
		p.t.Errorf("%s: %v", method, err)
		return err
	}
	return nil
}

// cut says whether a connection breaks here.
func (p *platform) cut() bool { return p.cuts != nil && p.cuts.Float64() < p.cutRate }

var errCut = fault.Unavailable("cut")

// give answers with a token, and with a certificate if one is asked for and there is an authority.
func (p *platform) give(csr []byte) (*identityv1.EnrolAgentResponse, error) {
	token := rand.Text()
	p.tokens[token] = time.Now().Add(p.tokenLife)
	res := &identityv1.EnrolAgentResponse{RunToken: token, ExpireTime: timestamppb.New(p.tokens[token]), AgentUid: "agt_a"}
	if p.ca == nil || len(csr) == 0 {
		return res, nil
	}
	id, err := svid.RunID(mesh, "ws_1", runUID)
	if err != nil {
		return nil, err
	}
	res.Svid, _, err = p.ca.SignCSR(csr, id, time.Hour, time.Now())
	res.Roots = [][]byte{p.ca.Root().Raw}
	return res, err
}

func (p *platform) EnrolAgent(_ context.Context, req *identityv1.EnrolAgentRequest) (*identityv1.EnrolAgentResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	csr, err := x509.ParseCertificateRequest(req.GetCsr())
	if err != nil || csr.CheckSignature() != nil {
		return nil, fault.InvalidArgument("bad CSR")
	}
	jkt := authn.Thumbprint(csr.PublicKey.(*ecdsa.PublicKey))
	if req.GetJoinToken() != joinToken || p.joined != "" && p.joined != jkt {
		return nil, fault.New(codes.Unauthenticated, faultv1.Reason_JOIN_TOKEN_INVALID, "join token")
	}
	p.joined = jkt
	if p.cut() {
		return nil, errCut
	}
	return p.give(req.GetCsr())
}

func (p *platform) RenewRunToken(_ context.Context, req *identityv1.RenewRunTokenRequest) (*identityv1.EnrolAgentResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.renewals++
	if (len(req.GetCsr()) > 0) != (p.ca != nil) {
		p.t.Errorf("a request for a certificate of %d bytes", len(req.GetCsr()))
	}
	return p.give(req.GetCsr())
}

func (p *platform) GetAssignment(_ context.Context, req *computev1.GetAssignmentRequest) (*computev1.Assignment, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if req.GetName() != runName {
		return nil, fault.NotFound("no such run")
	}
	if p.assigned != nil {
		p.assigned()
	}
	return proto.CloneOf(p.task), nil
}

func (p *platform) Heartbeat(context.Context, *computev1.HeartbeatRequest) (*computev1.HeartbeatResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.beats++
	return &computev1.HeartbeatResponse{Cancel: p.cancel}, nil
}

func (p *platform) AppendLogs(s grpc.BidiStreamingServer[computev1.AppendLogsRequest, computev1.AppendLogsResponse]) error {
	for first := true; ; first = false {
		m, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if first != (m.GetName() == runName) {
			p.t.Errorf("log message named %q, first %v", m.GetName(), first)
		}
		time.Sleep(p.slow)
		res, err := p.append(m)
		if err != nil {
			return err
		}
		if err := s.Send(res); err != nil {
			return err
		}
	}
}

func (p *platform) append(m *computev1.AppendLogsRequest) (*computev1.AppendLogsResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.logMsgs++
	if p.cut() {
		return nil, errCut
	}
	at := int64(len(p.log))
	if m.GetOffset() > at && at >= p.logLimit {
		return nil, fault.New(codes.OutOfRange, faultv1.Reason_REQUEST_INVALID, "the log ends at %d", at)
	}
	if m.GetOffset() > at || len(m.GetData()) > 64<<10 {
		p.t.Errorf("log message at %d, stored %d, %d bytes", m.GetOffset(), at, len(m.GetData()))
		return nil, fault.InvalidArgument("offset")
	}
	if skip := at - m.GetOffset(); skip < int64(len(m.GetData())) {
		p.log = append(p.log, m.GetData()[skip:]...)
		p.log = p.log[:min(int64(len(p.log)), p.logLimit)]
	}
	if p.onLog != nil {
		p.onLog(p.log)
	}
	if p.cut() {
		return nil, errCut // stored, and not answered
	}
	return &computev1.AppendLogsResponse{Stored: int64(len(p.log)), Full: int64(len(p.log)) >= p.logLimit}, nil
}

func (p *platform) LogRunData(s grpc.BidiStreamingServer[telemetryv1.LogRunDataRequest, telemetryv1.LogRunDataResponse]) error {
	for first := true; ; first = false {
		m, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if first != (m.GetRun() == runName) || m.GetBatchId() == "" {
			p.t.Errorf("batch %q of run %q, first %v", m.GetBatchId(), m.GetRun(), first)
		}
		time.Sleep(p.slow)
		if err := p.take(m); err != nil {
			return err
		}
		if err := s.Send(&telemetryv1.LogRunDataResponse{BatchId: m.GetBatchId()}); err != nil {
			return err
		}
	}
}

func (p *platform) take(m *telemetryv1.LogRunDataRequest) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cut() {
		return errCut
	}
	if !p.batches[m.GetBatchId()] {
		for _, x := range m.GetParams() {
			if old, ok := p.params[x.GetKey()]; ok && old != x.GetValue() {
				return fault.InvalidArgument("the parameter %q has another value", x.GetKey())
			}
		}
		p.batches[m.GetBatchId()] = true
		p.metrics = append(p.metrics, m.GetMetrics()...)
		for _, x := range m.GetParams() {
			p.params[x.GetKey()] = x.GetValue()
		}
		for _, x := range m.GetTags() {
			p.tags[x.GetKey()] = x.GetValue()
		}
	}
	if p.cut() {
		return errCut
	}
	return nil
}

func (p *platform) DownloadSnapshot(req *workspacev1.DownloadSnapshotRequest, s grpc.ServerStreamingServer[workspacev1.DownloadSnapshotResponse]) error {
	if req.GetName() != snapshot {
		return fault.NotFound("no such snapshot")
	}
	p.mu.Lock()
	files, damaged := maps.Clone(p.files), p.damaged
	p.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(files)) {
		data := files[name]
		sum := sha256.Sum256(data)
		if damaged {
			data = bytes.ToUpper(data)
		}
		half := len(data) / 2
		msg := &workspacev1.DownloadSnapshotResponse{Entry: &workspacev1.SnapshotEntry{Path: name, Digest: sum[:], Size: int64(len(data)), Executable: strings.HasSuffix(name, ".sh")}, Data: data[:half]}
		if err := s.Send(msg); err != nil {
			return err
		}
		p.mu.Lock()
		cut := p.cut()
		p.mu.Unlock()
		if cut {
			return errCut
		}
		if err := s.Send(&workspacev1.DownloadSnapshotResponse{Data: data[half:]}); err != nil {
			return err
		}
	}
	return nil
}

func (p *platform) UploadOutput(s grpc.ClientStreamingServer[computev1.UploadOutputRequest, computev1.Output]) error {
	first, err := s.Recv()
	if err != nil {
		return err
	}
	data := bytes.Clone(first.GetData())
	for {
		m, err := s.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		data = append(data, m.GetData()...)
	}
	sum := sha256.Sum256(data)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cut() {
		return errCut
	}
	if int64(len(data)) != first.GetSize() || !bytes.Equal(sum[:], first.GetDigest()) {
		return fault.New(codes.InvalidArgument, faultv1.Reason_DIGEST_MISMATCH, "another digest")
	}
	p.outputs[first.GetPath()] = data
	if p.cut() {
		return errCut
	}
	return s.SendAndClose(&computev1.Output{Path: first.GetPath()})
}

func (p *platform) ReportRun(_ context.Context, req *computev1.ReportRunRequest) (*computev1.Run, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if int64(len(p.log)) < req.GetLogBytes() || len(p.outputs) != int(req.GetOutputs()) {
		return nil, fault.FailedPrecondition("send the rest first")
	}
	p.reports = append(p.reports, req)
	p.ended = true
	if p.loseFirst {
		return nil, errCut
	}
	return &computev1.Run{}, nil
}

// set changes the platform while an agent may be at work.
func (p *platform) set(change func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change()
}

func (p *platform) config() agent.Config {
	return agent.Config{
		Gateway: p.addr, PublicURL: p.url, Roots: p.roots, Run: runName, RunUID: runUID, JoinToken: redact.FromString(joinToken),
		StopGrace: 5 * time.Second, Logger: slog.New(slog.NewTextHandler(p.t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
}

// carry runs an agent to its end, and gives its one report.
func (p *platform) carry(cfg agent.Config) *computev1.ReportRunRequest {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), 60*time.Second)
	defer cancel()
	if err := p.try(ctx, cfg); err != nil {
		p.t.Fatalf("the agent gave up: %v", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.reports) != 1 {
		p.t.Fatalf("%d reports", len(p.reports))
	}
	return p.reports[0]
}

func (p *platform) try(ctx context.Context, cfg agent.Config) error {
	p.t.Helper()
	a, err := agent.New(cfg)
	if err != nil {
		p.t.Fatal(err)
	}
	defer func() { _ = a.Close() }()
	return a.Run(ctx)
}
