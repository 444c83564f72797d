package installation

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/internal/cli/app"
	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/internal/cli/settings"
	"github.com/redoubt-ml/redoubt/internal/cli/show"
	"github.com/redoubt-ml/redoubt/internal/node"
	"github.com/redoubt-ml/redoubt/pkg/config"
	"github.com/redoubt-ml/redoubt/pkg/discovery"
	"github.com/redoubt-ml/redoubt/pkg/redact"
)

// soon is when a certificate's end is near enough to be told: it should have been renewed at half of its life.
const soon = 5 * time.Second

func (a verbs) health() *cobra.Command {
	var file string
	c := &cobra.Command{Use: "health --config FILE [HOST:PORT]", Short: "Ask a service of this machine whether it serves, with its own certificate", Args: cobra.MaximumNArgs(1)}
	c.Flags().StringVar(&file, "config", "", "the service's configuration")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if file == "" {
			return app.Usagef("--config says which service")
		}
		cfg, err := config.Load(file, a.settingsEnv(), node.Config{})
		if err != nil {
			return err
		}
		addr := cfg.Service.Listen
		if cfg.Service.MeshListen != "" && cfg.Service.Name == "gateway" {
			addr = cfg.Service.MeshListen
		}
		if len(args) == 1 {
			addr = args[0]
		}
		m, err := readMember(filepath.Join(cfg.Service.Dir, "svid"), a.Now)
		if err != nil {
			return err
		}
		if _, err := m.checkHealth(cmd.Context(), cfg.Service.Name, addr); err != nil {
			return &app.Exit{Code: app.ExitRefused, Message: cfg.Service.Name + " at " + addr + ": " + client.Describe(err).Message}
		}
		_, err = fmt.Fprintln(a.Out, "serving")
		return err
	}
	return c
}

// diagnosis collects what doctor finds.
type diagnosis struct {
	rows [][]string
	bad  int
}

func (d *diagnosis) ok(what, found string) { d.rows = append(d.rows, []string{"ok", what, found, ""}) }

func (d *diagnosis) wrong(what, found, next string) {
	d.bad++
	d.rows = append(d.rows, []string{"WRONG", what, found, next})
}

func (d *diagnosis) unknown(what, found, next string) {
	d.rows = append(d.rows, []string{"?", what, found, next})
}

func (a verbs) doctor() *cobra.Command {
	var data, dir string
	var lines bool
	c := &cobra.Command{Use: "doctor", Short: "See what works of an installation, and what to do about what does not", Args: app.Exactly(0)}
	c.Flags().StringVar(&data, "data", "", "the installation's folder, where it is on this machine; without it $XDG_STATE_HOME/redoubt")
	c.Flags().BoolVar(&lines, "grpcurl", false, "print grpcurl lines for the gateway and every service, with an operator's certificate that is written to --dir")
	c.Flags().StringVar(&dir, "dir", "", "where --grpcurl writes certificate and token; without it a new folder")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx := cmd.Context()
		chosen, err := a.Chosen()
		if err != nil {
			return err
		}
		if data, err = a.dataFolder(data); err != nil {
			return err
		}
		if lines {
			return a.grpcurl(ctx, chosen, data, dir)
		}
		d := &diagnosis{}
		v, revision, _ := buildVersion()
		d.ok("this binary", v+" "+revision)
		a.examine(ctx, d, chosen, data)
		if err := show.Table(a.Out, []string{"", "what", "found", "what to do"}, d.rows); err != nil {
			return err
		}
		if d.bad > 0 {
			return &app.Exit{Code: app.ExitRefused, Message: fmt.Sprintf("%d things are wrong", d.bad)}
		}
		return nil
	}
	return c
}

// examine goes from the outside in: the gateway, the session, the services.
func (a verbs) examine(ctx context.Context, d *diagnosis, chosen settings.Context, data string) {
	a.examineGateway(ctx, d, chosen)
	instances, err := a.instances(ctx, chosen, data)
	if err != nil {
		d.unknown("services", client.Describe(err).Message, "on the installation's own machine give its folder with --data")
	} else {
		for _, name := range node.Services {
			if !slices.ContainsFunc(instances, func(i discovery.Instance) bool { return i.Service == name }) {
				d.wrong(name, "no instance is registered", "start it: redoubt serve "+name+" --config FILE, or see its log")
			}
		}
	}
	token, err := a.Token(ctx, chosen)
	if err != nil {
		d.wrong("session", err.Error(), "")
		return
	}
	if token.Empty() {
		d.unknown("session", "not signed in", "redoubt login; then the services can be looked at one by one")
		return
	}
	c, err := client.Dial(chosen.Client(), token, a.DialOptions()...)
	if err != nil {
		d.wrong("session", err.Error(), "")
		return
	}
	defer func() { _ = c.Close() }()
	who, err := c.Identity().WhoAmI(ctx, &identityv1.WhoAmIRequest{})
	if err != nil {
		p := client.Describe(err)
		d.wrong("session", p.Message, p.Next)
		return
	}
	d.ok("session", who.GetPrincipal()+" until "+show.Clock(who.GetTokenExpireTime()))
	if len(instances) == 0 {
		return
	}
	dir, err := os.MkdirTemp("", "redoubt-doctor-*")
	if err != nil {
		d.wrong("operator's certificate", err.Error(), "")
		return
	}
	defer func() { _ = os.RemoveAll(dir) }()
	m, err := a.operator(ctx, c, dir)
	if err != nil {
		p := client.Describe(err)
		d.unknown("operator's certificate", p.Message, p.Next)
		return
	}
	for _, i := range instances {
		end, err := m.checkHealth(ctx, i.Service, i.Addr)
		what := i.Service + " at " + i.Addr
		if err != nil {
			d.wrong(what, client.Describe(err).Message, "see its log; if it is gone, its registration ends by itself within seconds")
			continue
		}
		a.certificate(d, what, "serving", end)
	}
}

func (a verbs) certificate(d *diagnosis, what, found string, end time.Time) {
	left := end.Sub(a.Now())
	text := found + ", certificate for " + show.Duration(left)
	if left < soon {
		d.wrong(what, text, "it should have been renewed: see whether identity answers")
		return
	}
	d.ok(what, text)
}

func (a verbs) examineGateway(ctx context.Context, d *diagnosis, chosen settings.Context) {
	what := "gateway at " + chosen.Server
	c, err := client.Dial(chosen.Client(), redact.Secret{}, a.DialOptions()...)
	if err != nil {
		d.wrong(what, err.Error(), "")
		return
	}
	defer func() { _ = c.Close() }()
	timed, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := serving(timed, c.Conn()); err != nil {
		d.wrong(what, client.Describe(err).Message, "is it running (redoubt up), is the address right, is the root (--ca) the one in its data folder?")
		return
	}
	end, err := gatewayCertificate(timed, chosen)
	if err != nil {
		d.wrong(what, err.Error(), "")
		return
	}
	a.certificate(d, what, "serving", end)
}

// gatewayCertificate tells when the certificate ends that the gateway shows. It was believed before, by the call for its health.
func gatewayCertificate(ctx context.Context, chosen settings.Context) (time.Time, error) {
	u, err := url.Parse(chosen.Server)
	if err != nil {
		return time.Time{}, err
	}
	var roots *x509.CertPool
	if text := []byte(chosen.CA); len(text) > 0 || chosen.CAFile != "" {
		if len(text) == 0 {
			if text, err = os.ReadFile(chosen.CAFile); err != nil {
				return time.Time{}, err
			}
		}
		roots = x509.NewCertPool()
		roots.AppendCertsFromPEM(text)
	}
	d := tls.Dialer{Config: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, ServerName: u.Hostname(), NextProtos: []string{"h2"}}}
	conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), "443")))
	if err != nil {
		return time.Time{}, err
	}
	defer func() { _ = conn.Close() }()
	t, ok := conn.(*tls.Conn)
	if !ok || len(t.ConnectionState().PeerCertificates) == 0 {
		return time.Time{}, fmt.Errorf("the gateway shows no certificate")
	}
	return t.ConnectionState().PeerCertificates[0].NotAfter, nil
}

// instances asks etcd of an installation on this machine which instances there are, with the certificate that one of its services has.
func (a verbs) instances(ctx context.Context, chosen settings.Context, data string) ([]discovery.Instance, error) {
	dir := filepath.Join(data, "workspace", "etcd")
	if _, err := os.Stat(dir); err != nil {
		return nil, fmt.Errorf("there is no installation in %s", data)
	}
	endpoints, err := a.etcdEndpoints(chosen, data)
	if err != nil {
		return nil, err
	}
	cfg, err := node.EtcdClientTLS(dir)
	if err != nil {
		return nil, err
	}
	r, err := discovery.Open(discovery.Config{Endpoints: endpoints, TLS: cfg, Now: a.Now})
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }()
	timed, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	all, err := r.List(timed)
	if err != nil {
		return nil, err
	}
	var out []discovery.Instance
	for _, list := range all {
		out = append(out, list...)
	}
	slices.SortFunc(out, func(x, y discovery.Instance) int {
		return cmp.Or(cmp.Compare(x.Service, y.Service), cmp.Compare(x.Name, y.Name))
	})
	return out, nil
}

// etcdEndpoints are in the services' configuration, or, of `redoubt up`, at their place after the public port.
func (a verbs) etcdEndpoints(chosen settings.Context, data string) ([]string, error) {
	file := filepath.Join(data, "workspace", "service.yaml")
	if _, err := os.Stat(file); err == nil {
		cfg, err := config.Load(file, nil, node.Config{})
		return cfg.Mesh.Etcd, err
	}
	u, err := url.Parse(chosen.Server)
	if err != nil {
		return nil, err
	}
	ports, err := node.Ports(net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), "443")))
	if err != nil {
		return nil, err
	}
	return []string{"https://" + ports[len(ports)-1].Addr}, nil
}

// grpcurl prints what to type to reach every port without this program. Token and key stand in files, not in the lines.
func (a verbs) grpcurl(ctx context.Context, chosen settings.Context, data, dir string) error {
	c, err := a.Connect(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	token, err := a.Token(ctx, chosen)
	if err != nil {
		return err
	}
	if dir == "" {
		if dir, err = os.MkdirTemp("", "redoubt-grpcurl-*"); err != nil {
			return err
		}
	} else if dir, err = filepath.Abs(dir); err != nil {
		return err
	}
	m, err := a.operator(ctx, c, dir)
	if err != nil {
		return err
	}
	if err := writeFile(filepath.Join(dir, "token"), slices.Concat(token.Reveal(), []byte{'\n'}), 0o600); err != nil {
		return err
	}
	ca := []byte(chosen.CA)
	if chosen.CAFile != "" {
		if ca, err = os.ReadFile(chosen.CAFile); err != nil {
			return err
		}
	}
	if err := writeFile(filepath.Join(dir, caFile), ca, 0o600); err != nil {
		return err
	}
	u, err := url.Parse(chosen.Server)
	if err != nil {
		return err
	}
	quoted := strconv.Quote(dir)
	header := ` -expand-headers -H 'authorization: Bearer ${REDOUBT_TOKEN}'`
	_, _ = fmt.Fprintf(a.Out, "cd %s && export REDOUBT_TOKEN=\"$(cat token)\"\n\n# the gateway, as %s\n", quoted, c.Context().User)
	gate := "grpcurl -cacert " + caFile + header + " "
	_, _ = fmt.Fprintf(a.Out, "%s%s list\n%s%s describe redoubt.identity.v1.SignInService\n%s%s redoubt.identity.v1.SignInService/WhoAmI\n", gate, u.Host, gate, u.Host, gate, u.Host)
	instances, err := a.instances(ctx, chosen, data)
	if err != nil {
		a.Say("the services themselves are not known from here: %s; on the installation's own machine give its folder with --data", client.Describe(err).Message)
		return nil
	}
	for _, i := range instances {
		line := fmt.Sprintf("grpcurl -cacert %s -cert %s -key %s -servername %s.%s%s %s", caFile, operatorCert, identityKey, i.Service, m.td.Name(), header, i.Addr)
		_, _ = fmt.Fprintf(a.Out, "\n# %s itself, with the operator's certificate\n%s list\n%s grpc.health.v1.Health/Check\n", i.Service, line, line)
	}
	return nil
}
