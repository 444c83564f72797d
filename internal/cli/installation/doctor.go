package installation

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/redoubt-ml/redoubt/internal/cli/app"
	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/internal/cli/settings"
	"github.com/redoubt-ml/redoubt/internal/cli/show"
	"github.com/redoubt-ml/redoubt/pkg/observe"
	"github.com/redoubt-ml/redoubt/pkg/redact"
)

// soon is when a certificate's end is near enough to be told: it should have been renewed at half of its life.
const soon = 5 * time.Second

// finding is one line of a diagnosis.
type finding struct {
	// State is "ok", "WRONG", or "?" for what is not known or will be wrong soon.
	State string `json:"state"`
	What  string `json:"what"`
	Found string `json:"found"`
	Next  string `json:"whatToDo,omitempty"`
}

// diagnosis collects what doctor finds.
type diagnosis struct {
	now      func() time.Time
	findings []finding
	bad      int
}

func (d *diagnosis) ok(what, found string) {
	d.findings = append(d.findings, finding{State: "ok", What: what, Found: found})
}

func (d *diagnosis) wrong(what, found, next string) {
	d.bad++
	d.findings = append(d.findings, finding{"WRONG", what, found, next})
}

func (d *diagnosis) unknown(what, found, next string) {
	d.findings = append(d.findings, finding{"?", what, found, next})
}

// report writes the findings, as a table or for programs.
func (a verbs) report(d *diagnosis) error {
	if a.Structured() {
		b, err := json.MarshalIndent(map[string]any{"wrong": d.bad, "findings": d.findings}, "", "  ")
		if err != nil {
			return err
		}
		return a.AnswerJSON(append(b, '\n'))
	}
	rows := make([][]string, 0, len(d.findings))
	for _, f := range d.findings {
		rows = append(rows, []string{f.State, f.What, f.Found, f.Next})
	}
	return show.Table(a.Out, []string{"", "what", "found", "what to do"}, rows)
}

func (a verbs) doctor() *cobra.Command {
	var from where
	var dir string
	var lines bool
	c := &cobra.Command{Use: "doctor", Short: "See what works of an installation, and what to do about what does not", Args: app.Exactly(0)}
	c.Flags().StringVar(&from.data, "data", "", "the installation's folder, where it is on this machine; without it $XDG_STATE_HOME/redoubt")
	c.Flags().StringVar(&from.config, "config", "", "the configuration of any service of the installation on this machine, in place of --data: it says where etcd is")
	c.Flags().StringVar(&from.user, "user", "", "sign in as this user for the time of the command, in place of the session")
	c.Flags().StringVar(&from.passwordFile, "password-file", "", "the file (0600) with his password")
	c.Flags().BoolVar(&lines, "grpcurl", false, "print grpcurl lines for the gateway and every service, with an operator's certificate that is written to --dir")
	c.Flags().StringVar(&dir, "dir", "", "where --grpcurl writes certificate and token; without it a new folder")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx := cmd.Context()
		chosen, err := a.Chosen()
		if err != nil {
			return err
		}
		if from.config == "" {
			if from.data, err = a.dataFolder(from.data); err != nil {
				return err
			}
		}
		if lines {
			return a.grpcurl(ctx, chosen, from, dir)
		}
		d := &diagnosis{now: a.Now}
		v, revision, _ := observe.Build()
		d.ok("this binary", v+" "+revision)
		a.examine(ctx, d, chosen, from)
		if err := a.report(d); err != nil {
			return err
		}
		if d.bad > 0 {
			return &app.Exit{Code: app.ExitRefused, Message: fmt.Sprintf("%d things are wrong", d.bad)}
		}
		return nil
	}
	return c
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

// grpcurl prints what to type to reach every port without this program. Token and key stand in files, not in the lines. A session that is bound to a
// key gets the operator's certificate as any other does, and lines without a token, since grpcurl proves no key: for what answers anybody.
func (a verbs) grpcurl(ctx context.Context, chosen settings.Context, from where, dir string) error {
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
	bearer := !token.Empty()
	if bearer {
		if err := writeFile(filepath.Join(dir, "token"), slices.Concat(token.Reveal(), []byte{'\n'}), 0o600); err != nil {
			return err
		}
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
	header, as, calls := "", "nobody", "grpc.health.v1.Health/Check"
	if bearer {
		header, as, calls = ` -expand-headers -H 'authorization: Bearer ${REDOUBT_TOKEN}'`, c.Context().User, "redoubt.identity.v1.SignInService/WhoAmI"
		_, _ = fmt.Fprintf(a.Out, "cd %s && export REDOUBT_TOKEN=\"$(cat token)\"\n", quoted)
	} else {
		_, _ = fmt.Fprintf(a.Out, "cd %s\n# The session is bound to a key, and grpcurl proves none: these lines reach what answers anybody. For the rest sign in with `redoubt login --ask-password`.\n", quoted)
	}
	gate := "grpcurl -cacert " + caFile + header + " " + u.Host
	_, _ = fmt.Fprintf(a.Out, "\n# the gateway, as %s\n%s list\n%s describe redoubt.identity.v1.SignInService\n%s %s\n", as, gate, gate, gate, calls)
	instances, err := a.instances(ctx, chosen, from)
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
