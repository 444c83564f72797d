package etcdnode

import (
	"context"
	"crypto"
	"crypto/tls"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/discovery"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/svid"
)

const (
	memberName = "redoubt"
	// peerURL stands in the stored membership and is never listened at: there is no other member. It must not change.
	peerURL = "https://127.0.0.1:2380"
	// dataDir holds what etcd stores, and completeFile in it says that the member has once been ready.
	dataDir      = "data"
	completeFile = "redoubt-complete"
	// A member of one waits for nobody, so it need not wait long before it makes itself leader.
	tick, election = 20, 200 // ms
	// renewCheck is how often the age of the server's certificate is looked at.
	renewCheck = time.Hour
)

// Config is what a Node needs. Dir must be set.
type Config struct {
	Dir string // pki/, data/ and a lock file are in it
	// ClientAddr is host:port of the client port; 127.0.0.1:0, which takes a free port, when empty. Fix it where other
	// processes or people connect.
	ClientAddr string

	Now    func() time.Time // for certificates; etcd itself has the machine's clock. time.Now when nil
	Logger *slog.Logger     // gets warnings and errors; silent when nil

	// Quota is how large the database may grow, in bytes; etcd's own 2 GiB when 0.
	Quota int64

	// UnsafeNoFsync loses acknowledged writes when the machine stops. Only tests may set it.
	UnsafeNoFsync bool
}

// Node is a running member.
type Node struct {
	pki  *PKI
	etcd *embed.Etcd
	lock *os.File
	log  *slog.Logger
	// closing hides what etcd logs while it is closed: each of its listeners complains.
	closing atomic.Bool
	files   Files
	key     crypto.Signer
	leaf    svid.Leaf
	failed  chan struct{}
	stop    chan struct{}
	done    sync.WaitGroup
	once    sync.Once
}

// Start runs a member until Close and returns when it answers, or when ctx ends.
func Start(ctx context.Context, cfg Config) (*Node, error) {
	if cfg.Dir == "" {
		return nil, fault.InvalidArgument("etcd needs a folder")
	}
	if cfg.ClientAddr == "" {
		cfg.ClientAddr = "127.0.0.1:0"
	}
	host, _, err := net.SplitHostPort(cfg.ClientAddr)
	if err != nil {
		return nil, fault.InvalidArgument("%q is no address for etcd: write host:port", cfg.ClientAddr)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fault.Internal(err, "etcd's folder could not be made")
	}
	n := &Node{log: cfg.Logger, failed: make(chan struct{}), stop: make(chan struct{}), leaf: memberLeaf(memberName, host)}
	if n.lock, err = lockDir(cfg.Dir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			n.unlock()
		}
	}()
	if n.pki, err = OpenPKI(filepath.Join(cfg.Dir, "pki"), cfg.Now); err != nil {
		return nil, err
	}
	if n.files, n.key, err = n.pki.writeLeaf(n.pki.dir, "member", n.leaf, leafLife); err != nil {
		return nil, err
	}
	if err = setAside(cfg.Dir); err != nil {
		return nil, err
	}
	conf, err := n.config(cfg)
	if err != nil {
		return nil, err
	}
	if err = n.run(ctx, conf); err != nil {
		return nil, err
	}
	n.done.Go(n.renew)
	n.done.Go(n.watch)
	return n, nil
}

// common is what every member has, whatever its cluster.
func (n *Node) common(log *slog.Logger, unsafeNoFsync bool) *embed.Config {
	c := embed.NewConfig()
	c.ClientTLSInfo.ClientCertAuth = true
	c.TlsMinVersion = "TLS1.3"
	c.EnableGRPCGateway = false
	c.AutoCompactionMode = embed.CompactorModePeriodic
	c.AutoCompactionRetention = "1h"
	c.UnsafeNoFsync = unsafeNoFsync
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(discovery.ZapLogger(slog.New(&quiet{Handler: log.Handler(), closing: &n.closing})))
	return c
}

func (n *Node) config(cfg Config) (*embed.Config, error) {
	c := n.common(cfg.Logger, cfg.UnsafeNoFsync)
	c.QuotaBackendBytes = cfg.Quota
	c.Name = memberName
	c.Dir = filepath.Join(cfg.Dir, dataDir)
	c.TickMs, c.ElectionMs = tick, election
	listen := url.URL{Scheme: "https", Host: cfg.ClientAddr}
	peer, err := url.Parse(peerURL)
	if err != nil {
		return nil, fault.Internal(err, "etcd's peer address is wrong")
	}
	c.ListenClientUrls = []url.URL{listen}
	c.AdvertiseClientUrls = []url.URL{listen}
	c.ListenPeerUrls = nil // a member of one has nobody to listen to
	c.AdvertisePeerUrls = []url.URL{*peer}
	c.InitialCluster = c.InitialClusterFromName(memberName)
	c.InitialClusterToken = memberName
	c.ClientTLSInfo.CertFile, c.ClientTLSInfo.KeyFile, c.ClientTLSInfo.TrustedCAFile = n.files.Cert, n.files.Key, n.files.CA
	c.PeerTLSInfo = c.ClientTLSInfo
	return c, nil
}

// run starts the member and waits until it answers.
func (n *Node) run(ctx context.Context, conf *embed.Config) error {
	e, err := embed.StartEtcd(conf)
	if err != nil {
		if errors.Is(err, unix.EADDRINUSE) {
			return fault.Wrap(err, codes.FailedPrecondition, faultv1.Reason_PRECONDITION_FAILED,
				"another process listens at %s: stop it, or give etcd another address", conf.ListenClientUrls[0].Host)
		}
		return fault.Internal(err, "etcd could not be started")
	}
	n.etcd = e
	select {
	case <-e.Server.ReadyNotify():
		if err := svid.WritePrivate(filepath.Join(conf.Dir, completeFile), nil); err != nil {
			n.closing.Store(true)
			e.Close()
			return err
		}
		return nil
	case err := <-e.Err():
		e.Close()
		return fault.Internal(err, "etcd has stopped while it started")
	case <-e.Server.StopNotify():
		e.Close()
		return fault.Internal(errors.New("stopped"), "etcd has stopped while it started")
	case <-ctx.Done():
		n.closing.Store(true)
		e.Server.HardStop()
		e.Close()
		return fault.Wrap(ctx.Err(), codes.Unavailable, faultv1.Reason_SERVICE_UNAVAILABLE, "etcd was not ready in time")
	}
}

// renew keeps the server's certificate young in a process that runs for months.
func (n *Node) renew() {
	made := n.pki.now()
	t := time.NewTicker(renewCheck)
	defer t.Stop()
	for {
		select {
		case <-n.stop:
			return
		case <-t.C:
			if now := n.pki.now(); now.Sub(made) >= leafLife/2 {
				if err := n.pki.certify(n.files, n.key, n.leaf, leafLife); err != nil {
					n.log.Error("etcd's certificate could not be renewed", "error", err)
					continue
				}
				made = now
			}
		}
	}
}

// watch tells when the member has stopped by itself.
func (n *Node) watch() {
	select {
	case <-n.stop:
		return
	case err := <-n.etcd.Err():
		n.log.Error("etcd has failed", "error", err)
	case <-n.etcd.Server.StopNotify():
		n.log.Error("etcd has stopped by itself")
	}
	close(n.failed)
}

// Failed is closed when the member has stopped without Close.
func (n *Node) Failed() <-chan struct{} { return n.failed }

// Endpoints is where clients connect: "https://127.0.0.1:41234".
func (n *Node) Endpoints() []string {
	out := make([]string, 0, len(n.etcd.Clients))
	for _, l := range n.etcd.Clients {
		host, port, err := net.SplitHostPort(l.Addr().String())
		if err != nil {
			continue
		}
		if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
			host = "127.0.0.1"
		}
		out = append(out, "https://"+net.JoinHostPort(host, port))
	}
	return out
}

// ClientTLS is for a client in this process; commonName says in etcd's records who it is.
func (n *Node) ClientTLS(commonName string) (*tls.Config, error) { return n.pki.ClientTLS(commonName) }

// PKI makes certificates for other clients.
func (n *Node) PKI() *PKI { return n.pki }

// Close stops the member. Clients lose their connections.
func (n *Node) Close() error {
	n.once.Do(func() {
		close(n.stop)
		n.done.Wait()
		n.closing.Store(true)
		n.etcd.Close()
		n.unlock()
	})
	return nil
}

// setAside makes room for a new start when the first one was cut off before the member was ready. etcd stores its
// membership in two steps, and one that was killed between them never elects a leader again; nobody has used it yet.
func setAside(dir string) error {
	data := filepath.Join(dir, dataDir)
	_, err := os.Stat(filepath.Join(data, completeFile))
	if err == nil {
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return fault.Internal(err, "etcd's folder could not be read")
	}
	if _, err := os.Stat(data); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	aside := filepath.Join(dir, dataDir+".unfinished")
	if err := os.RemoveAll(aside); err != nil {
		return fault.Internal(err, "an unfinished start of etcd could not be set aside")
	}
	if err := os.Rename(data, aside); err != nil {
		return fault.Internal(err, "an unfinished start of etcd could not be set aside")
	}
	return nil
}

// lockDir makes sure that no other process has the folder: etcd itself would wait for it without a word.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fault.Internal(err, "etcd's folder could not be locked")
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fault.FailedPrecondition("another process runs etcd in this folder: stop it first")
		}
		return nil, fault.Internal(err, "etcd's folder could not be locked")
	}
	return f, nil
}

func (n *Node) unlock() { _ = n.lock.Close() }

// quiet passes on what etcd logs, but for what it says in every healthy life.
type quiet struct {
	slog.Handler
	closing *atomic.Bool
}

var usual = []struct{ message, err string }{
	{"Running http and grpc server on single port", ""},              // what we want: the HTTP side needs the certificate too
	{"simple token is not cryptographically signed", ""},             // of etcd's own users, which are not used
	{"Failed to detect schema version", "missing term information"},  // looked for before the first write, and again later
	{"failed to update storage version", "missing term information"}, // the same
	{"still pending configuration changes to apply", ""},             // a member that starts again on a slow disk: it tries once more
}

func isUsual(r slog.Record) bool {
	for _, u := range usual {
		if !strings.Contains(r.Message, u.message) {
			continue
		}
		found := u.err == ""
		r.Attrs(func(a slog.Attr) bool {
			found = found || (a.Key == "error" && strings.Contains(a.Value.String(), u.err))
			return true
		})
		return found
	}
	return false
}

func (q *quiet) Handle(ctx context.Context, r slog.Record) error {
	if q.closing.Load() || isUsual(r) {
		return nil
	}
	return q.Handler.Handle(ctx, r)
}

func (q *quiet) WithAttrs(a []slog.Attr) slog.Handler {
	return &quiet{Handler: q.Handler.WithAttrs(a), closing: q.closing}
}

func (q *quiet) WithGroup(g string) slog.Handler {
	return &quiet{Handler: q.Handler.WithGroup(g), closing: q.closing}
}
