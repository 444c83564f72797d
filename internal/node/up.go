package node

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/base32"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redoubt-ml/redoubt/internal/node/etcdnode"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/services/identity"
)

// UpConfig says how a whole installation runs in one process.
type UpConfig struct {
	// Data is the folder that holds everything; made if it is missing.
	Data string
	// Listen is the gateway's host:port. With port 0 every port is chosen by the system; else the ports after it are the
	// services' (see Ports).
	Listen string
	// TrustDomain names the installation at first start. Default "redoubt.local".
	TrustDomain string
	// LeafLife is how long an X.509-SVID lives. Default 1 h.
	LeafLife time.Duration
	// Admin is the name of the first administrator. Default "admin".
	Admin string
	// AgentCommand starts the agent of a local target. Empty is this binary with "agent".
	AgentCommand []string
	// TraceEndpoint takes OTLP traces over gRPC, host:port on this machine; empty exports none. TraceRatio is the share of calls that
	// are traced, 0 to 1.
	TraceEndpoint string
	TraceRatio    float64
	// ScoringURL is the scoring listener's address as clients write it. Default: the gateway's host with the listener's port.
	ScoringURL string
	// ScoringCertificateFile and ScoringKeyFile are what the scoring listener shows in place of the mesh's certificate.
	ScoringCertificateFile, ScoringKeyFile string
	// Blobs is the bucket in place of the services' folders.
	Blobs Bucket
	// WorkloadAPI is the socket of another's SPIFFE Workload API for every service, unix:///path; empty: identity issues their SVIDs.
	WorkloadAPI string
	// EtcdUnsafe leaves out etcd's fsync: for tests.
	EtcdUnsafe bool
	Log        Log
	Options    Options
}

// Installation is a whole installation that runs in one process.
type Installation struct {
	// URL is the public URL, ScoringURL the one that endpoints are scored at, MTLSURL the one at which service principals prove themselves by a
	// certificate, "" where there is none.
	URL, ScoringURL, MTLSURL string
	// CA are the roots to believe at it, as PEM.
	CA []byte
	// Admin is the first administrator's name, users/{user}.
	Admin string
	// FirstPassword is his password, only when this start made him.
	FirstPassword redact.Secret
	// Nodes by service.
	Nodes map[string]*Node

	etcd   *etcdnode.Node
	unlock func()
	once   sync.Once
}

// portNames are the listeners of an installation in the order of their ports, from the one that was asked for.
var portNames = []string{"gateway", "gateway-mesh", "identity", "identity-enrol", "workspace", "keyvault", "telemetry", "compute", "inference", "inference-scoring", "inference-replicas"}

// publicPorts are those of the listeners that strangers reach: they listen where the installation was asked to.
var publicPorts = []string{"gateway", "inference-scoring"}

// portMTLS is the listener for clients with certificates, which strangers reach too. Its port comes after etcd's, so that no other has moved for it.
const portMTLS = "identity-mtls"

// Port is one of the ports that an installation listens on.
type Port struct{ Name, Addr string }

// Ports lists what `up --listen addr` listens on: the gateway's port, the ten after it, after those
// etcd's client port, which is last of the list, and the one for clients with certificates.
func Ports(addr string) ([]Port, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fault.InvalidArgument("--listen is not host:port: %v", err)
	}
	base, err := strconv.ParseUint(port, 10, 16)
	if err != nil || base > 65535-uint64(len(portNames))-2 {
		return nil, fault.InvalidArgument("--listen needs a port below %d", 65535-len(portNames)-2)
	}
	var out []Port
	at := func(name, host string, i uint64) {
		if base == 0 {
			i = 0
		}
		out = append(out, Port{name, net.JoinHostPort(host, strconv.FormatUint(base+i, 10))})
	}
	for i, name := range portNames {
		h := "127.0.0.1"
		if slices.Contains(publicPorts, name) {
			h = host
		}
		at(name, h, uint64(i))
	}
	at(portMTLS, host, uint64(len(portNames))+1)
	at("etcd", "127.0.0.1", uint64(len(portNames)))
	return out, nil
}

// Up starts an installation. It returns when every service answers.
func Up(ctx context.Context, cfg UpConfig) (*Installation, error) {
	if cfg.TrustDomain == "" {
		cfg.TrustDomain = "redoubt.local"
	}
	if cfg.Admin == "" {
		cfg.Admin = "admin"
	}
	data, err := filepath.Abs(cfg.Data)
	if err != nil {
		return nil, err
	}
	cfg.Data = data
	if err := os.MkdirAll(data, 0o700); err != nil {
		return nil, fault.FailedPrecondition("the folder %s cannot be made: %v; choose another with --data", data, reason(err))
	}
	in := &Installation{Nodes: make(map[string]*Node)}
	if in.unlock, err = LockFolder(data); err != nil {
		return nil, err
	}
	if err = refuseHalfRestored(data); err != nil {
		in.Stop()
		return nil, err
	}
	wasRestored(data)
	if err := in.up(ctx, cfg); err != nil {
		in.Stop()
		return nil, err
	}
	return in, nil
}

func (in *Installation) up(ctx context.Context, cfg UpConfig) error {
	listeners, err := openPorts(ctx, cfg.Listen)
	if err != nil {
		return err
	}
	used := false
	defer func() {
		if !used {
			for _, l := range listeners {
				_ = l.Close()
			}
		}
	}()
	etcdAddr := listeners["etcd"].Addr().String()
	_ = listeners["etcd"].Close() // etcd opens it itself
	delete(listeners, "etcd")
	in.etcd, err = etcdnode.Start(ctx, etcdnode.Config{Dir: filepath.Join(cfg.Data, "etcd"), ClientAddr: etcdAddr, UnsafeNoFsync: cfg.EtcdUnsafe, Now: cfg.Options.Now})
	if err != nil {
		return err
	}
	mesh := Mesh{
		TrustDomain: cfg.TrustDomain, PublicURL: "https://" + listeners["gateway"].Addr().String(), Etcd: in.etcd.Endpoints(),
		EnrolAddress: listeners["identity-enrol"].Addr().String(), LeafLife: cfg.LeafLife, TraceEndpoint: cfg.TraceEndpoint, TraceRatio: cfg.TraceRatio,
	}
	if mesh.PublicURL, err = publicURL(cfg.Listen, listeners["gateway"].Addr()); err != nil {
		return err
	}
	if cfg.ScoringURL == "" {
		if cfg.ScoringURL, err = publicURL(cfg.Listen, listeners["inference-scoring"].Addr()); err != nil {
			return err
		}
	}
	if cfg.WorkloadAPI == "" {
		if in.MTLSURL, err = publicURL(cfg.Listen, listeners[portMTLS].Addr()); err != nil {
			return err
		}
	} else { // the certificate of another's Workload API has no name that a client could check
		_ = listeners[portMTLS].Close()
		delete(listeners, portMTLS)
	}
	in.URL, in.ScoringURL = mesh.PublicURL, cfg.ScoringURL
	used = true
	for _, name := range Services {
		if err := etcdClient(in.etcd.PKI(), filepath.Join(cfg.Data, name, "etcd"), name); err != nil {
			return err
		}
	}
	opts := cfg.Options
	opts.Listeners = listeners
	// Identity first: the others enrol with it. After that there is no order.
	ids, err := in.start(ctx, cfg, mesh, opts, "identity")
	if err != nil {
		return err
	}
	mesh.CAPin = ids.Identity().Pin()
	admin, err := firstAdmin(ctx, cfg.Data, cfg.Admin, ids.Identity())
	if err != nil {
		return err
	}
	in.Admin, in.FirstPassword = admin.Name, admin.Password
	if err := in.startRest(ctx, cfg, mesh, opts, ids.Identity(), admin.UID); err != nil {
		return err
	}
	in.CA = pemOf(ids.roots())
	if err := in.ready(ctx); err != nil {
		return err
	}
	return PasswordGiven(cfg.Data)
}

// startRest starts every service but identity, at once.
func (in *Installation) startRest(ctx context.Context, cfg UpConfig, mesh Mesh, opts Options, ids *identity.Service, admin string) error {
	var wg sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	for _, name := range Services {
		if name == "identity" {
			continue
		}
		if cfg.WorkloadAPI == "" {
			if err := join(ctx, cfg.Data, ids, name); err != nil {
				return err
			}
		}
		c := in.config(cfg, mesh, name)
		if name == "workspace" {
			c.Service.Admin = admin
		}
		wg.Go(func() {
			n, err := Start(ctx, c, opts)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs = append(errs, err)
				return
			}
			in.Nodes[name] = n
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (in *Installation) start(ctx context.Context, cfg UpConfig, mesh Mesh, opts Options, name string) (*Node, error) {
	n, err := Start(ctx, in.config(cfg, mesh, name), opts)
	if err == nil {
		in.Nodes[name] = n
	}
	return n, err
}

func (in *Installation) config(cfg UpConfig, mesh Mesh, name string) Config {
	dir := filepath.Join(cfg.Data, name)
	mesh.EtcdTLS = filepath.Join(dir, "etcd")
	c := Config{Mesh: mesh, Log: cfg.Log, Service: Service{
		Name: name, Instance: "a", Dir: dir, Listen: "127.0.0.1:0", MeshListen: "127.0.0.1:0", JoinTokenFile: filepath.Join(dir, "join.token"), LocalTargets: true, AgentCommand: cfg.AgentCommand, WorkloadAPI: cfg.WorkloadAPI,
	}}
	c.Service.bucket(cfg.Blobs)
	if name == "identity" && in.MTLSURL != "" {
		c.Service.MTLSListen, c.Service.MTLSURL = "127.0.0.1:0", in.MTLSURL
	}
	if name == "inference" {
		c.Service.ScoringListen, c.Service.ReplicaListen = "127.0.0.1:0", "127.0.0.1:0"
		c.Service.ScoringURL, c.Service.ScoringCertificateFile, c.Service.ScoringKeyFile = cfg.ScoringURL, cfg.ScoringCertificateFile, cfg.ScoringKeyFile
	}
	return c
}

// join makes a join token for a service that has no key yet.
func join(ctx context.Context, data string, ids *identity.Service, name string) error {
	dir := filepath.Join(data, name)
	if _, err := os.Stat(filepath.Join(dir, "svid", "svid.pem")); err == nil {
		return nil
	}
	token, err := ids.CreateServiceJoin(ctx, name, "a", time.Hour)
	if err != nil {
		return err
	}
	return writeSecret(filepath.Join(dir, "join.token"), token)
}

// newPassword is 130 bits in words that can be typed: five groups of lower-case letters and digits.
func newPassword() redact.Secret {
	var b [17]byte
	_, _ = rand.Read(b[:]) // crypto/rand never fails
	s := strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(b[:]))
	groups := make([]string, 0, 5)
	for i := 0; i+5 <= 25; i += 5 {
		groups = append(groups, s[i:i+5])
	}
	return redact.FromString(strings.Join(groups, "-"))
}

// ready waits until every service decides from fresh state and can be found.
func (in *Installation) ready(ctx context.Context) error {
	for _, name := range Services {
		if err := in.Nodes[name].Ready(ctx); err != nil {
			return fmt.Errorf("%s is not ready: %w", name, err)
		}
	}
	return nil
}

// Failed gives the error of the first service that ended by itself.
func (in *Installation) Failed(ctx context.Context) error {
	out := make(chan error, len(in.Nodes))
	for _, n := range in.Nodes {
		go func() {
			select {
			case err := <-n.Failed():
				out <- err
			case <-ctx.Done():
			}
		}()
	}
	select {
	case err := <-out:
		return err
	case <-ctx.Done():
		return nil
	}
}

// Stop ends the services in reverse order, then etcd. Runs go on: their agents have sessions of their own.
func (in *Installation) Stop() {
	in.once.Do(func() {
		for i := len(Services) - 1; i >= 0; i-- {
			if n := in.Nodes[Services[i]]; n != nil {
				n.Stop()
			}
		}
		if in.etcd != nil {
			_ = in.etcd.Close()
		}
		if in.unlock != nil {
			in.unlock()
		}
	})
}

// openPorts opens every port before anything is started, so that one in use is told at once.
func openPorts(ctx context.Context, addr string) (map[string]net.Listener, error) {
	ports, err := Ports(addr)
	if err != nil {
		return nil, err
	}
	out := make(map[string]net.Listener, len(ports))
	for _, p := range ports {
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", p.Addr)
		if err != nil {
			for _, l := range out {
				_ = l.Close()
			}
			return nil, fault.FailedPrecondition("cannot listen on %s for %s: %v; is another redoubt running? Choose another port with --listen", p.Addr, p.Name, reason(err))
		}
		out[p.Name] = l
	}
	return out, nil
}

// publicURL is the address that clients write. An unspecified host is this machine's loopback address.
func publicURL(listen string, got net.Addr) (string, error) {
	host, _, err := net.SplitHostPort(listen)
	if err != nil {
		return "", err
	}
	_, port, err := net.SplitHostPort(got.String())
	if err != nil {
		return "", err
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return "https://" + net.JoinHostPort(host, port), nil
}

// reason is the last cause of an error of the system, without the operation around it.
func reason(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	var o *net.OpError
	if errors.As(err, &o) {
		return o.Err
	}
	return err
}

func pemOf(certs []*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}
