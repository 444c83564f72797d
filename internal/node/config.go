package node

import (
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/fence"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
)

// Services are the names of all services, in the order in which `up` starts them.
var Services = []string{"identity", "workspace", "keyvault", "telemetry", "compute", "inference", "gateway"}

// Mesh is what all processes of an installation agree on.
type Mesh struct {
	// TrustDomain of the SPIFFE IDs, and the installation's name in errors.
	TrustDomain string `koanf:"trust_domain" config:"visible"`
	// PublicURL is the gateway's address as clients write it: https://host:port. It is the issuer of tokens.
	PublicURL string `koanf:"public_url" config:"visible"`
	// Etcd are the client endpoints: https://host:port.
	Etcd []string `koanf:"etcd" config:"visible"`
	// EtcdTLS is the folder with root.crt, client.crt and client.key for etcd.
	EtcdTLS string `koanf:"etcd_tls" config:"visible"`
	// EnrolAddresses are host:port of the enrolment listeners of identity's instances, tried in turn. EnrolAddress is one more, before
	// them: configurations of one machine have it alone, and identity listens there where Service.EnrolListen says nothing else.
	EnrolAddresses []string `koanf:"enrol_addresses" config:"visible"`
	EnrolAddress   string   `koanf:"enrol_address" config:"visible"`
	// CAPin is the hash of the CA's root that enrolment believes.
	CAPin string `koanf:"ca_pin" config:"visible"`
	// LeafLife is how long an X.509-SVID lives; renewed at half of it.
	LeafLife time.Duration `koanf:"leaf_life" config:"visible"`
	// ConnectionAge is when a connection between services, or of a client with the gateway, is asked to go; calls on it then have half of that
	// to end. All processes have the same. 0 is 20 min. A root is not revoked before what hung on it has gone.
	ConnectionAge time.Duration `koanf:"connection_age" config:"visible"`
	// TraceEndpoint takes OTLP traces over gRPC, host:port; empty exports none. TraceCAFile holds the roots, as PEM, that it is believed by; it
	// may be empty on loopback alone, and traces go there in clear then.
	TraceEndpoint string `koanf:"trace_endpoint" config:"visible"`
	TraceCAFile   string `koanf:"trace_ca_file" config:"visible"`
	// TraceRatio is the share of calls that are traced, 0 to 1.
	TraceRatio float64 `koanf:"trace_ratio" config:"visible"`
}

// Service is the configuration of one service in a process.
type Service struct {
	// Name is one of Services.
	Name string `koanf:"name" config:"visible"`
	// Instance tells replicas apart.
	Instance string `koanf:"instance" config:"visible"`
	// Dir is the state folder: db.sqlite, seal.key, svid/, blob/.
	Dir string `koanf:"dir" config:"visible"`
	// Listen is host:port of the mesh port. For the gateway it is the public port.
	Listen string `koanf:"listen" config:"visible"`
	// Advertise is the host:port that others are told to dial, where it is not what Listen says. For the gateway it is that of MeshListen.
	Advertise string `koanf:"advertise" config:"visible"`
	// EnrolListen is host:port of the enrolment listener; identity only. Empty is Mesh.EnrolAddress.
	EnrolListen string `koanf:"enrol_listen" config:"visible"`
	// MTLSListen is host:port of the listener at which service principals prove themselves by a certificate (RFC 8705), MTLSURL its address as clients
	// write it, https://host:port; both or neither, identity only. MTLSCertificateFile and MTLSKeyFile are what it shows in place of the mesh's
	// certificate, as PEM, read again when they change; both or neither. Where SVIDs come from another's Workload API they are needed.
	MTLSListen          string `koanf:"mtls_listen" config:"visible"`
	MTLSURL             string `koanf:"mtls_url" config:"visible"`
	MTLSCertificateFile string `koanf:"mtls_certificate_file" config:"visible"`
	MTLSKeyFile         string `koanf:"mtls_key_file" config:"visible"`
	// PublicHosts are names and addresses at which clients reach the gateway and the scoring listener, beside that of Mesh.PublicURL: the
	// installation's certificate is valid for them; identity only.
	PublicHosts []string `koanf:"public_hosts" config:"visible"`
	// Mesh is host:port of the gateway's own port inside the mesh: health for operators.
	MeshListen string `koanf:"mesh_listen" config:"visible"`
	// Metrics is host:port for Prometheus; empty serves none. MetricsClientCAFile holds the roots, as PEM, of the certificates that scrapers show: with it
	// the port speaks TLS 1.3, with the service's own certificate. It may be empty on loopback alone.
	Metrics             string `koanf:"metrics" config:"visible"`
	MetricsClientCAFile string `koanf:"metrics_client_ca_file" config:"visible"`
	// Drain is how long a process that is stopped still takes calls after it has left etcd, so that clients hear of it before; where
	// there is another instance of the service. 0 is 1 s. Grace is how long calls under way may then take. 0 is 10 s.
	Drain time.Duration `koanf:"drain" config:"visible"`
	Grace time.Duration `koanf:"grace" config:"visible"`
	// WorkloadAPI is the socket of another's SPIFFE Workload API, unix:///path, that the service takes its SVID from in place of enrolling: a SPIRE
	// agent's. All services of a mesh have it, or none. `redoubt serve` takes SPIFFE_ENDPOINT_SOCKET where it is empty.
	WorkloadAPI string `koanf:"workload_api" config:"visible"`
	// JoinTokenFile holds the single-use token for the first enrolment.
	JoinTokenFile string `koanf:"join_token_file" config:"visible"`
	// KeyPeriod is how long a key signs tokens, KeyAhead how long it is published before, TokenLife how long a token of a session or a program
	// lives; identity only. 0 is 30 days, 1 h, 1 h.
	KeyPeriod time.Duration `koanf:"key_period" config:"visible"`
	KeyAhead  time.Duration `koanf:"key_ahead" config:"visible"`
	TokenLife time.Duration `koanf:"token_life" config:"visible"`
	// RootPeriod is how long a root of the mesh signs before another one follows by the clock; 0 is for ever. RunLife is how long a run's token and
	// certificate live, 10 s to 10 min; 0 is 10 min. Identity only.
	RootPeriod time.Duration `koanf:"root_period" config:"visible"`
	RunLife    time.Duration `koanf:"run_life" config:"visible"`
	// PasswordsInProcess has password hashes computed by identity itself and not by workers, processes of their own: for where it may start none.
	// Many sign-ins at once then slow every other call; identity only.
	PasswordsInProcess bool `koanf:"passwords_in_process" config:"visible"`
	// Consumers lets foreign issuers of the class consumer be entered, and their people in; identity only. Off, there are guests alone.
	Consumers bool `koanf:"consumers" config:"visible"`
	// SealFile is the service's seal; empty is seal.key in Dir.
	SealFile string `koanf:"seal_file" config:"visible"`
	// PostgresFile holds a PostgreSQL DSN; empty uses SQLite in Dir.
	PostgresFile string `koanf:"postgres_file" config:"visible"`
	// Fence is how commits of a process that stands still are kept from landing late, on PostgreSQL: sqlfence by a row that each transaction locks
	// (docs/adr/0043), sql by the clock alone. Empty is sqlfence where the database has it for the service's role, else sql.
	Fence string `koanf:"fence" config:"visible"`
	// BlobURL is the bucket for the service's blobs: s3://bucket?endpoint=https://host:port&region=…&prefix=…; empty uses blob/ in Dir; workspace,
	// compute and inference only. BlobCredentialsFile holds its access_key_id and secret_access_key as YAML, BlobRootFile the roots that are
	// believed at the endpoint, as PEM; without it the system's are.
	BlobURL             string `koanf:"blob_url" config:"visible"`
	BlobCredentialsFile string `koanf:"blob_credentials_file" config:"visible"`
	BlobRootFile        string `koanf:"blob_root_file" config:"visible"`
	// Admin is the uid of the first administrator; workspace only. He gets his role at the first start.
	Admin string `koanf:"admin" config:"visible"`
	// RequestLogDays is for how many days requests to endpoints are kept; telemetry only. 0 is 30.
	RequestLogDays int `koanf:"request_log_days" config:"visible"`
	// LocalTargets is whether compute starts agents on its own machine; compute only. Without it there are self-hosted targets alone.
	LocalTargets bool `koanf:"local_targets" config:"visible"`
	// AgentCommand starts the agent of a local target; compute only. Empty is this binary with "agent".
	AgentCommand []string `koanf:"agent_command" config:"visible"`
	// CertificateFile and KeyFile are what the public port shows in place of the mesh's certificate, as PEM, read again when they change;
	// gateway only, both or neither.
	CertificateFile string `koanf:"certificate_file" config:"visible"`
	KeyFile         string `koanf:"key_file" config:"visible"`
	// PublicCAFile holds the roots, as PEM, that agents believe at the gateway besides the mesh's; compute only.
	PublicCAFile string `koanf:"public_ca_file" config:"visible"`
	// ProxyProtocolFrom are the networks of load balancers whose connections begin with a header of the PROXY protocol; gateway, and inference
	// for its scoring listener.
	ProxyProtocolFrom []string `koanf:"proxy_protocol_from" config:"visible"`
	// ScoringListen is host:port at which endpoints are scored, ReplicaListen the one that replicas dial; inference only.
	ScoringListen string `koanf:"scoring_listen" config:"visible"`
	ReplicaListen string `koanf:"replica_listen" config:"visible"`
	// ReplicaAdvertise is the host:port that replicas are told to dial, where it is not what ReplicaListen says; inference only.
	ReplicaAdvertise string `koanf:"replica_advertise" config:"visible"`
	// ScoringURL is the address of ScoringListen as clients write it: https://host:port; inference only.
	ScoringURL string `koanf:"scoring_url" config:"visible"`
	// ScoringCertificateFile and ScoringKeyFile are what the scoring listener shows in place of the mesh's certificate, as PEM, read again
	// when they change; inference only, both or neither.
	ScoringCertificateFile string `koanf:"scoring_certificate_file" config:"visible"`
	ScoringKeyFile         string `koanf:"scoring_key_file" config:"visible"`
}

// Config of one process that runs one service.
type Config struct {
	Mesh    Mesh    `koanf:"mesh"`
	Service Service `koanf:"service"`
	Edge    Edge    `koanf:"edge"`
	Log     Log     `koanf:"log"`
}

// Log says what is logged.
type Log struct {
	// Level is debug, info, warn or error.
	Level string `koanf:"level" config:"visible"`
	// Format is "text", key=value, or "json", an object a line. Default text.
	Format string `koanf:"format" config:"visible"`
}

// Defaults is what holds where a file says nothing.
func Defaults() Config { return Config{Service: Service{LocalTargets: true}} }

// Enrolment are the addresses at which identity enrols, in the order in which they are tried.
func (m *Mesh) Enrolment() []string {
	if m.EnrolAddress == "" {
		return m.EnrolAddresses
	}
	return append([]string{m.EnrolAddress}, slices.DeleteFunc(slices.Clone(m.EnrolAddresses), func(a string) bool { return a == m.EnrolAddress })...)
}

// enrolListen is where identity's enrolment listener is.
func (c *Config) enrolListen() string {
	if c.Service.EnrolListen != "" {
		return c.Service.EnrolListen
	}
	return c.Mesh.EnrolAddress
}

// Check finds what is wrong before anything is started.
func (c *Config) Check() error {
	bad := func(field, what string) error {
		return fault.InvalidArgument("the configuration's %s %s", field, what).Field(field, what)
	}
	if !slices.Contains(Services, c.Service.Name) {
		return bad("service.name", fmt.Sprintf("is not one of %v", Services))
	}
	if c.Mesh.TrustDomain == "" {
		return bad("mesh.trust_domain", "is missing")
	}
	if !isAddress(c.Mesh.PublicURL) {
		return bad("mesh.public_url", "is not of the form https://host:port")
	}
	if !filepath.IsAbs(c.Service.Dir) {
		return bad("service.dir", "is not an absolute path")
	}
	if err := c.checkAddresses(bad); err != nil {
		return err
	}
	if f := c.Service.SealFile; f != "" && !filepath.IsAbs(f) {
		return bad("service.seal_file", "is not an absolute path")
	}
	if f := c.Service.Fence; f != "" && (c.Service.PostgresFile == "" || f != string(fence.SQL) && f != string(fence.SQLFence)) {
		return bad("service.fence", "is neither sql nor sqlfence, or stands without service.postgres_file")
	}
	if len(c.Mesh.Etcd) == 0 {
		return bad("mesh.etcd", "names no endpoint")
	}
	if c.Service.Name == "inference" {
		if err := c.Service.checkScoring(bad); err != nil {
			return err
		}
	}
	if err := c.Service.checkBlobs(bad); err != nil {
		return err
	}
	if err := c.Service.checkMTLS(bad); err != nil {
		return err
	}
	if err := c.Service.checkPublic(bad); err != nil {
		return err
	}
	if err := c.Edge.check(bad); err != nil {
		return err
	}
	if err := c.checkObserving(bad); err != nil {
		return err
	}
	if d := c.Service.RequestLogDays; d < 0 || d > 3650 {
		return bad("service.request_log_days", "is not from 0 to 3650")
	}
	if c.Service.Drain == 0 {
		c.Service.Drain = time.Second
	}
	if d := c.Service.Drain; d < 0 || d > time.Minute {
		return bad("service.drain", "is not from 0 to a minute")
	}
	if c.Service.Grace == 0 {
		c.Service.Grace = 10 * time.Second
	}
	if d := c.Service.Grace; d < 0 || d > 10*time.Minute {
		return bad("service.grace", "is not from 0 to ten minutes")
	}
	if c.Service.Instance == "" {
		c.Service.Instance = "a"
	}
	if c.Mesh.LeafLife == 0 {
		c.Mesh.LeafLife = time.Hour
	}
	if c.Mesh.LeafLife < time.Second {
		return bad("mesh.leaf_life", "is shorter than a second")
	}
	return c.checkRotation(bad)
}

// ValidWorkloadAPI reports whether something is the address of a socket: unix:///path, of one spelling.
func ValidWorkloadAPI(a string) bool {
	path, ok := strings.CutPrefix(a, "unix://")
	return ok && filepath.IsAbs(path) && filepath.Clean(path) == path
}

// checkRotation looks at how long connections, run tokens and roots last. Whether a rotation fits into the period, identity says.
func (c *Config) checkRotation(bad func(field, what string) error) error {
	if d := c.Mesh.ConnectionAge; d != 0 && (d < time.Second || d > 24*time.Hour) {
		return bad("mesh.connection_age", "is not from a second to a day")
	}
	if d := c.Service.RunLife; d != 0 && (d < 10*time.Second || d > 10*time.Minute) {
		return bad("service.run_life", "is not from 10 s to 10 min")
	}
	if c.Service.RootPeriod < 0 {
		return bad("service.root_period", "is negative")
	}
	if c.Service.Name != "identity" && (c.Service.RunLife != 0 || c.Service.RootPeriod != 0) {
		return bad("service.root_period", "and run_life are for identity")
	}
	return nil
}

// checkObserving looks at where metrics and traces go: in clear on loopback alone.
func (c *Config) checkObserving(bad func(field, what string) error) error {
	for _, x := range []struct{ field, addr, with, ca string }{
		{"service.metrics", c.Service.Metrics, "service.metrics_client_ca_file", c.Service.MetricsClientCAFile},
		{"mesh.trace_endpoint", c.Mesh.TraceEndpoint, "mesh.trace_ca_file", c.Mesh.TraceCAFile},
	} {
		if x.addr == "" {
			continue
		}
		host, _, err := net.SplitHostPort(x.addr)
		if err != nil {
			return bad(x.field, "is not host:port")
		}
		if x.ca != "" && !filepath.IsAbs(x.ca) {
			return bad(x.with, "is not an absolute path")
		}
		if ip := net.ParseIP(host); x.ca == "" && (ip == nil || !ip.IsLoopback()) {
			return bad(x.field, "is not an address on loopback: set "+x.with+" too, so that TLS guards it")
		}
	}
	if r := c.Mesh.TraceRatio; !(r >= 0 && r <= 1) {
		return bad("mesh.trace_ratio", "is not from 0 to 1")
	}
	switch c.Log.Format {
	case "", "text", "json":
	default:
		return bad("log.format", "is neither text nor json")
	}
	return nil
}

// checkAddresses looks at where the process listens, and at where it is found.
func (c *Config) checkAddresses(bad func(field, what string) error) error {
	if _, _, err := net.SplitHostPort(c.Service.Listen); err != nil {
		return bad("service.listen", "is not host:port")
	}
	if a := c.Service.WorkloadAPI; a != "" {
		if !ValidWorkloadAPI(a) {
			return bad("service.workload_api", "is not of the form unix:///path/of/a/socket")
		}
	} else if len(c.Mesh.Enrolment()) == 0 {
		return bad("mesh.enrol_addresses", "names no instance of identity")
	}
	for _, a := range c.Mesh.Enrolment() {
		if !reachable(a) {
			return bad("mesh.enrol_addresses", fmt.Sprintf("has %q, which is not host:port that can be dialled", a))
		}
	}
	if c.Service.Name == "identity" && c.Service.WorkloadAPI == "" {
		if _, _, err := net.SplitHostPort(c.enrolListen()); err != nil {
			return bad("service.enrol_listen", "is not host:port: it says where services enrol")
		}
	}
	listen := c.Service.Listen
	if c.Service.Name == rpc.Gateway {
		if listen = c.Service.MeshListen; listen != "" {
			if _, _, err := net.SplitHostPort(listen); err != nil {
				return bad("service.mesh_listen", "is not host:port")
			}
		}
	}
	switch a := c.Service.Advertise; {
	case a != "" && !reachable(a):
		return bad("service.advertise", "is not host:port that can be dialled")
	case a == "" && everywhere(listen):
		return bad("service.advertise", "is missing: who listens on all addresses says at which one he is found")
	}
	if a := c.Service.ReplicaAdvertise; a != "" && !reachable(a) {
		return bad("service.replica_advertise", "is not host:port that can be dialled")
	}
	return nil
}

// HealthAddress is where this machine asks the process whether it serves: its port in the mesh.
func (c *Config) HealthAddress() string {
	addr := c.Service.Listen
	if c.Service.Name == rpc.Gateway && c.Service.MeshListen != "" {
		addr = c.Service.MeshListen
	}
	if _, port, err := net.SplitHostPort(addr); err == nil && everywhere(addr) {
		addr = net.JoinHostPort("127.0.0.1", port)
	}
	return addr
}

// reachable reports whether an address is one that can be dialled: with a host and a port of its own.
func reachable(addr string) bool {
	host, port, err := net.SplitHostPort(addr)
	n, perr := strconv.ParseUint(port, 10, 16)
	return err == nil && perr == nil && n > 0 && host != "" && !everywhere(addr)
}

// everywhere reports whether an address stands for all of a machine's.
func everywhere(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	ip := net.ParseIP(host)
	return err == nil && (host == "" || ip != nil && ip.IsUnspecified())
}

// checkScoring looks at what only inference has.
func (s *Service) checkScoring(bad func(field, what string) error) error {
	if _, _, err := net.SplitHostPort(s.ScoringListen); err != nil {
		return bad("service.scoring_listen", "is not host:port: it says where endpoints are scored")
	}
	if _, _, err := net.SplitHostPort(s.ReplicaListen); err != nil {
		return bad("service.replica_listen", "is not host:port: it says where the replicas of deployments connect")
	}
	if !isAddress(s.ScoringURL) {
		return bad("service.scoring_url", "is not of the form https://host:port: it is service.scoring_listen as clients write it")
	}
	if (s.ScoringCertificateFile == "") != (s.ScoringKeyFile == "") {
		return bad("service.scoring_key_file", "and scoring_certificate_file are set both, or neither")
	}
	for field, path := range map[string]string{"service.scoring_certificate_file": s.ScoringCertificateFile, "service.scoring_key_file": s.ScoringKeyFile} {
		if path != "" && !filepath.IsAbs(path) {
			return bad(field, "is not an absolute path")
		}
	}
	return nil
}

// isAddress reports whether s is of the form https://host:port.
func isAddress(s string) bool {
	u, err := url.Parse(s)
	return err == nil && u.Scheme == "https" && u.Host != "" && u.Path == "" && u.RawQuery == "" && u.Fragment == "" && u.User == nil
}

// level reads a level's name; what is not one is info.
func (l Log) level() slog.Level {
	var v slog.Level
	if err := v.UnmarshalText([]byte(l.Level)); err != nil {
		return slog.LevelInfo
	}
	return v
}
