package plan

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/redoubt-ml/redoubt/internal/node"
	"github.com/redoubt-ml/redoubt/pkg/config"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/services/identity"
)

// Plan names every process of an installation, and where it runs.
type Plan struct {
	// TrustDomain is the installation's name in certificates.
	TrustDomain string `koanf:"trust_domain" config:"visible"`
	// PublicURL is the gateway as clients and agents write it, ScoringURL the scoring listener: https://host:port.
	PublicURL  string `koanf:"public_url" config:"visible"`
	ScoringURL string `koanf:"scoring_url" config:"visible"`
	// MTLSURL is the listener of identity's instances for clients with certificates (RFC 8705), https://host:port; empty is none.
	MTLSURL string `koanf:"mtls_url" config:"visible"`
	// PublicHosts are further names and addresses at which these two are reached: the installation's certificate is valid for them, for
	// the hosts of both URLs, and for those of the gateway's and inference's instances.
	PublicHosts []string `koanf:"public_hosts" config:"visible"`
	// Admin is the name of the first administrator.
	Admin string `koanf:"admin" config:"visible"`
	// State is an instance's folder as its process sees it; empty is where bootstrap writes it.
	State string `koanf:"state" config:"visible"`
	// BasePort is the first port of the table, where an instance says nothing else.
	BasePort int `koanf:"base_port" config:"visible"`
	// LeafLife is how long X.509-SVIDs live, and ConnectionAge when a connection of the mesh is asked to go; 0 is 20 min.
	LeafLife      time.Duration `koanf:"leaf_life" config:"visible"`
	ConnectionAge time.Duration `koanf:"connection_age" config:"visible"`
	// RootPeriod is how long a root of the mesh signs before the clock has another one follow; 0 is for ever. RunLife is how long a run's token and
	// certificate live, 10 s to 10 min; 0 is 10 min.
	RootPeriod time.Duration `koanf:"root_period" config:"visible"`
	RunLife    time.Duration `koanf:"run_life" config:"visible"`
	// KeyPeriod is how long a key signs tokens, KeyAhead how long it is published before; 0 is 30 days and 1 h.
	KeyPeriod time.Duration `koanf:"key_period" config:"visible"`
	KeyAhead  time.Duration `koanf:"key_ahead" config:"visible"`
	// WorkloadAPI is the socket of another's SPIFFE Workload API as every process sees it, unix:///path; empty: identity issues the SVIDs. Nobody
	// gets a join token then.
	WorkloadAPI string `koanf:"workload_api" config:"visible"`
	// LogLevel is debug, info, warn or error.
	LogLevel string `koanf:"log_level" config:"visible"`
	// Etcd are the cluster's members: 1, 3 or 5.
	Etcd []Member `koanf:"etcd"`
	// Instances are the services' processes.
	Instances []Instance `koanf:"instances"`
	// Postgres is where services keep what they know; without it each has a SQLite database in its folder.
	Postgres *Postgres `koanf:"postgres"`
	// Blobs is the bucket for what services keep as files; without it each has a folder in its own, and no second instance.
	Blobs *Blobs `koanf:"blobs"`
	// LocalTargets is whether compute starts agents on its own machine.
	LocalTargets bool `koanf:"local_targets" config:"visible"`
	// CertificateFile and KeyFile are a certificate of one's own for the gateways, PEM, where each of them sees it; without it they show one of the mesh,
	// and the bundle endpoint has the profile https_spiffe in place of https_web.
	CertificateFile string `koanf:"certificate_file" config:"visible"`
	KeyFile         string `koanf:"key_file" config:"visible"`
	// TraceEndpoint takes OTLP traces over gRPC, host:port; empty exports none. TraceRatio is the share of calls that are traced.
	TraceEndpoint string  `koanf:"trace_endpoint" config:"visible"`
	TraceRatio    float64 `koanf:"trace_ratio" config:"visible"`
	// TraceCAFile holds the roots, as PEM, that the collector is believed by, where every process sees it; off loopback it is needed.
	TraceCAFile string `koanf:"trace_ca_file" config:"visible"`
}

// Member is one member of the etcd cluster.
type Member struct {
	Name string `koanf:"name" config:"visible"`
	// Host is the name or address at which others dial it.
	Host string `koanf:"host" config:"visible"`
	// Listen is the address to listen at: an IP. Empty is Host where that is one, else all.
	Listen string `koanf:"listen" config:"visible"`
	// ClientPort and PeerPort are 2379 and 2380 where they are 0.
	ClientPort int `koanf:"client_port" config:"visible"`
	PeerPort   int `koanf:"peer_port" config:"visible"`
}

// Instance is one process of a service.
type Instance struct {
	Service string `koanf:"service" config:"visible"`
	// Name tells the instances of a service apart.
	Name string `koanf:"name" config:"visible"`
	// Host is the name or address at which others dial it.
	Host string `koanf:"host" config:"visible"`
	// Listen is as a Member's.
	Listen string `koanf:"listen" config:"visible"`
	// BasePort is the plan's where it is 0.
	BasePort int `koanf:"base_port" config:"visible"`
}

// Postgres is a PostgreSQL server. Each service has a role and a schema of its own in the database.
type Postgres struct {
	// Host is a name, an address, or the folder of a Unix socket.
	Host string `koanf:"host" config:"visible"`
	Port int    `koanf:"port" config:"visible"`
	// Database is "redoubt" where it is empty.
	Database string `koanf:"database" config:"visible"`
	// Root is the file with the certificates that the server's is verified with, for Host's name. Only a server on this machine may be
	// without.
	Root string `koanf:"root" config:"visible"`
}

// Read reads a plan and finds what is wrong with it. Relative paths in it are meant from its folder.
func Read(path string) (*Plan, error) {
	p, err := config.Load(path, nil, Plan{TrustDomain: "redoubt.local", Admin: "admin", BasePort: 8443, LeafLife: time.Hour, LogLevel: "info", LocalTargets: true})
	if err != nil {
		return nil, fault.InvalidArgument("the plan cannot be carried out:\n%v", err)
	}
	if len(p.PublicHosts) == 0 {
		p.PublicHosts = nil // as it is where nothing is said
	}
	if pg := p.Postgres; pg != nil {
		if pg.Port == 0 {
			pg.Port = 5432
		}
		if pg.Database == "" {
			pg.Database = "redoubt"
		}
		if pg.Root != "" && !filepath.IsAbs(pg.Root) {
			if pg.Root, err = filepath.Abs(filepath.Join(filepath.Dir(path), pg.Root)); err != nil {
				return nil, err
			}
		}
	}
	if err := p.Blobs.relative(filepath.Dir(path)); err != nil {
		return nil, err
	}
	for i := range p.Etcd {
		if m := &p.Etcd[i]; m.ClientPort == 0 {
			m.ClientPort = 2379
		}
		if m := &p.Etcd[i]; m.PeerPort == 0 {
			m.PeerPort = 2380
		}
	}
	for i := range p.Instances {
		if in := &p.Instances[i]; in.BasePort == 0 {
			in.BasePort = p.BasePort
		}
	}
	return &p, p.check()
}

func bad(field, what string) error {
	return fault.InvalidArgument("the plan's %s %s", field, what).Field(field, what)
}

// lastOffset is how far the port table reaches above its first port.
const lastOffset = 12

func (p *Plan) check() error {
	if _, err := spiffeid.TrustDomainFromString(p.TrustDomain); err != nil {
		return bad("trust_domain", "is not one: "+err.Error())
	}
	for field, u := range map[string]string{"public_url": p.PublicURL, "scoring_url": p.ScoringURL} {
		if !isURL(u) {
			return bad(field, "is not of the form https://host:port: it is the address that clients write")
		}
	}
	if p.MTLSURL != "" && !isURL(p.MTLSURL) {
		return bad("mtls_url", "is not of the form https://host:port: it is the address that clients write")
	}
	for _, h := range p.PublicHosts {
		if err := checkHost("public_hosts", h, ""); err != nil {
			return err
		}
	}
	if p.State != "" && !filepath.IsAbs(p.State) {
		return bad("state", "is not an absolute path")
	}
	if err := resource.ValidIDField("admin", p.Admin); err != nil {
		return err
	}
	if p.LeafLife < time.Second {
		return bad("leaf_life", "is shorter than a second")
	}
	if err := p.checkRotation(); err != nil {
		return err
	}
	if !slices.Contains([]string{"debug", "info", "warn", "error"}, p.LogLevel) {
		return bad("log_level", "is not debug, info, warn or error")
	}
	if p.TraceRatio < 0 || p.TraceRatio > 1 {
		return bad("trace_ratio", "is not from 0 to 1")
	}
	if p.TraceEndpoint != "" && !hostPort(p.TraceEndpoint) {
		return bad("trace_endpoint", "is not host:port")
	}
	if host, _, err := net.SplitHostPort(p.TraceEndpoint); err == nil && p.TraceCAFile == "" {
		if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
			return bad("trace_ca_file", "is missing: traces go to another host by TLS alone")
		}
	}
	if p.TraceCAFile != "" && !filepath.IsAbs(p.TraceCAFile) {
		return bad("trace_ca_file", "is not an absolute path")
	}
	used := make(map[string]string)
	if err := p.checkEtcd(used); err != nil {
		return err
	}
	if err := p.checkInstances(used); err != nil {
		return err
	}
	if err := p.checkPostgres(); err != nil {
		return err
	}
	return p.checkBlobs()
}

// checkRotation looks at how long what is issued lives, as the processes and identity will at their start: before anything is written.
func (p *Plan) checkRotation() error {
	for _, d := range []struct {
		field       string
		is          time.Duration
		least, most time.Duration
	}{
		{"connection_age", p.ConnectionAge, time.Second, 24 * time.Hour}, {"run_life", p.RunLife, 10 * time.Second, 10 * time.Minute},
	} {
		if d.is != 0 && (d.is < d.least || d.is > d.most) {
			return bad(d.field, fmt.Sprintf("is not from %v to %v", d.least, d.most))
		}
	}
	if (p.CertificateFile == "") != (p.KeyFile == "") {
		return bad("certificate_file", "and key_file go together")
	}
	for field, path := range map[string]string{"certificate_file": p.CertificateFile, "key_file": p.KeyFile} {
		if path != "" && !filepath.IsAbs(path) {
			return bad(field, "is not an absolute path")
		}
	}
	if a := p.WorkloadAPI; a != "" && !node.ValidWorkloadAPI(a) {
		return bad("workload_api", "is not of the form unix:///path/of/a/socket")
	}
	lives := identity.Config{
		SVIDLife: p.LeafLife, RunTokenLife: p.RunLife, RootPeriod: p.RootPeriod, KeyPeriod: p.KeyPeriod, KeyAhead: p.KeyAhead,
		ConnectionLife: rpc.Limits{ConnectionAge: p.ConnectionAge}.ConnectionLife(),
	}
	if err := lives.CheckLives(); err != nil {
		return fault.InvalidArgument("the plan cannot be carried out: %s", fault.Describe(err).Message())
	}
	return nil
}

// take notes that a process has a port of a host, and names the one that had it before.
func take(used map[string]string, field, host string, port int) error {
	at := net.JoinHostPort(host, fmt.Sprint(port))
	if other, taken := used[at]; taken {
		return bad(field, fmt.Sprintf("has %s, which %s has: give one of them other ports", at, other))
	}
	used[at] = field
	return nil
}

func (p *Plan) checkEtcd(used map[string]string) error {
	if n := len(p.Etcd); n != 1 && n != 3 && n != 5 {
		return bad("etcd", fmt.Sprintf("has %d members: 1, 3 or 5 are a cluster that knows its majority", n))
	}
	folders := make(map[string]bool)
	for i, m := range p.Etcd {
		at := fmt.Sprintf("etcd[%d]", i)
		if err := resource.ValidIDField(at+".name", m.Name); err != nil {
			return err
		}
		if folders[m.folder()] {
			return bad(at+".name", fmt.Sprintf("is that of another member: %s", m.Name))
		}
		folders[m.folder()] = true
		if err := checkHost(at, m.Host, m.Listen); err != nil {
			return err
		}
		for name, port := range map[string]int{".client_port": m.ClientPort, ".peer_port": m.PeerPort} {
			if port < 1 || port > 65535 {
				return bad(at+name, "is not from 1 to 65535")
			}
			if err := take(used, at+name, m.Host, port); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *Plan) checkInstances(used map[string]string) error {
	count := make(map[string]int)
	names := make(map[string]bool)
	for i, in := range p.Instances {
		at := fmt.Sprintf("instances[%d]", i)
		if !slices.Contains(node.Services, in.Service) {
			return bad(at+".service", fmt.Sprintf("is not one of %v", node.Services))
		}
		if err := resource.ValidIDField(at+".name", in.Name); err != nil {
			return err
		}
		if names[in.Folder()] {
			return bad(at+".name", fmt.Sprintf("is that of another instance: %s", in.Folder()))
		}
		names[in.Folder()] = true
		count[in.Service]++
		if err := checkHost(at, in.Host, in.Listen); err != nil {
			return err
		}
		if in.BasePort < 1 || in.BasePort > 65535-lastOffset {
			return bad(at+".base_port", fmt.Sprintf("is not from 1 to %d", 65535-lastOffset))
		}
		for _, listener := range p.listeners(in.Service) {
			if err := take(used, at, in.Host, in.port(listener)); err != nil {
				return err
			}
		}
		if p.Postgres == nil && in.Service != rpc.Gateway && count[in.Service] > 1 {
			return bad(at, fmt.Sprintf("is a second instance of %s, whose database is SQLite and has one process: set postgres", in.Service))
		}
	}
	for _, s := range node.Services {
		if count[s] == 0 {
			return bad("instances", "have none of "+s)
		}
	}
	return nil
}

var hostName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$`)

func checkHost(at, host, listen string) error {
	if ip, err := netip.ParseAddr(host); err == nil {
		if ip.IsUnspecified() || ip.IsMulticast() || ip.Zone() != "" {
			return bad(at+".host", "is no address that others can dial")
		}
	} else if !hostName.MatchString(host) {
		return bad(at+".host", "is neither a host's name nor an address")
	}
	if listen != "" {
		if ip, err := netip.ParseAddr(listen); err != nil || ip.Zone() != "" {
			return bad(at+".listen", "is not an IP address")
		}
	}
	return nil
}

var databaseName = regexp.MustCompile(`^[a-z][a-z0-9_]{0,39}$`)

func (p *Plan) checkPostgres() error {
	pg := p.Postgres
	if pg == nil {
		return nil
	}
	if pg.Port < 1 || pg.Port > 65535 {
		return bad("postgres.port", "is not from 1 to 65535")
	}
	if !databaseName.MatchString(pg.Database) {
		return bad("postgres.database", "is not lower-case letters, digits and underscores")
	}
	socket := strings.HasPrefix(pg.Host, "/")
	if !socket {
		if err := checkHost("postgres", pg.Host, ""); err != nil {
			return err
		}
	}
	ip, err := netip.ParseAddr(pg.Host)
	if here := socket || err == nil && ip.IsLoopback(); pg.Root == "" && !here {
		return bad("postgres.root", "is missing: the server's certificate is verified with it. Only a server on this machine may be without")
	}
	return nil
}

func isURL(s string) bool {
	u, err := url.Parse(s)
	return err == nil && u.Scheme == "https" && hostPort(u.Host) && u.Path == "" && u.RawQuery == "" && u.Fragment == "" && u.User == nil
}

func hostPort(s string) bool {
	host, port, err := net.SplitHostPort(s)
	return err == nil && host != "" && port != "" && port != "0"
}

// added compares with the plan that was carried out: everything in it that is written into folders stays as it is, and instances are
// added. It gives what was made.
func (p *Plan) added(before *Plan) (made map[string]bool, err error) {
	made = make(map[string]bool)
	if before == nil {
		return made, nil
	}
	now, old := reflect.ValueOf(*p), reflect.ValueOf(*before)
	for i := range now.NumField() {
		name := now.Type().Field(i).Tag.Get("koanf")
		if name != "instances" && !reflect.DeepEqual(now.Field(i).Interface(), old.Field(i).Interface()) {
			return nil, bad(name, "is not what the folders were made with, and bootstrap changes none: change it in their service.yaml, and in the plan.yaml beside them")
		}
	}
	was := make(map[string]Instance)
	for _, in := range before.Instances {
		made[in.Folder()] = true
		was[in.Folder()] = in
	}
	for i, in := range p.Instances {
		if old, known := was[in.Folder()]; known && old != in {
			return nil, bad(fmt.Sprintf("instances[%d]", i), "is not as it was made: change the service.yaml in "+in.Folder()+", and the plan.yaml beside it")
		}
	}
	for _, m := range p.Etcd {
		made[m.folder()] = true
	}
	return made, nil
}
