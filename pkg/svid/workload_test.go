package svid

import (
	"context"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// dialEnv makes the test binary a client of a Workload API under another user id.
const dialEnv = "REDOUBT_TEST_DIAL_WORKLOAD"

func TestMain(m *testing.M) {
	if addr := os.Getenv(dialEnv); addr != "" {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_, err := workloadapi.FetchX509SVID(ctx, workloadapi.WithAddr(addr))
		fmt.Println("fetched:", err)
		return
	}
	os.Exit(m.Run())
}

func workloadServer(t *testing.T, dir string, ttl time.Duration) (*WorkloadServer, *Keeper) {
	t.Helper()
	i := &issuer{a: newAuthority(t, td), id: service(t, "compute"), ttl: ttl}
	k := startKeeper(t, KeeperConfig{Dir: t.TempDir(), ID: i.id, Issue: i.issue})
	w, err := NewWorkloadServer(WorkloadConfig{Keeper: k, Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.Close() })
	return w, k
}

func dialWorkload(t *testing.T, w *WorkloadServer) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(w.Addr(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func withHeader(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	t.Cleanup(cancel)
	return metadata.AppendToOutgoingContext(ctx, headerKey, "true")
}

func TestWorkloadAPIPushesUpdates(t *testing.T) {
	w, k := workloadServer(t, t.TempDir(), time.Minute)
	api := workload.NewSpiffeWorkloadAPIClient(dialWorkload(t, w))
	svids, err := api.FetchX509SVID(withHeader(t), &workload.X509SVIDRequest{})
	if err != nil {
		t.Fatal(err)
	}
	bundles, err := api.FetchX509Bundles(withHeader(t), &workload.X509BundlesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var last *x509.Certificate
	for range 3 {
		r, err := svids.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if len(r.GetSvids()) != 1 || r.GetSvids()[0].GetSpiffeId() != "spiffe://mesh.test/service/compute" {
			t.Fatalf("%v", r.GetSvids())
		}
		leaf := parse(t, r.GetSvids()[0].GetX509Svid())
		if last != nil && leaf.Equal(last) {
			t.Error("the same SVID again")
		}
		last = leaf
		key, err := x509.ParsePKCS8PrivateKey(r.GetSvids()[0].GetX509SvidKey())
		if err != nil || !k.key.Equal(key) {
			t.Errorf("key: %v", err)
		}
		b, err := bundles.Recv()
		if err != nil || string(b.GetBundles()["spiffe://mesh.test"]) != string(r.GetSvids()[0].GetBundle()) {
			t.Errorf("bundles: %v", err)
		}
		k.Refresh()
	}
}

func TestWorkloadAPIRefuses(t *testing.T) {
	w, _ := workloadServer(t, t.TempDir(), time.Minute)
	conn := dialWorkload(t, w)
	api := workload.NewSpiffeWorkloadAPIClient(conn)
	first := func(ctx context.Context, method string) error {
		switch method {
		case "FetchX509SVID":
			s, err := api.FetchX509SVID(ctx, &workload.X509SVIDRequest{})
			if err == nil {
				_, err = s.Recv()
			}
			return err
		case "FetchX509Bundles":
			s, err := api.FetchX509Bundles(ctx, &workload.X509BundlesRequest{})
			if err == nil {
				_, err = s.Recv()
			}
			return err
		case "FetchJWTSVID":
			_, err := api.FetchJWTSVID(ctx, &workload.JWTSVIDRequest{Audience: []string{"a"}})
			return err
		case "ValidateJWTSVID":
			_, err := api.ValidateJWTSVID(ctx, &workload.ValidateJWTSVIDRequest{})
			return err
		case "FetchJWTBundles":
			s, err := api.FetchJWTBundles(ctx, &workload.JWTBundlesRequest{})
			if err == nil {
				_, err = s.Recv()
			}
			return err
		case "FetchWITSVID":
			s, err := api.FetchWITSVID(ctx, &workload.WITSVIDRequest{})
			if err == nil {
				_, err = s.Recv()
			}
			return err
		default:
			s, err := api.FetchWITBundles(ctx, &workload.WITBundlesRequest{})
			if err == nil {
				_, err = s.Recv()
			}
			return err
		}
	}
	methods := workload.SpiffeWorkloadAPI_ServiceDesc.Methods
	streams := workload.SpiffeWorkloadAPI_ServiceDesc.Streams
	if len(methods)+len(streams) != 7 {
		t.Fatalf("the standard has %d methods now", len(methods)+len(streams))
	}
	bare, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	wrong := metadata.AppendToOutgoingContext(bare, headerKey, "yes")
	twice := metadata.AppendToOutgoingContext(bare, headerKey, "true", headerKey, "false")
	for method, want := range map[string]codes.Code{
		"FetchX509SVID": codes.OK, "FetchX509Bundles": codes.OK, "FetchJWTSVID": codes.Unimplemented, "FetchJWTBundles": codes.Unimplemented,
		"ValidateJWTSVID": codes.Unimplemented, "FetchWITSVID": codes.Unimplemented, "FetchWITBundles": codes.Unimplemented,
	} {
		for name, ctx := range map[string]context.Context{"no header": bare, "wrong header": wrong, "two headers": twice} {
			if err := first(ctx, method); status.Code(err) != codes.InvalidArgument {
				t.Errorf("%s with %s: %v", method, name, err)
			}
		}
		err := first(withHeader(t), method)
		if status.Code(err) != want || (want == codes.Unimplemented && !strings.Contains(err.Error(), "X.509-SVID")) {
			t.Errorf("%s: %v, want %v and what to use", method, err, want)
		}
	}

	r, err := reflectionpb.NewServerReflectionClient(conn).ServerReflectionInfo(bare)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Send(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}}); err != nil {
		t.Fatal(err)
	}
	if a, err := r.Recv(); err != nil || !strings.Contains(a.String(), "SpiffeWorkloadAPI") {
		t.Errorf("reflection: %v, %v", a, err)
	}
}

func TestWorkloadSocket(t *testing.T) {
	t.Run("short path", func(t *testing.T) {
		dir := t.TempDir()
		w, _ := workloadServer(t, dir, time.Minute)
		path := filepath.Join(dir, socketName)
		if w.Addr() != "unix://"+path {
			t.Fatalf("at %s", w.Addr())
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v", info, err)
		}
		if _, err := NewWorkloadServer(WorkloadConfig{Keeper: w.keeper, Dir: dir}); !fault.Is(err, codes.FailedPrecondition) {
			t.Errorf("a second server at the same socket: %v", err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Lstat(path); !os.IsNotExist(err) {
			t.Errorf("the socket is left behind: %v", err)
		}
	})
	t.Run("long path", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), strings.Repeat("long", 30))
		w, _ := workloadServer(t, dir, time.Minute)
		path := strings.TrimPrefix(w.Addr(), "unix://")
		if len(path) > maxSocketPath || strings.HasPrefix(path, dir) {
			t.Fatalf("at %s", path)
		}
		if info, err := os.Stat(filepath.Dir(path)); err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("its folder: %v, %v", info.Mode(), err)
		}
		if _, err := workloadapi.FetchX509SVID(withHeader(t), workloadapi.WithAddr(w.Addr())); err != nil {
			t.Error(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(filepath.Dir(path)); !os.IsNotExist(err) {
			t.Errorf("its folder is left behind: %v", err)
		}
	})
	t.Run("stale", func(t *testing.T) {
		dir := t.TempDir()
		path := filepath.Join(dir, socketName)
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		l.SetUnlinkOnClose(false) // as a process that was killed
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		w, _ := workloadServer(t, dir, time.Minute)
		if _, err := workloadapi.FetchX509SVID(withHeader(t), workloadapi.WithAddr(w.Addr())); err != nil {
			t.Error(err)
		}
	})
	t.Run("something else there", func(t *testing.T) {
		for name, put := range map[string]func(path string) error{
			"file": func(p string) error { return os.WriteFile(p, []byte("keep"), 0o600) },
			"link": func(p string) error { return os.Symlink(filepath.Join(filepath.Dir(p), "target"), p) },
			"dir":  func(p string) error { return os.Mkdir(p, 0o700) },
		} {
			dir := t.TempDir()
			path := filepath.Join(dir, socketName)
			if err := put(path); err != nil {
				t.Fatal(err)
			}
			if err := func() error { _, err := listenSocket(dir); return err }(); !fault.Is(err, codes.FailedPrecondition) {
				t.Errorf("%s: %v", name, err)
			}
			if _, err := os.Lstat(path); err != nil {
				t.Errorf("%s was removed", name)
			}
		}
	})
}

func TestWorkloadPeerUser(t *testing.T) {
	for name, cred := range map[string]*unix.Ucred{"none": nil, "other": {Uid: 1001}, "root": {Uid: 0}, "overflow": {Uid: 65534}} {
		if sameUser(cred, 1000) {
			t.Errorf("%s is let in", name)
		}
	}
	if !sameUser(&unix.Ucred{Uid: 1000}, 1000) {
		t.Error("the own user is refused")
	}
}

// TestWorkloadOtherUser opens the socket's file to everyone and calls as another user: the kernel's word still holds.
func TestWorkloadOtherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can become another user")
	}
	dir, err := os.MkdirTemp("", "redoubt-test-") //nolint:usetesting // t.TempDir's parents are closed to others
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	w, k := workloadServer(t, dir, time.Minute)
	ready(t, k)
	for path, mode := range map[string]os.FileMode{dir: 0o755, filepath.Join(dir, socketName): 0o666} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	exe, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, "client")
	if err := os.WriteFile(bin, exe, 0o755); err != nil {
		t.Fatal(err)
	}
	call := func(uid uint32) string {
		cmd := exec.Command(bin)
		cmd.Env = []string{dialEnv + "=" + w.Addr()}
		cmd.Dir = dir
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	if out := call(0); !strings.Contains(out, "fetched: <nil>") {
		t.Fatalf("as ourselves: %s", out)
	}
	if out := call(65533); !strings.Contains(out, "code = PermissionDenied") {
		t.Errorf("as another user: %s", out)
	}
}
