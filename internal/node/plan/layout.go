package plan

import (
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/redoubt-ml/redoubt/internal/node"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
)

// offsets is the port table: how far above an instance's first port its listeners are.
var offsets = map[string]int{
	"gateway": 0, "gateway-mesh": 1, "identity": 2, "identity-enrol": 3, "workspace": 4, "keyvault": 5, "telemetry": 6, "compute": 7,
	"inference": 8, "inference-scoring": 9, "inference-replicas": 10,
	// 11 is etcd's, where it is in the same process.
	portMTLS: lastOffset,
}

// listeners are the ports of each service's process.
var listeners = map[string][]string{
	"identity": {"identity", "identity-enrol"}, "workspace": {"workspace"}, "keyvault": {"keyvault"}, "telemetry": {"telemetry"},
	"compute": {"compute"}, "inference": {"inference", "inference-scoring", "inference-replicas"}, "gateway": {"gateway", "gateway-mesh"},
}

// portMTLS is identity's listener for clients with certificates.
const portMTLS = "identity-mtls"

// listeners are the ports of a service's process in this plan.
func (p *Plan) listeners(service string) []string {
	all := listeners[service]
	if service == "identity" && p.MTLSURL != "" {
		return append(slices.Clone(all), portMTLS)
	}
	return all
}

// files of a folder.
const (
	serviceFile  = "service.yaml"
	memberFile   = "etcd.yaml"
	sealFile     = "seal.key"
	sealMark     = "seal.id"
	joinFile     = "join.token"
	etcdFolder   = "etcd"
	dsnFile      = "postgres.dsn"
	dsnRoot      = "postgres.crt"
	keptFile     = "plan.yaml"
	sqlFile      = "postgres.sql"
	etcdRoot     = "etcd-root"
	memberPrefix = "etcd-"
)

// Folder is the name of the instance's folder, and of the instance.
func (in Instance) Folder() string { return in.Service + "-" + in.Name }

func (in Instance) port(listener string) int { return in.BasePort + offsets[listener] }

// listen is where the process listens: at its host's address, or at all of the machine's.
func (in Instance) listen(listener string) string {
	return net.JoinHostPort(bind(in.Host, in.Listen, ""), strconv.Itoa(in.port(listener)))
}

// dialled is where others find the listener.
func (in Instance) dialled(listener string) string {
	return net.JoinHostPort(in.Host, strconv.Itoa(in.port(listener)))
}

// bind is the address to listen at: what was asked for, the host where it is an address, else all.
func bind(host, asked, all string) string {
	if asked != "" {
		return asked
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return host
	}
	return all
}

func (m Member) folder() string {
	if strings.HasPrefix(m.Name, memberPrefix) {
		return m.Name
	}
	return memberPrefix + m.Name
}

func (m Member) clientURL() string {
	return "https://" + net.JoinHostPort(m.Host, strconv.Itoa(m.ClientPort))
}

func (m Member) peerURL() string {
	return "https://" + net.JoinHostPort(m.Host, strconv.Itoa(m.PeerPort))
}

// seen is a folder's path as its process sees it.
func (p *Plan) seen(data, folder string) string {
	if p.State != "" {
		return p.State
	}
	return filepath.Join(data, folder)
}

// mesh is what all processes agree on.
func (p *Plan) mesh(pin string) node.Mesh {
	m := node.Mesh{TrustDomain: p.TrustDomain, PublicURL: p.PublicURL, CAPin: pin, LeafLife: p.LeafLife, ConnectionAge: p.ConnectionAge, TraceEndpoint: p.TraceEndpoint, TraceCAFile: p.TraceCAFile, TraceRatio: p.TraceRatio}
	for _, e := range p.Etcd {
		m.Etcd = append(m.Etcd, e.clientURL())
	}
	for _, in := range p.Instances {
		if in.Service == "identity" {
			m.EnrolAddresses = append(m.EnrolAddresses, in.dialled("identity-enrol"))
		}
	}
	return m
}

// enrols reports whether an instance gets its SVIDs from identity, by a join token the first time.
func (p *Plan) enrols(in Instance) bool { return in.Service != "identity" && p.WorkloadAPI == "" }

// publicHosts are all hosts at which the public listeners are dialled.
func (p *Plan) publicHosts() []string {
	hosts := slices.Clone(p.PublicHosts)
	if u, err := url.Parse(p.ScoringURL); err == nil {
		hosts = append(hosts, u.Hostname())
	}
	for _, in := range p.Instances {
		if in.Service == rpc.Gateway || in.Service == "inference" {
			hosts = append(hosts, in.Host)
		}
	}
	slices.Sort(hosts)
	return slices.Compact(hosts)
}

// config is what an instance's process reads, for a folder at dir as it sees it.
func (p *Plan) config(in Instance, dir, pin, admin string) node.Config {
	c := node.Config{Mesh: p.mesh(pin), Log: node.Log{Level: p.LogLevel}, Service: node.Service{
		Name: in.Service, Instance: in.Name, Dir: dir, Listen: in.listen(in.Service), Advertise: in.dialled(in.Service), LocalTargets: p.LocalTargets, WorkloadAPI: p.WorkloadAPI,
	}}
	c.Mesh.EtcdTLS = filepath.Join(dir, etcdFolder)
	s := &c.Service
	if p.Postgres != nil && in.Service != rpc.Gateway {
		s.PostgresFile = filepath.Join(dir, dsnFile)
	}
	p.bucket(s, dir)
	if p.enrols(in) {
		s.JoinTokenFile = filepath.Join(dir, joinFile)
	}
	switch in.Service {
	case "identity":
		s.EnrolListen, s.PublicHosts = in.listen("identity-enrol"), p.publicHosts()
		s.RootPeriod, s.RunLife, s.KeyPeriod, s.KeyAhead = p.RootPeriod, p.RunLife, p.KeyPeriod, p.KeyAhead
		if p.MTLSURL != "" {
			s.MTLSListen, s.MTLSURL = in.listen(portMTLS), p.MTLSURL
		}
	case rpc.Gateway:
		s.MeshListen, s.Advertise = in.listen("gateway-mesh"), in.dialled("gateway-mesh")
		s.CertificateFile, s.KeyFile = p.CertificateFile, p.KeyFile
	case "workspace":
		s.Admin = admin
	case "inference":
		s.ScoringListen, s.ReplicaListen, s.ScoringURL = in.listen("inference-scoring"), in.listen("inference-replicas"), p.ScoringURL
		s.ReplicaAdvertise = in.dialled("inference-replicas")
	}
	return c
}
