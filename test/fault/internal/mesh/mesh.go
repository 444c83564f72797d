//go:build linux

// Package mesh is an installation of many processes, each on a host of its own in a network of namespaces, made from a plan as an
// operator makes it (ADR 19), with a disk of its own for each process, in memory and bounded.
//
// It owns the network, everything below its root, and the processes; it is also their supervisor: what ends by itself is started again.
//
// Trust boundary: it is the operator, and holds everything. Clients reach it by its gateway from a host of their own.
//
// Invariants: a process that was ended on purpose stays away until it is started; nothing remains after Close, or after the next Open if
// this process was killed.
//
// Failure: errors are the program's own words; Output of a process has the rest.
package mesh

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/redoubt-ml/redoubt/internal/node"
	"github.com/redoubt-ml/redoubt/test/fault/internal/load"
	"github.com/redoubt-ml/redoubt/test/fault/internal/netns"
)

const (
	// GatewayPort is where clients find the gateway.
	GatewayPort = "8443"
	// Disks of a service, of telemetry, which keeps every event, of a member of etcd, whose log alone is two pieces of 64 MiB, and of
	// PostgreSQL.
	serviceDisk, telemetryDisk, etcdDisk, postgresDisk = 256 << 20, 2 << 30, 512 << 20, 3 << 30
	// Etcd is a member of its cluster, as a service.
	Etcd = "etcd"
	// Worker is who carries runs, as a service.
	Worker = "worker"
)

// Config of a Mesh.
type Config struct {
	// Binary is the program, built with the tag redoubt_fault_clock.
	Binary string
	// Postgres has the stores in a PostgreSQL server.
	Postgres bool
	// S3 is the program of an S3 server, versitygw, which keeps blobs then. With it and Postgres there are two instances of Replicated
	// services.
	S3 string
	// Env is what every service gets besides its own.
	Env []string
}

// Replicated are the services that have two instances where what they keep is shared.
var Replicated = []string{"identity", "workspace", "compute", "telemetry"}

// Mesh is a running installation.
type Mesh struct {
	Processes []*Process
	// Client is the host that clients are on.
	Client *netns.Host
	// Address of the gateway, and what is believed there.
	Address string
	CA      []byte
	// Admin and Password are the first administrator's.
	Admin, Password string

	cfg  Config
	net  *netns.Network
	data string
}

// Open makes the installation and starts all of it but the worker. It does not wait until it answers.
func Open(ctx context.Context, cfg Config) (_ *Mesh, err error) {
	m := &Mesh{cfg: cfg, Admin: "admin", data: filepath.Join(netns.Root, "data")}
	if m.net, err = netns.Open(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.net.Close())
		}
	}()
	for _, d := range []string{"home", "logs", "clocks", "tmp"} {
		if err := os.MkdirAll(filepath.Join(netns.Root, d), 0o700); err != nil {
			return nil, err
		}
	}
	if m.Client, err = m.net.AddHost("client"); err != nil {
		return nil, err
	}
	if err := m.bootstrap(ctx); err != nil {
		return nil, err
	}
	for _, p := range m.Processes {
		if p.Service != Worker {
			if err := p.Start(); err != nil {
				return nil, err
			}
		}
	}
	return m, nil
}

// Close ends everything and leaves nothing.
func (m *Mesh) Close() error {
	for _, p := range slices.Backward(m.Processes) {
		_ = p.Kill()
	}
	return m.net.Close()
}

// Network is what the hosts are on.
func (m *Mesh) Network() *netns.Network { return m.net }

// Of are the processes of some services, in the order of the plan.
func (m *Mesh) Of(services ...string) []*Process {
	var out []*Process
	for _, p := range m.Processes {
		if slices.Contains(services, p.Service) {
			out = append(out, p)
		}
	}
	return out
}

// TLS is what is believed at the gateway.
func (m *Mesh) TLS() *tls.Config {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(m.CA)
	host, _, _ := net.SplitHostPort(m.Address)
	return &tls.Config{RootCAs: roots, ServerName: host, MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}}
}

// Dial reaches the mesh from the clients' host.
func (m *Mesh) Dial(ctx context.Context, addr string) (net.Conn, error) {
	return m.Client.Dial(ctx, "tcp", addr)
}

type planned struct {
	Service string `yaml:"service,omitempty"`
	Name    string `yaml:"name"`
	Host    string `yaml:"host"`
}

// bootstrap writes the plan, has it carried out, and gives each process its host and its disk.
func (m *Mesh) bootstrap(ctx context.Context) error {
	var members, instances []planned
	for i := range 3 {
		p, err := m.add(fmt.Sprintf("etcd-%d", i+1), Etcd)
		if err != nil {
			return err
		}
		members = append(members, planned{Name: p.Name, Host: p.Host.Addr})
	}
	for _, s := range node.Services {
		names := []string{"a"}
		if m.cfg.Postgres && m.cfg.S3 != "" && slices.Contains(Replicated, s) {
			names = append(names, "b")
		}
		for _, name := range names {
			p, err := m.add(s+"-"+name, s)
			if err != nil {
				return err
			}
			instances = append(instances, planned{Service: s, Name: name, Host: p.Host.Addr})
		}
	}
	gateway := m.Of("gateway")[0].Host.Addr
	m.Address = net.JoinHostPort(gateway, GatewayPort)
	plan := map[string]any{
		"trust_domain": "fault.test", "public_url": "https://" + m.Address, "scoring_url": "https://" + net.JoinHostPort(m.Of("inference")[0].Host.Addr, "8452"),
		"etcd": members, "instances": instances, "local_targets": false, "log_level": "info",
	}
	if m.cfg.Postgres {
		section, err := m.addPostgres(ctx)
		if err != nil {
			return err
		}
		plan["postgres"] = section
	}
	if m.cfg.S3 != "" {
		section, err := m.addS3()
		if err != nil {
			return err
		}
		plan["blobs"] = section
	}
	b, err := yaml.Marshal(plan)
	if err != nil {
		return err
	}
	file := filepath.Join(netns.Root, "plan.yaml")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		return err
	}
	if m.cfg.Postgres { // whose administrator makes the roles first
		if err := m.carryOut(file, "--sql"); err != nil {
			return err
		}
		if err := m.openPostgres(ctx); err != nil {
			return err
		}
	}
	if err := m.carryOut(file); err != nil {
		return err
	}
	if m.CA, err = os.ReadFile(filepath.Join(m.data, "ca.pem")); err != nil {
		return err
	}
	if b, err = os.ReadFile(filepath.Join(m.data, "admin.password")); err != nil {
		return err
	}
	m.Password = strings.TrimSpace(string(b))
	for _, p := range m.Processes {
		if err := m.settle(p); err != nil {
			return fmt.Errorf("%s: %w", p.Name, err)
		}
	}
	worker, err := m.add("worker", Worker)
	if err != nil {
		return err
	}
	worker.args = []string{"compute", "serve", load.Target}
	return nil
}

// carryOut has the plan carried out, from a host that reaches the others.
func (m *Mesh) carryOut(plan string, args ...string) error {
	cmd := m.Client.Command(m.cfg.Binary, append([]string{"bootstrap", "--plan", plan, "--data", m.data}, args...)...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + filepath.Join(netns.Root, "home")}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("bootstrap: %w: %s", err, out)
	}
	return nil
}

// add makes a process, which is not settled yet.
func (m *Mesh) add(name, service string) (*Process, error) {
	h, err := m.net.AddHost(name)
	if err != nil {
		return nil, err
	}
	p := &Process{Name: name, Service: service, Host: h, Dir: filepath.Join(m.data, name), program: m.cfg.Binary, log: filepath.Join(netns.Root, "logs", name), env: func() []string { return nil }}
	m.Processes = append(m.Processes, p)
	return p, nil
}

// settle moves what bootstrap has made for a process to a disk of its own, and says how it is started.
func (m *Mesh) settle(p *Process) error {
	size := int64(serviceDisk)
	switch p.Service {
	case Etcd:
		size = etcdDisk
		p.args = []string{"etcd", "--config", filepath.Join(p.Dir, "etcd.yaml")}
	case postgresService, s3Service:
		return nil
	default:
		if p.Service == "telemetry" {
			size = telemetryDisk
		}
		p.args = []string{"serve", p.Service, "--config", filepath.Join(p.Dir, "service.yaml")}
		p.clock = filepath.Join(netns.Root, "clocks", p.Name)
		if err := p.Clock(0); err != nil {
			return err
		}
		clock := p.clock
		p.env = func() []string { return append([]string{"REDOUBT_FAULT_CLOCK=" + clock}, m.cfg.Env...) }
	}
	made := p.Dir + ".made"
	if err := os.Rename(p.Dir, made); err != nil {
		return err
	}
	if err := netns.Disk(p.Dir, size); err != nil {
		return err
	}
	if out, err := exec.Command("cp", "-a", made+"/.", p.Dir).CombinedOutput(); err != nil { //nolint:noctx // ends by itself
		return fmt.Errorf("cp: %w: %s", err, out)
	}
	return os.RemoveAll(made)
}

// StartWorker starts who carries runs, as somebody whose token the function gives.
func (m *Mesh) StartWorker(workspace string, token func() string) error {
	w := m.Of(Worker)[0]
	ca := filepath.Join(netns.Root, "home", "ca.pem")
	if err := os.WriteFile(ca, m.CA, 0o600); err != nil {
		return err
	}
	w.env = func() []string {
		return []string{"REDOUBT_ADDR=https://" + m.Address, "REDOUBT_CACERT=" + ca, "REDOUBT_WORKSPACE=" + workspace, "REDOUBT_TOKEN=" + token(), "REDOUBT_KEYRING=off"}
	}
	return w.Start()
}

// Wipe takes away what a member of etcd has stored, but not who it is.
func (p *Process) Wipe() error {
	return os.RemoveAll(filepath.Join(p.Dir, "data"))
}

// Poll tries until it works or ctx ends, and says how long that took.
func Poll(ctx context.Context, try func(context.Context) error) (time.Duration, error) {
	begin := time.Now()
	for {
		err := try(ctx)
		if err == nil {
			return time.Since(begin), nil
		}
		select {
		case <-ctx.Done():
			return time.Since(begin), err
		case <-time.After(20 * time.Millisecond):
		}
	}
}
