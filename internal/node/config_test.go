package node

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// A5: what inference needs to listen is there before anything starts, and is named where it is not.
func TestScoringConfig(t *testing.T) {
	good := func() Config {
		return Config{
			Mesh: Mesh{TrustDomain: "redoubt.test", PublicURL: "https://redoubt.test:1", Etcd: []string{"https://127.0.0.1:2"}, EnrolAddress: "127.0.0.1:3"},
			Service: Service{
				Name: "inference", Dir: t.TempDir(), Listen: "127.0.0.1:4", ScoringListen: "0.0.0.0:5", ReplicaListen: "127.0.0.1:6", ScoringURL: "https://score.test:5",
			},
		}
	}
	c := good()
	if err := c.Check(); err != nil {
		t.Fatal(err)
	}
	for field, change := range map[string]func(s *Service){
		"service.scoring_listen":           func(s *Service) { s.ScoringListen = "" },
		"service.replica_listen":           func(s *Service) { s.ReplicaListen = "127.0.0.1" },
		"service.scoring_url":              func(s *Service) { s.ScoringURL = "http://score.test:5" },
		"service.scoring_key_file":         func(s *Service) { s.ScoringCertificateFile = "/etc/score.pem" },
		"service.scoring_certificate_file": func(s *Service) { s.ScoringCertificateFile, s.ScoringKeyFile = "score.pem", "/etc/score.key" },
	} {
		c := good()
		change(&c.Service)
		if err := c.Check(); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
		c.Service.Name = "compute"
		if err := c.Check(); err != nil {
			t.Errorf("%s is asked of a service that has it not: %v", field, err)
		}
	}
	for in, out := range map[string]string{"127.0.0.1:7": "127.0.0.1:7", "0.0.0.0:7": "127.0.0.1:7", "[::]:7": "127.0.0.1:7", "192.0.2.1:7": "192.0.2.1:7"} {
		a, err := net.ResolveTCPAddr("tcp", in)
		if err != nil {
			t.Fatal(err)
		}
		if got := dialled(a); got != out {
			t.Errorf("%s is dialled at %s", in, got)
		}
	}
}

// D10: what bounds strangers is in range, and nothing is believed from everywhere.
func TestEdgeConfig(t *testing.T) {
	good := func() Config {
		return Config{
			Mesh: Mesh{TrustDomain: "redoubt.test", PublicURL: "https://redoubt.test:1", Etcd: []string{"https://127.0.0.1:2"}, EnrolAddress: "127.0.0.1:3"},
			Service: Service{
				Name: "gateway", Dir: t.TempDir(), Listen: "127.0.0.1:4", CertificateFile: "/etc/cert.pem", KeyFile: "/etc/key.pem", PublicCAFile: "/etc/ca.pem",
				ProxyProtocolFrom: []string{"10.0.0.0/8", "192.0.2.1", "2001:db8::/32"},
			},
			Edge: Edge{Connections: 5, HandshakeTimeout: time.Second, CallsPerSecond: 0.5},
		}
	}
	c := good()
	if err := c.Check(); err != nil {
		t.Fatal(err)
	}
	got, err := prefixes(c.Service.ProxyProtocolFrom)
	if err != nil || !got[1].Contains(netip.MustParseAddr("192.0.2.1")) || got[1].Contains(netip.MustParseAddr("192.0.2.2")) {
		t.Errorf("%v %v", got, err)
	}
	for name, tc := range map[string]struct {
		field  string
		change func(c *Config)
	}{
		"everybody":            {"service.proxy_protocol_from", func(c *Config) { c.Service.ProxyProtocolFrom = []string{"0.0.0.0/0"} }},
		"everybody in IPv6":    {"service.proxy_protocol_from", func(c *Config) { c.Service.ProxyProtocolFrom = []string{"::/0"} }},
		"a name":               {"service.proxy_protocol_from", func(c *Config) { c.Service.ProxyProtocolFrom = []string{"proxy"} }},
		"an address too many":  {"service.proxy_protocol_from", func(c *Config) { c.Service.ProxyProtocolFrom = []string{"10.0.0.1/8"} }},
		"mapped":               {"service.proxy_protocol_from", func(c *Config) { c.Service.ProxyProtocolFrom = []string{"::ffff:10.0.0.0/104"} }},
		"another service":      {"service.proxy_protocol_from", func(c *Config) { c.Service.Name = "compute" }},
		"a certificate alone":  {"service.key_file", func(c *Config) { c.Service.KeyFile = "" }},
		"a relative path":      {"service.certificate_file", func(c *Config) { c.Service.CertificateFile = "cert.pem" }},
		"roots at a relative":  {"service.public_ca_file", func(c *Config) { c.Service.PublicCAFile = "ca.pem" }},
		"a long handshake":     {"edge.handshake_timeout", func(c *Config) { c.Edge.HandshakeTimeout = time.Minute }},
		"less than nothing":    {"edge.calls_per_address", func(c *Config) { c.Edge.CallsPerAddress = -1 }},
		"a rate of less":       {"edge.calls_per_second", func(c *Config) { c.Edge.CallsPerSecond = -1 }},
		"a long write timeout": {"edge.write_timeout", func(c *Config) { c.Edge.WriteTimeout = time.Hour }},
	} {
		c := good()
		tc.change(&c)
		if err := c.Check(); err == nil || !strings.Contains(err.Error(), tc.field) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// D10: where a process listens, where it is found and where it enrols is there before anything starts, and is named where it is not.
func TestAddresses(t *testing.T) {
	good := func(name string) Config {
		return Config{
			Mesh:    Mesh{TrustDomain: "redoubt.test", PublicURL: "https://redoubt.test:1", Etcd: []string{"https://etcd:2"}, EnrolAddresses: []string{"identity-a:3", "identity-b:3"}},
			Service: Service{Name: name, Dir: t.TempDir(), Listen: ":4", Advertise: name + ":4", EnrolListen: ":3", MeshListen: ":5", SealFile: "/run/secrets/seal"},
		}
	}
	for _, name := range []string{"identity", "compute", "gateway"} {
		c := good(name)
		if err := c.Check(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for what, x := range map[string]struct {
		service, field string
		change         func(c *Config)
	}{
		"on all addresses, found at none": {"compute", "service.advertise", func(c *Config) { c.Service.Advertise = "" }},
		"found at all addresses":          {"compute", "service.advertise", func(c *Config) { c.Service.Advertise = "0.0.0.0:4" }},
		"found at no port":                {"compute", "service.advertise", func(c *Config) { c.Service.Advertise = "compute:0" }},
		"the gateway's own port":          {"gateway", "service.advertise", func(c *Config) { c.Service.Advertise = "" }},
		"the gateway's mesh port":         {"gateway", "service.mesh_listen", func(c *Config) { c.Service.MeshListen = "gateway" }},
		"no identity":                     {"compute", "mesh.enrol_addresses", func(c *Config) { c.Mesh.EnrolAddresses = nil }},
		"identity anywhere":               {"compute", "mesh.enrol_addresses", func(c *Config) { c.Mesh.EnrolAddresses = []string{"identity:3", ":3"} }},
		"no enrolment listener":           {"identity", "service.enrol_listen", func(c *Config) { c.Service.EnrolListen = "" }},
		"rows without a server":           {"compute", "service.fence", func(c *Config) { c.Service.Fence = "sqlfence" }},
		"a class that is none":            {"compute", "service.fence", func(c *Config) { c.Service.PostgresFile, c.Service.Fence = "/run/secrets/dsn", "embedded" }},
		"a relative seal":                 {"compute", "service.seal_file", func(c *Config) { c.Service.SealFile = "seal.key" }},
		"replicas anywhere":               {"compute", "service.replica_advertise", func(c *Config) { c.Service.ReplicaAdvertise = ":7" }},
	} {
		c := good(x.service)
		x.change(&c)
		if err := c.Check(); err == nil || !strings.Contains(err.Error(), x.field) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for _, class := range []string{"", "sql", "sqlfence"} {
		c := good("compute")
		if c.Service.PostgresFile, c.Service.Fence = "/run/secrets/dsn", class; c.Check() != nil {
			t.Errorf("class %q: %v", class, c.Check())
		}
	}
	old := good("compute")
	old.Mesh.EnrolAddress = "127.0.0.1:9"
	if got := strings.Join(old.Mesh.Enrolment(), " "); got != "127.0.0.1:9 identity-a:3 identity-b:3" {
		t.Errorf("enrols at %s", got)
	}
	for name, want := range map[string]string{"compute": "127.0.0.1:4", "gateway": "127.0.0.1:5"} {
		c := good(name)
		if got := c.HealthAddress(); got != want {
			t.Errorf("the health of %s is asked at %s", name, got)
		}
	}
}

// D10: a bucket is for those who keep blobs, by https, with its credentials in a file.
func TestBlobConfig(t *testing.T) {
	good := func() Config {
		return Config{
			Mesh: Mesh{TrustDomain: "redoubt.test", PublicURL: "https://redoubt.test:1", Etcd: []string{"https://127.0.0.1:2"}, EnrolAddress: "127.0.0.1:3"},
			Service: Service{
				Name: "workspace", Dir: t.TempDir(), Listen: "127.0.0.1:4", BlobURL: "s3://bucket?endpoint=https://s3.test:9000&region=x", BlobCredentialsFile: "/etc/key.yaml", BlobRootFile: "/etc/root.pem",
			},
		}
	}
	c := good()
	if err := c.Check(); err != nil {
		t.Fatal(err)
	}
	for name, k := range map[string]struct {
		field  string
		change func(s *Service)
	}{
		"http":                 {"service.blob_url", func(s *Service) { s.BlobURL = "s3://bucket?endpoint=http://127.0.0.1:9000&region=x" }},
		"credentials in it":    {"service.blob_url", func(s *Service) { s.BlobURL = "s3://id:canary@bucket?region=x" }},
		"keeps no blobs":       {"service.blob_url", func(s *Service) { s.Name = "keyvault" }},
		"no credentials":       {"service.blob_credentials_file", func(s *Service) { s.BlobCredentialsFile = "" }},
		"relative credentials": {"service.blob_credentials_file", func(s *Service) { s.BlobCredentialsFile = "key.yaml" }},
		"relative root":        {"service.blob_root_file", func(s *Service) { s.BlobRootFile = "root.pem" }},
		"credentials alone":    {"service.blob_credentials_file", func(s *Service) { s.BlobURL = "" }},
		"root alone":           {"service.blob_root_file", func(s *Service) { s.BlobURL, s.BlobCredentialsFile = "", "" }},
	} {
		c := good()
		k.change(&c.Service)
		if err := c.Check(); err == nil || !strings.Contains(err.Error(), k.field) || strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// D10: who has his identity from elsewhere enrols nowhere, and says where by a path that is one.
func TestWorkloadAPIConfig(t *testing.T) {
	good := func(name, api string) Config {
		return Config{
			Mesh:    Mesh{TrustDomain: "redoubt.test", PublicURL: "https://redoubt.test:1", Etcd: []string{"https://etcd:2"}},
			Service: Service{Name: name, Dir: t.TempDir(), Listen: "127.0.0.1:4", WorkloadAPI: api},
		}
	}
	for _, name := range []string{"identity", "compute", "gateway"} {
		c := good(name, "unix:///run/spire/sockets/agent.sock")
		if err := c.Check(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		c = good(name, "")
		if err := c.Check(); err == nil || !strings.Contains(err.Error(), "enrol") {
			t.Errorf("%s enrols nowhere: %v", name, err)
		}
	}
	for _, api := range []string{"/run/agent.sock", "unix:/run/agent.sock", "unix://run/agent.sock", "unix:///run/../agent.sock", "tcp://127.0.0.1:1", "unix://", "https://spire"} {
		c := good("compute", api)
		if err := c.Check(); err == nil || !strings.Contains(err.Error(), "service.workload_api") {
			t.Errorf("%s: %v", api, err)
		}
	}
}
