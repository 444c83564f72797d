package models

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/pkg/audit"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/authz"
	"github.com/redoubt-ml/redoubt/pkg/blob"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/rule"
	"github.com/redoubt-ml/redoubt/pkg/seal"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/pkg/sqldb/sqldbtest"
	"github.com/redoubt-ml/redoubt/pkg/svid"
	"github.com/redoubt-ml/redoubt/services/inference/internal/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	trust  = "redoubt.test"
	issuer = "https://redoubt.test:7443"

	sub1 = "subscriptions/s1"
	grp1 = sub1 + "/resourceGroups/g1"
	ws1  = grp1 + "/workspaces/w1"
	ws2  = grp1 + "/workspaces/w2"
	run1 = ws1 + "/runs/r1"
	snap = ws1 + "/snapshots/saaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
)

// lab is the registry behind the real chain on a real socket, with a real database, real blobs and a clock of the test's. Compute is the
// test's own.
type lab struct {
	t      testing.TB
	cfg    Config
	outbox *audit.Outbox
	s      *Service
	db     *sqldb.DB
	blobs  string // the folder
	engine *authz.Engine
	addr   string
	uids   map[string]string
	seq    uint64
	runs   *runs
	conns  map[string]*grpc.ClientConn

	mu     sync.Mutex
	clock  time.Time
	tokens map[string]*authn.Verified
}

func (l *lab) now() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.clock
}

func (l *lab) advance(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.clock = l.clock.Add(d)
}

// runs is compute, as far as the registry asks it.
type runs struct {
	computev1.RunServiceClient

	mu        sync.Mutex
	outputs   map[string]string // by path
	list, get error
	// during is called before the content of each output is sent, and may change it.
	during func(path string) error
}

func wire(err error) error {
	if err == nil {
		return nil
	}
	return fault.ToStatus(err, trust, "").Err()
}

func (r *runs) set(fn func(r *runs)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	fn(r)
}

func (r *runs) GetRun(_ context.Context, in *computev1.GetRunRequest, _ ...grpc.CallOption) (*computev1.Run, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return &computev1.Run{Name: in.GetName(), Uid: "run_1", Snapshot: snap}, wire(r.get)
}

func (r *runs) ListOutputs(context.Context, *computev1.ListOutputsRequest, ...grpc.CallOption) (*computev1.ListOutputsResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := &computev1.ListOutputsResponse{}
	for _, p := range slices.Sorted(maps.Keys(r.outputs)) {
		sum := sha256.Sum256([]byte(r.outputs[p]))
		out.Outputs = append(out.Outputs, &computev1.Output{Path: p, Size: int64(len(r.outputs[p])), Digest: sum[:]})
	}
	return out, wire(r.list)
}

func (r *runs) DownloadOutput(_ context.Context, in *computev1.DownloadOutputRequest, _ ...grpc.CallOption) (grpc.ServerStreamingClient[computev1.DownloadOutputResponse], error) {
	r.mu.Lock()
	during := r.during
	r.mu.Unlock()
	var failed error
	if during != nil {
		failed = wire(during(in.GetPath()))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return &content{parts: slices.Collect(slices.Chunk([]byte(r.outputs[in.GetPath()]), 7)), failed: failed}, nil
}

// content is a stream of an output.
type content struct {
	grpc.ServerStreamingClient[computev1.DownloadOutputResponse]
	parts  [][]byte
	failed error // after the first part
}

func (c *content) Recv() (*computev1.DownloadOutputResponse, error) {
	if len(c.parts) == 0 {
		return nil, io.EOF
	}
	m := &computev1.DownloadOutputResponse{Data: c.parts[0]}
	if c.parts = c.parts[1:]; c.failed != nil {
		c.parts = nil
		return nil, c.failed
	}
	return m, nil
}

func newLab(t testing.TB) *lab {
	t.Helper()
	db := sqldbtest.Open(t, envelope.Migrations(), audit.Migrations(), store.Migrations())
	l := &lab{
		t: t, db: db, uids: map[string]string{"/": ""}, runs: &runs{outputs: map[string]string{"model/a.json": "aaaaaaaaaa", "model/sub/b.bin": "bb", "log.txt": "log", "empty": ""}},
		conns: make(map[string]*grpc.ClientConn), clock: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), tokens: make(map[string]*authn.Verified),
		blobs: filepath.Join(t.TempDir(), "blob"),
	}
	ring := func(service string) *envelope.Keyring {
		s, err := seal.OpenFile(filepath.Join(t.TempDir(), "seal.key"), true)
		must(t, err)
		k, err := envelope.New(envelope.Config{Source: envelope.SealSource(s, service), DB: l.db})
		must(t, err)
		return k
	}
	own := ring("inference")
	var err error
	l.outbox, err = audit.New(audit.Config{Service: "inference", DB: l.db, Keys: own})
	must(t, err)
	blobs, err := blob.Open(t.Context(), blob.Config{Dir: l.blobs})
	must(t, err)
	t.Cleanup(func() { _ = blobs.Close() })

	l.engine = authz.New(authz.Config{MaxStale: 1e6 * time.Hour, Now: l.now})
	l.seq++
	state := &workspacev1.WatchAuthorizationResponse{Seq: l.seq, Reset_: true, Complete: true, Roles: authz.BuiltinRoles()}
	for _, at := range []struct{ name, parent, prefix string }{{sub1, "/", "sub"}, {grp1, sub1, "rgp"}, {ws1, grp1, "ws"}, {ws2, grp1, "ws"}} {
		l.uids[at.name] = resource.NewUID(at.prefix)
		state.Scopes = append(state.Scopes, &workspacev1.ScopeRecord{Uid: l.uids[at.name], Name: at.name, ParentUid: l.uids[at.parent], Active: true})
	}
	must(t, l.engine.ApplyAuthorization(state))
	must(t, l.engine.ApplySecurity(&identityv1.WatchSecurityResponse{Seq: 1, Reset_: true, Complete: true}))
	l.assign("owner", sub1, authz.Owner)
	l.assign("reader", sub1, authz.Reader)
	l.assign("other", ws2, authz.Owner)

	l.cfg = Config{DB: l.db, Own: own, Keys: ring("keyvault"), Blobs: blobs, Runs: l.runs, MaxFiles: 4, MaxBytes: 1 << 20, Now: l.now}
	l.restart()
	l.serve()
	return l
}

// restart is the registry as a new process on the same database has it. Calls go to the first one.
func (l *lab) restart() {
	l.t.Helper()
	var err error
	l.s, err = New(l.cfg)
	must(l.t, err)
}

func (l *lab) serve() {
	l.t.Helper()
	rules, err := rule.Load(rule.Registered("redoubt")...)
	must(l.t, err)
	proofs, err := authn.NewProofChecker(authn.ProofConfig{})
	must(l.t, err)
	chain, err := rpc.NewChain(rpc.Config{
		Service: "inference", TrustDomain: trust, Installation: trust, Issuer: issuer, PublicURL: issuer, Rules: rules,
		Verifier: l, Proofs: proofs, Engine: l.engine, Recorder: l.outbox, Logger: slog.New(slog.DiscardHandler),
	})
	must(l.t, err)
	server := chain.NewServer(says{}, "redoubt.inference.v1.ModelService")
	l.s.Register(chain.Registrar(server))
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(l.t, err)
	l.addr = listener.Addr().String()
	var wg sync.WaitGroup
	wg.Go(func() { _ = server.Serve(listener) })
	l.t.Cleanup(func() {
		for _, c := range l.conns {
			_ = c.Close()
		}
		server.Stop()
		wg.Wait()
	})
}

// Verify implements rpc.Verifier.
func (l *lab) Verify(_ context.Context, token, audience string) (*authn.Verified, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	v, ok := l.tokens[token]
	if !ok || audience != issuer {
		return nil, fault.New(codes.Unauthenticated, faultv1.Reason_TOKEN_INVALID, "not one of ours")
	}
	return v, nil
}

// VerifyDelivery implements rpc.Verifier: no run has ended here.
func (l *lab) VerifyDelivery(ctx context.Context, token, audience string) (*authn.Verified, error) {
	return l.Verify(ctx, token, audience)
}

// assign gives a user a role.
func (l *lab) assign(user, scope, role string) {
	l.t.Helper()
	l.mu.Lock()
	l.tokens[user] = &authn.Verified{Claims: authn.Claims{Subject: "usr_" + user, PrincipalType: "User"}}
	l.mu.Unlock()
	l.seq++
	must(l.t, l.engine.ApplyAuthorization(&workspacev1.WatchAuthorizationResponse{Seq: l.seq, Assignments: []*workspacev1.AssignmentRecord{
		{Uid: "asg_" + user + role + l.uids[scope], ScopeUid: l.uids[scope], Role: role, PrincipalUid: "usr_" + user},
	}}))
}

func (l *lab) client() inferencev1.ModelServiceClient {
	l.t.Helper()
	c := l.conns["gateway"]
	if c == nil {
		var err error
		c, err = grpc.NewClient("passthrough:///"+l.addr, grpc.WithTransportCredentials(says{"spiffe://" + trust + "/service/gateway"}))
		must(l.t, err)
		l.conns["gateway"] = c
	}
	return inferencev1.NewModelServiceClient(c)
}

func (l *lab) as(user string) context.Context {
	return metadata.AppendToOutgoingContext(l.t.Context(), "authorization", "Bearer "+user)
}

// model makes a model.
func (l *lab) model(id string) *inferencev1.Model {
	l.t.Helper()
	m, err := l.client().CreateModel(l.as("owner"), &inferencev1.CreateModelRequest{Parent: ws1, ModelId: id})
	must(l.t, err)
	l.advance(time.Second)
	return m
}

// named is a file to upload.
type named struct{ path, content string }

func entry(f named) *inferencev1.ModelFile {
	sum := sha256.Sum256([]byte(f.content))
	return &inferencev1.ModelFile{Path: f.path, Size: int64(len(f.content)), Digest: sum[:]}
}

// messages are those of an upload; each file's content comes in two parts or more.
func messages(parent string, files ...named) []*inferencev1.UploadModelVersionRequest {
	out := []*inferencev1.UploadModelVersionRequest{{Parent: parent, Description: "uploaded", Tags: map[string]string{"k": "v"}}}
	for _, f := range files {
		half := min(len(f.content)/2, 1<<18)
		out = append(out, &inferencev1.UploadModelVersionRequest{File: entry(f), Data: []byte(f.content[:half])})
		for part := range slices.Chunk([]byte(f.content[half:]), 1<<18) {
			out = append(out, &inferencev1.UploadModelVersionRequest{Data: part})
		}
	}
	return out
}

func (l *lab) send(user string, msgs []*inferencev1.UploadModelVersionRequest) (*inferencev1.ModelVersion, error) {
	l.t.Helper()
	s, err := l.client().UploadModelVersion(l.as(user))
	must(l.t, err)
	for _, m := range msgs {
		if s.Send(m) != nil {
			break // CloseAndRecv says why
		}
	}
	return s.CloseAndRecv()
}

func (l *lab) upload(model string, files ...named) *inferencev1.ModelVersion {
	l.t.Helper()
	v, err := l.send("owner", messages(model, files...))
	must(l.t, err)
	l.advance(time.Second)
	return v
}

// fromRun registers outputs of the run.
func (l *lab) fromRun(model string, change func(*inferencev1.CreateModelVersionRequest)) (*inferencev1.ModelVersion, error) {
	req := &inferencev1.CreateModelVersionRequest{Parent: model, SourceRun: run1, SourcePath: "model"}
	if change != nil {
		change(req)
	}
	return l.client().CreateModelVersion(l.as("owner"), req)
}

// download gives the files of a version, by path, and how many messages came.
func (l *lab) download(ctx context.Context, name, path string) (files map[string]string, n int, err error) {
	s, err := l.client().DownloadModelVersion(ctx, &inferencev1.DownloadModelVersionRequest{Name: name, Path: path})
	must(l.t, err)
	files = make(map[string]string)
	var at string
	for ; ; n++ {
		m, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return files, n, nil
		}
		if err != nil {
			return files, n, err
		}
		if m.GetFile() != nil {
			at = m.GetFile().GetPath()
			files[at] = ""
		}
		files[at] += string(m.GetData())
	}
}

// stored counts the blobs that are on disk.
func (l *lab) stored() (n int) {
	l.t.Helper()
	for _, err := range l.cfg.Blobs.List(l.t.Context(), "") {
		must(l.t, err)
		n++
	}
	return n
}

func (l *lab) count(table string) (n int) {
	l.t.Helper()
	must(l.t, l.db.Reader().QueryRowContext(l.t.Context(), "SELECT COUNT(*) FROM "+table).Scan(&n))
	return n
}

func (l *lab) exec(text string, args ...any) {
	l.t.Helper()
	must(l.t, l.db.Write(l.t.Context(), func(ctx context.Context, tx *sqldb.Tx) error {
		_, err := tx.ExecContext(ctx, text, args...)
		return err
	}))
}

// nothing fails unless a registration that failed has left nothing.
func (l *lab) nothing(name string, blobs, versions int) {
	l.t.Helper()
	if b, v, o := l.stored(), l.count("model_versions"), l.count("model_leftovers"); b != blobs || v != versions || o != 0 {
		l.t.Errorf("%s: %d blobs, %d versions, %d left over; want %d, %d, 0", name, b, v, o, blobs, versions)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// want checks code and, unless it is 0, reason of an error that came over the wire.
func want(t testing.TB, name string, err error, code codes.Code, reason faultv1.Reason) {
	t.Helper()
	err = fault.FromStatus(err)
	if fault.Code(err) != code || reason != 0 && fault.ReasonOf(err) != reason {
		t.Errorf("%s: got %v %v (%v), want %v %v", name, fault.Code(err), fault.ReasonOf(err), err, code, reason)
	}
}

// says is a handshake in which the client says who it is.
type says struct{ id string }

func (s says) ClientHandshake(_ context.Context, _ string, c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	_, err := c.Write(append([]byte{byte(len(s.id))}, s.id...))
	return c, info("spiffe://" + trust + "/service/inference"), err
}

func (says) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	n := make([]byte, 1)
	if _, err := io.ReadFull(c, n); err != nil {
		return nil, nil, err
	}
	id := make([]byte, n[0])
	_, err := io.ReadFull(c, id)
	return c, info(string(id)), err
}

func info(id string) *svid.PeerInfo {
	return &svid.PeerInfo{TLSInfo: credentials.TLSInfo{CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}}, PeerID: id}
}

func (says) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "test"}
}
func (s says) Clone() credentials.TransportCredentials { return s }
func (says) OverrideServerName(string) error           { return nil }

// flip changes one byte of a file of the blob store.
func flip(b []byte) []byte {
	out := bytes.Clone(b)
	out[len(out)-1] ^= 1
	return out
}

func long(n int) string { return strings.Repeat("x", n) }
