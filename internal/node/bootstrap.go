package node

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"github.com/redoubt-ml/redoubt/internal/node/etcdnode"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/observe"
	"github.com/redoubt-ml/redoubt/pkg/redact"
)

// BootstrapConfig says what an installation of separate processes looks like. All of them run on this machine; addresses are
// loopback's.
type BootstrapConfig struct {
	Data, Listen, TrustDomain, Admin string
	LeafLife                         time.Duration
	AgentCommand                     []string
	// ScoringURL, ScoringCertificateFile and ScoringKeyFile are as in UpConfig.
	ScoringURL, ScoringCertificateFile, ScoringKeyFile string
	Log                                                Log
	Options                                            Options
}

// Bootstrapped is what Bootstrap has made.
type Bootstrapped struct {
	// URL is the public URL, CA the roots to believe at it, as PEM.
	URL string
	CA  []byte
	// Etcd is the client address for `redoubt etcd`.
	Etcd string
	// Configs are the files for `redoubt serve`, by service.
	Configs map[string]string
	// Admin and FirstPassword are the first administrator's.
	Admin         string
	FirstPassword redact.Secret
}

// Bootstrap makes a new installation for separate processes: etcd's root, identity's keys and first administrator, and for every
// service its folder with configuration, join token and etcd certificate. A folder that has one already is refused.
func Bootstrap(ctx context.Context, cfg BootstrapConfig) (*Bootstrapped, error) {
	up := UpConfig{Data: cfg.Data, Listen: cfg.Listen, TrustDomain: cfg.TrustDomain, Admin: cfg.Admin, LeafLife: cfg.LeafLife, AgentCommand: cfg.AgentCommand, Log: cfg.Log, Options: cfg.Options,
		ScoringURL: cfg.ScoringURL, ScoringCertificateFile: cfg.ScoringCertificateFile, ScoringKeyFile: cfg.ScoringKeyFile}
	if up.TrustDomain == "" {
		up.TrustDomain = "redoubt.local"
	}
	if up.Admin == "" {
		up.Admin = "admin"
	}
	if up.LeafLife == 0 {
		up.LeafLife = time.Hour
	}
	data, err := filepath.Abs(cfg.Data)
	if err != nil {
		return nil, err
	}
	up.Data = data
	if err := os.MkdirAll(data, 0o700); err != nil {
		return nil, fault.FailedPrecondition("the folder %s cannot be made: %v", data, reason(err))
	}
	unlock, err := LockFolder(data)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := refuseHalfRestored(data); err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(data, "identity", "db.sqlite")); err == nil && !wasRestored(data) {
		return nil, fault.FailedPrecondition("%s holds an installation already", data)
	}
	return bootstrap(ctx, up)
}

func bootstrap(ctx context.Context, cfg UpConfig) (*Bootstrapped, error) {
	ports, urls, err := choosePorts(ctx, cfg.Listen)
	if err != nil {
		return nil, err
	}
	if cfg.ScoringURL == "" {
		cfg.ScoringURL = urls["inference-scoring"]
	}
	url := urls["gateway"]
	out := &Bootstrapped{URL: url, Etcd: ports["etcd"], Configs: make(map[string]string)}
	pki, err := etcdnode.OpenPKI(filepath.Join(cfg.Data, "etcd", "pki"), cfg.Options.Now)
	if err != nil {
		return nil, err
	}
	mesh := Mesh{TrustDomain: cfg.TrustDomain, PublicURL: url, Etcd: []string{"https://" + ports["etcd"]}, EnrolAddress: ports["identity-enrol"], LeafLife: cfg.LeafLife}
	in := &Installation{}
	if cfg.WorkloadAPI == "" {
		in.MTLSURL = urls[portMTLS]
	}
	ids, err := Found(ctx, in.config(cfg, mesh, "identity"), cfg.Options)
	if err != nil {
		return nil, err
	}
	defer ids.Close()
	admin, err := ids.FirstAdmin(ctx, cfg.Data, cfg.Admin)
	if err != nil {
		return nil, err
	}
	out.Admin, out.FirstPassword = admin.Name, admin.Password
	mesh.CAPin, out.CA = ids.Pin(), ids.CA()
	for _, name := range Services {
		c := in.config(cfg, mesh, name)
		c.Service.Listen, c.Service.MeshListen = ports[name], ports["gateway-mesh"]
		if c.Service.MTLSURL != "" {
			c.Service.MTLSListen = ports[portMTLS]
		}
		if name == "inference" {
			c.Service.ScoringListen, c.Service.ReplicaListen = ports["inference-scoring"], ports["inference-replicas"]
		}
		if name == "workspace" {
			c.Service.Admin = admin.UID
		}
		if err := etcdClient(pki, c.Mesh.EtcdTLS, name); err != nil {
			return nil, err
		}
		if name != "identity" {
			if err := ids.Join(ctx, name, "a", c.Service.JoinTokenFile); err != nil {
				return nil, err
			}
		}
		out.Configs[name] = filepath.Join(c.Service.Dir, "service.yaml")
		if err := WriteConfig(out.Configs[name], c); err != nil {
			return nil, err
		}
	}
	return out, PasswordGiven(cfg.Data)
}

// newNode makes a node that has a log and nothing else.
func newNode(ctx context.Context, cfg Config, opts Options) *Node {
	n := &Node{name: cfg.Service.Name, cfg: cfg, opts: opts, failed: make(chan error, 1), metrics: observe.NewMetrics(), health: newHealth()}
	n.ctx, n.cancel = context.WithCancel(context.WithoutCancel(ctx))
	log := observe.NewLogger(observe.LogConfig{Writer: opts.LogWriter, Level: cfg.Log.level(), JSON: cfg.Log.Format == "json", Now: opts.Now})
	n.onStop(func() { _ = log.Close() })
	n.log = log.With("service", n.name, "instance", cfg.Service.Instance)
	return n
}

// choosePorts fixes every address. With port 0 free ones are taken now, and hopefully still free when the processes start.
func choosePorts(ctx context.Context, listen string) (ports, urls map[string]string, err error) {
	ls, err := openPorts(ctx, listen)
	if err != nil {
		return nil, nil, err
	}
	ports, urls = make(map[string]string, len(ls)), make(map[string]string)
	for name, l := range ls {
		ports[name] = l.Addr().String()
		_ = l.Close()
	}
	for _, name := range append([]string{portMTLS}, publicPorts...) {
		if urls[name], err = publicURL(listen, ls[name].Addr()); err != nil {
			return nil, nil, err
		}
	}
	return ports, urls, nil
}
