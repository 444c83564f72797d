package node

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/redoubt-ml/redoubt/internal/node/etcdnode"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/observe"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/svid"
	"github.com/redoubt-ml/redoubt/services/identity"
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
	unlock, err := lockFolder(data)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if _, err := os.Stat(filepath.Join(data, "identity", "db.sqlite")); err == nil {
		return nil, fault.FailedPrecondition("%s holds an installation already", data)
	}
	return bootstrap(ctx, up)
}

func bootstrap(ctx context.Context, cfg UpConfig) (*Bootstrapped, error) {
	ports, url, scoring, err := choosePorts(ctx, cfg.Listen)
	if err != nil {
		return nil, err
	}
	if cfg.ScoringURL == "" {
		cfg.ScoringURL = scoring
	}
	out := &Bootstrapped{URL: url, Etcd: ports["etcd"], Configs: make(map[string]string)}
	pki, err := etcdnode.OpenPKI(filepath.Join(cfg.Data, "etcd", "pki"), cfg.Options.Now)
	if err != nil {
		return nil, err
	}
	mesh := Mesh{TrustDomain: cfg.TrustDomain, PublicURL: url, Etcd: []string{"https://" + ports["etcd"]}, EnrolAddress: ports["identity-enrol"], LeafLife: cfg.LeafLife}
	in := &Installation{}
	ids, err := openIdentity(ctx, in.config(cfg, mesh, "identity"), cfg.Options)
	if err != nil {
		return nil, err
	}
	defer ids.Stop()
	admin, err := in.firstAdmin(ctx, cfg, ids.identity)
	if err != nil {
		return nil, err
	}
	out.Admin, out.FirstPassword = in.Admin, in.FirstPassword
	mesh.CAPin = ids.identity.Pin()
	out.CA = pemOf(ids.identity.Roots())
	for _, name := range Services {
		c := in.config(cfg, mesh, name)
		c.Service.Listen, c.Service.MeshListen = ports[name], ports["gateway-mesh"]
		if name == "inference" {
			c.Service.ScoringListen, c.Service.ReplicaListen = ports["inference-scoring"], ports["inference-replicas"]
		}
		if name == "workspace" {
			c.Service.Admin = admin
		}
		if err := etcdClient(pki, c.Mesh.EtcdTLS, name); err != nil {
			return nil, err
		}
		if name != "identity" {
			if err := joinFor(ctx, cfg.Data, ids.identity, name); err != nil {
				return nil, err
			}
		}
		if out.Configs[name], err = writeConfig(c); err != nil {
			return nil, err
		}
	}
	return out, passwordGiven(cfg.Data)
}

// joinFor writes a join token that is good for a week: the processes may be started later.
func joinFor(ctx context.Context, data string, ids *identity.Service, name string) error {
	token, err := ids.CreateServiceJoin(ctx, name, "a", 7*24*time.Hour)
	if err != nil {
		return err
	}
	return writeSecret(filepath.Join(data, name, "join.token"), token)
}

// openIdentity opens identity's state without serving: nobody can call it, and it calls nobody.
func openIdentity(ctx context.Context, cfg Config, opts Options) (*Node, error) {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if err := cfg.Check(); err != nil {
		return nil, err
	}
	n := newNode(ctx, cfg, opts)
	if err := os.MkdirAll(cfg.Service.Dir, 0o700); err != nil {
		n.Stop()
		return nil, err
	}
	st, err := n.openState(ctx, identity.Migrations())
	if err == nil {
		err = n.newIdentity(st)
	}
	if err != nil {
		n.Stop()
		return nil, err
	}
	return n, nil
}

// newNode makes a node that has a log and nothing else.
func newNode(ctx context.Context, cfg Config, opts Options) *Node {
	n := &Node{name: cfg.Service.Name, cfg: cfg, opts: opts, failed: make(chan error, 1), metrics: observe.NewMetrics(), health: newHealth()}
	n.ctx, n.cancel = context.WithCancel(context.WithoutCancel(ctx))
	log := observe.NewLogger(observe.LogConfig{Writer: opts.LogWriter, Level: cfg.Log.level(), Now: opts.Now})
	n.onStop(func() { _ = log.Close() })
	n.log = log.With("service", n.name, "instance", cfg.Service.Instance)
	return n
}

// choosePorts fixes every address. With port 0 free ones are taken now, and hopefully still free when the processes start.
func choosePorts(ctx context.Context, listen string) (ports map[string]string, public, scoring string, err error) {
	ls, err := openPorts(ctx, listen)
	if err != nil {
		return nil, "", "", err
	}
	out := make(map[string]string, len(ls))
	for name, l := range ls {
		out[name] = l.Addr().String()
		_ = l.Close()
	}
	if public, err = publicURL(listen, ls["gateway"].Addr()); err != nil {
		return nil, "", "", err
	}
	scoring, err = publicURL(listen, ls["inference-scoring"].Addr())
	return out, public, scoring, err
}

// writeConfig writes the file that `redoubt serve` reads.
func writeConfig(c Config) (string, error) {
	level := c.Log.Level
	if level == "" {
		level = "info"
	}
	service := map[string]any{"name": c.Service.Name, "instance": c.Service.Instance, "dir": c.Service.Dir, "listen": c.Service.Listen, "join_token_file": c.Service.JoinTokenFile}
	if c.Service.Name == "gateway" {
		service["mesh_listen"] = c.Service.MeshListen
	}
	if c.Service.Name == "inference" {
		service["scoring_listen"], service["replica_listen"], service["scoring_url"] = c.Service.ScoringListen, c.Service.ReplicaListen, c.Service.ScoringURL
		if c.Service.ScoringCertificateFile != "" {
			service["scoring_certificate_file"], service["scoring_key_file"] = c.Service.ScoringCertificateFile, c.Service.ScoringKeyFile
		}
	}
	if c.Service.Admin != "" {
		service["admin"] = c.Service.Admin
	}
	if len(c.Service.AgentCommand) > 0 && c.Service.Name == "compute" {
		service["agent_command"] = c.Service.AgentCommand
	}
	b, err := yaml.Marshal(map[string]any{
		"mesh": map[string]any{
			"trust_domain": c.Mesh.TrustDomain, "public_url": c.Mesh.PublicURL, "etcd": c.Mesh.Etcd, "etcd_tls": c.Mesh.EtcdTLS,
			"enrol_address": c.Mesh.EnrolAddress, "ca_pin": c.Mesh.CAPin, "leaf_life": c.Mesh.LeafLife.String(),
		},
		"service": service,
		"log":     map[string]any{"level": level},
	})
	if err != nil {
		return "", fmt.Errorf("the configuration of %s: %w", c.Service.Name, err)
	}
	path := filepath.Join(c.Service.Dir, "service.yaml")
	return path, svid.WritePrivate(path, b)
}
