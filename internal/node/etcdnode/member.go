package etcdnode

import (
	"context"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.etcd.io/etcd/server/v3/embed"

	"github.com/redoubt-ml/redoubt/pkg/config"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/svid"
)

const (
	// peerName is what the certificates of peers are for: the root signs those of clients too, and a client is no peer.
	peerName = "redoubt-etcd-peer"
	// Every member waits this long for its leader, whose heartbeats come ten times as often; it bounds how long a cluster is without
	// one.
	memberTick, memberElection = 100, 1000 // ms

	serverLeaf, peerLeaf = "server", "peer"
)

// Member is what one member of a cluster needs to know.
type Member struct {
	Name string `koanf:"name" config:"visible"`
	// Dir holds data/ and a lock file; TLS the root, and the certificates with which the member serves clients and speaks to its peers.
	Dir string `koanf:"dir" config:"visible"`
	TLS string `koanf:"tls" config:"visible"`
	// ClientListen and PeerListen are IP:port, ClientURL and PeerURL what others dial.
	ClientListen string `koanf:"client_listen" config:"visible"`
	PeerListen   string `koanf:"peer_listen" config:"visible"`
	ClientURL    string `koanf:"client_url" config:"visible"`
	PeerURL      string `koanf:"peer_url" config:"visible"`
	// Cluster are all members, as name=peer URL. Token keeps two clusters apart.
	Cluster []string `koanf:"cluster" config:"visible"`
	Token   string   `koanf:"token" config:"visible"`
	// UnsafeNoFsync is as in Config.
	UnsafeNoFsync bool `koanf:"-"`
	// Logger is as in Config.
	Logger *slog.Logger `koanf:"-"`
}

// MemberFile is the file that `redoubt etcd --config` reads.
type MemberFile struct {
	Etcd Member `koanf:"etcd"`
}

// ReadMember reads the file, with the environment over it.
func ReadMember(path string, environ []string) (Member, error) {
	f, err := config.Load(path, environ, MemberFile{})
	return f.Etcd, err
}

// Validate implements config.Validator.
func (m Member) Validate() error {
	bad := func(field, what string) error {
		return fault.InvalidArgument("etcd.%s %s", field, what).Field("etcd."+field, what)
	}
	for field, v := range map[string]string{"name": m.Name, "token": m.Token} {
		if v == "" {
			return bad(field, "is missing")
		}
	}
	for field, dir := range map[string]string{"dir": m.Dir, "tls": m.TLS} {
		if !filepath.IsAbs(dir) {
			return bad(field, "is not an absolute path")
		}
	}
	for field, addr := range map[string]string{"client_listen": m.ClientListen, "peer_listen": m.PeerListen} {
		if host, _, err := net.SplitHostPort(addr); err != nil || net.ParseIP(host) == nil {
			return bad(field, "is not IP:port")
		}
	}
	for field, text := range map[string]string{"client_url": m.ClientURL, "peer_url": m.PeerURL} {
		if u, err := url.Parse(text); err != nil || u.Scheme != "https" || u.Port() == "" || u.Hostname() == "" || u.Path != "" {
			return bad(field, "is not of the form https://host:port")
		}
	}
	if !slices.Contains(m.Cluster, m.Name+"="+m.PeerURL) {
		return bad("cluster", "has not this member, as "+m.Name+"="+m.PeerURL)
	}
	return nil
}

// StartMember runs one member of a cluster until Close. It returns when the member answers, which it does when most of the cluster is
// there, or when ctx ends.
func StartMember(ctx context.Context, m Member) (*Node, error) {
	if err := m.Validate(); err != nil {
		return nil, err
	}
	if m.Logger == nil {
		m.Logger = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(m.Dir, 0o700); err != nil {
		return nil, fault.Internal(err, "etcd's folder could not be made")
	}
	n := &Node{log: m.Logger, failed: make(chan struct{}), stop: make(chan struct{})}
	var err error
	if n.lock, err = lockDir(m.Dir); err != nil {
		return nil, err
	}
	conf, err := n.memberConfig(m)
	if err == nil {
		err = n.run(ctx, conf)
	}
	if err != nil {
		n.unlock()
		return nil, err
	}
	n.done.Go(n.watch)
	return n, nil
}

func (n *Node) memberConfig(m Member) (*embed.Config, error) {
	c := n.common(m.Logger, m.UnsafeNoFsync)
	c.Name = m.Name
	c.Dir = filepath.Join(m.Dir, dataDir)
	c.TickMs, c.ElectionMs = memberTick, memberElection
	c.ListenClientUrls = []url.URL{{Scheme: "https", Host: m.ClientListen}}
	c.ListenPeerUrls = []url.URL{{Scheme: "https", Host: m.PeerListen}}
	for text, to := range map[string]*[]url.URL{m.ClientURL: &c.AdvertiseClientUrls, m.PeerURL: &c.AdvertisePeerUrls} {
		u, err := url.Parse(text)
		if err != nil {
			return nil, fault.InvalidArgument("%q is no address of etcd", text)
		}
		*to = []url.URL{*u}
	}
	c.InitialCluster = strings.Join(m.Cluster, ",")
	c.InitialClusterToken = m.Token
	in := func(name string) string { return filepath.Join(m.TLS, name) }
	c.ClientTLSInfo.CertFile, c.ClientTLSInfo.KeyFile, c.ClientTLSInfo.TrustedCAFile = in(serverLeaf+".crt"), in(serverLeaf+".key"), in(rootCert)
	c.PeerTLSInfo.CertFile, c.PeerTLSInfo.KeyFile, c.PeerTLSInfo.TrustedCAFile = in(peerLeaf+".crt"), in(peerLeaf+".key"), in(rootCert)
	c.PeerTLSInfo.ClientCertAuth = true
	// A peer is known by its certificate, and not by the address that it comes from: that is one of a container's network, or of a NAT.
	c.PeerTLSInfo.AllowedCNs = []string{peerName}
	c.PeerTLSInfo.SkipClientSANVerify = true
	return c, nil
}

// WriteMember writes the certificates of a member that others dial at host: one for its clients, and one for its peers.
func (p *PKI) WriteMember(dir, name, host string) error {
	server := memberLeaf(name, host)
	server.Client = false
	if _, err := p.WriteLeaf(dir, serverLeaf, server); err != nil {
		return err
	}
	peer := memberLeaf(name, host)
	peer.CommonName = peerName
	_, err := p.WriteLeaf(dir, peerLeaf, peer)
	return err
}

// Checker is what a member's own folder has to ask it whether it serves: the certificate for its peers is one for clients too.
func (m Member) Checker() Files {
	return Files{CA: filepath.Join(m.TLS, rootCert), Cert: filepath.Join(m.TLS, peerLeaf+".crt"), Key: filepath.Join(m.TLS, peerLeaf+".key")}
}

// HealthAddress is where this machine asks the member whether it serves.
func (m Member) HealthAddress() string {
	host, port, err := net.SplitHostPort(m.ClientListen)
	if ip := net.ParseIP(host); err == nil && ip != nil && ip.IsUnspecified() {
		return net.JoinHostPort("127.0.0.1", port)
	}
	return m.ClientListen
}

// WriteClient makes the certificate with which a service speaks to etcd, as dir/client.crt, client.key and root.crt.
func (p *PKI) WriteClient(dir, name string) error {
	_, err := p.WriteLeaf(dir, "client", svid.Leaf{CommonName: name, Client: true})
	return err
}
