package node

import (
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"time"

	"github.com/redoubt-ml/redoubt/pkg/fault"
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
	// EnrolAddress is host:port of identity's enrolment listener.
	EnrolAddress string `koanf:"enrol_address" config:"visible"`
	// CAPin is the hash of the CA's root that enrolment believes.
	CAPin string `koanf:"ca_pin" config:"visible"`
	// LeafLife is how long an X.509-SVID lives; renewed at half of it.
	LeafLife time.Duration `koanf:"leaf_life" config:"visible"`
	// TraceEndpoint takes OTLP traces over gRPC, host:port; empty exports none.
	TraceEndpoint string `koanf:"trace_endpoint" config:"visible"`
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
	// Mesh is host:port of the gateway's own port inside the mesh: health for operators.
	MeshListen string `koanf:"mesh_listen" config:"visible"`
	// Metrics is host:port for Prometheus, on loopback; empty serves none.
	Metrics string `koanf:"metrics" config:"visible"`
	// JoinTokenFile holds the single-use token for the first enrolment.
	JoinTokenFile string `koanf:"join_token_file" config:"visible"`
	// PostgresFile holds a PostgreSQL DSN; empty uses SQLite in Dir.
	PostgresFile string `koanf:"postgres_file" config:"visible"`
	// Admin is the uid of the first administrator; workspace only. He gets his role at the first start.
	Admin string `koanf:"admin" config:"visible"`
	// RequestLogDays is for how many days requests to endpoints are kept; telemetry only. 0 is 30.
	RequestLogDays int `koanf:"request_log_days" config:"visible"`
	// AgentCommand starts the agent of a local target; compute only. Empty is this binary with "agent".
	AgentCommand []string `koanf:"agent_command" config:"visible"`
	// ScoringListen is host:port at which endpoints are scored, ReplicaListen the one that replicas dial; inference only.
	ScoringListen string `koanf:"scoring_listen" config:"visible"`
	ReplicaListen string `koanf:"replica_listen" config:"visible"`
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
	Log     Log     `koanf:"log"`
}

// Log says what is logged.
type Log struct {
	// Level is debug, info, warn or error.
	Level string `koanf:"level" config:"visible"`
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
	if _, _, err := net.SplitHostPort(c.Service.Listen); err != nil {
		return bad("service.listen", "is not host:port")
	}
	if _, _, err := net.SplitHostPort(c.Mesh.EnrolAddress); err != nil {
		return bad("mesh.enrol_address", "is not host:port")
	}
	if len(c.Mesh.Etcd) == 0 {
		return bad("mesh.etcd", "names no endpoint")
	}
	if c.Service.Name == "inference" {
		if err := c.Service.checkScoring(bad); err != nil {
			return err
		}
	}
	if c.Service.Metrics != "" {
		host, _, err := net.SplitHostPort(c.Service.Metrics)
		if ip := net.ParseIP(host); err != nil || ip == nil || !ip.IsLoopback() {
			return bad("service.metrics", "is not an address on loopback")
		}
	}
	if d := c.Service.RequestLogDays; d < 0 || d > 3650 {
		return bad("service.request_log_days", "is not from 0 to 3650")
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
	return nil
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
