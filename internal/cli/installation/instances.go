package installation

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	maintenancev1 "github.com/redoubt-ml/redoubt/gen/redoubt/maintenance/v1"
	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/internal/cli/settings"
	"github.com/redoubt-ml/redoubt/internal/cli/show"
	"github.com/redoubt-ml/redoubt/internal/node"
	"github.com/redoubt-ml/redoubt/pkg/authz"
	"github.com/redoubt-ml/redoubt/pkg/config"
	"github.com/redoubt-ml/redoubt/pkg/discovery"
	"github.com/redoubt-ml/redoubt/pkg/fence"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
)

// From where on something is told: tokens and certificates bear clocks that are 30 s apart.
const (
	clockSoon, clockWrong = 2 * time.Second, 10 * time.Second
	diskSoon, diskWrong   = 2 << 30, 200 << 20
	outboxWrong           = 30 * time.Second
)

// where says how an installation's inside is reached: by its folder, or by the configuration of one of its services; and who asks.
type where struct{ data, config, user, passwordFile string }

// examine goes from the outside in: the gateway, etcd, the session, the services.
func (a verbs) examine(ctx context.Context, d *diagnosis, chosen settings.Context, from where) {
	a.examineGateway(ctx, d, chosen)
	instances := a.examineEtcd(ctx, d, chosen, from)
	by, err := a.asker(ctx, chosen, from)
	if err != nil {
		p := client.Describe(err)
		d.wrong("session", p.Message, p.Next)
		return
	}
	if by == nil {
		d.unknown("session", "not signed in", "redoubt login; then the services can be looked at one by one")
		return
	}
	c, err := a.DialBy(chosen, by)
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
	a.examineRoots(ctx, d, identityv1.NewKeyServiceClient(c.Conn()))
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
	var all []*maintenancev1.InstanceStatus
	for _, i := range instances {
		if s := a.examineInstance(ctx, d, m, by, i); s != nil {
			all = append(all, s)
		}
	}
	together(d, all)
}

// asker is what proves whoever asks: of a user who signs in for the time of the command, or of the session.
func (a verbs) asker(ctx context.Context, chosen settings.Context, from where) (credentials.PerRPCCredentials, error) {
	if from.user == "" {
		return a.Credentials(ctx, chosen)
	}
	info, err := os.Stat(from.passwordFile)
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s can be read by others: chmod 600 it", from.passwordFile)
	}
	text, err := os.ReadFile(from.passwordFile)
	if err != nil {
		return nil, err
	}
	c, err := client.Dial(chosen.Client(), redact.Secret{}, a.DialOptions()...)
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }()
	r, err := c.Identity().SignIn(ctx, &identityv1.SignInRequest{User: strings.TrimPrefix(from.user, "users/"), Password: strings.TrimSpace(string(text))})
	if err != nil || r.GetSession() == nil {
		return nil, err
	}
	return client.Bearer(redact.FromString(r.GetSession().GetAccessToken())), nil
}

// examineEtcd looks at etcd's members and at what is registered, and gives the instances.
func (a verbs) examineEtcd(ctx context.Context, d *diagnosis, chosen settings.Context, from where) []discovery.Described {
	r, err := a.registry(chosen, from)
	if err != nil {
		d.unknown("services", client.Describe(err).Message, "on the installation's own machine give its folder with --data, or a service's --config")
		return nil
	}
	defer func() { _ = r.Close() }()
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	for _, m := range r.Members(ctx) {
		what := "etcd at " + strings.TrimPrefix(m.Endpoint, "https://")
		switch {
		case m.Err != nil:
			d.wrong(what, client.Describe(m.Err).Message, "start it; calls go on without etcd, but nothing new is found and no role changes hands")
		case slices.Contains(m.Alarms, "NOSPACE"):
			d.wrong(what, "its database is full, "+show.Bytes(m.Bytes), "nothing new registers: see docs/operations.md, etcd")
		case len(m.Alarms) > 0:
			d.wrong(what, "alarms: "+strings.Join(m.Alarms, ", "), "see docs/operations.md, etcd")
		default:
			role := "follows"
			if m.Leader {
				role = "leads"
			}
			d.ok(what, fmt.Sprintf("%s, version %s, %s", role, m.Version, show.Bytes(m.Bytes)))
		}
	}
	if members, err := fence.List(ctx, r.Client(), ""); err != nil {
		d.wrong("fence", client.Describe(err).Message, "without a quorum of etcd nobody can say who honours which revocations")
	} else {
		aboutFence(d, members)
	}
	list, err := r.Describe(ctx)
	if err != nil {
		d.wrong("services", client.Describe(err).Message, "without a quorum of etcd nobody can say which instances there are")
		return nil
	}
	for _, name := range node.Services {
		if !slices.ContainsFunc(list, func(i discovery.Described) bool { return i.Service == name }) {
			d.wrong(name, "no instance is registered", "start it: redoubt serve "+name+" --config FILE, or see its log")
		}
	}
	slices.SortFunc(list, func(x, y discovery.Described) int {
		return cmp.Or(cmp.Compare(x.Service, y.Service), cmp.Compare(x.Name, y.Name))
	})
	return list
}

// aboutFence judges who decides with which revocations and roles (docs/adr/0028). Services are those that have to be members.
func aboutFence(d *diagnosis, members []fence.Listed) {
	in := make(map[string]bool)
	for _, m := range members {
		what := "fence: " + m.Service + "-" + m.Instance
		at := "has applied all changes" // both are etcd's revisions, and not everything that raises them is a change
		if m.Applied < m.Head {
			at = fmt.Sprintf("has not applied the last change: it is at etcd's revision %d of %d", m.Applied, m.Head)
		}
		switch {
		case m.Lease < 0:
			d.wrong(what, "its lease has ended, and it has not said that it decides nothing any more; "+at, "revocations wait for it: start it again, or stop it for good")
			continue
		case m.Applied < m.Head:
			d.unknown(what, at+", lease "+show.Duration(m.Lease), "a change is on its way; if this stays, see its log")
		default:
			d.ok(what, at+", lease "+show.Duration(m.Lease)+", class "+string(m.Class))
		}
		aboutClass(d, what, m, members)
		in[m.Service] = true
	}
	for _, name := range node.Services {
		if name != rpc.Gateway && !in[name] {
			d.wrong("fence: "+name, "no instance is a member", "it answers nothing until it is: see whether it runs, and its log")
		}
	}
}

// aboutClass says where a member on PostgreSQL is not fenced by its row (docs/adr/0043).
func aboutClass(d *diagnosis, what string, m fence.Listed, members []fence.Listed) {
	const instead = "a commit of it that stands still is waited for by the clock alone: "
	if m.Class == fence.SQL {
		d.unknown(what, instead+"it has no row in its database", "have the database's administrator run postgres.sql again; or it is as service.fence says")
		return
	}
	for _, o := range members {
		if m.Class == fence.SQLFence && o.Lease >= 0 && (o.Service == authz.Identity || o.Service == authz.Workspace) && o.Place != m.Place {
			d.unknown(what, instead+"its row is in another database than that of "+o.Service+"-"+o.Instance+", which cannot take it away", "have all services use one database, each a schema of its own")
			return
		}
	}
}

// examineInstance asks one instance for its health and, of a service with a store, for its status; nil where it gives none.
func (a verbs) examineInstance(ctx context.Context, d *diagnosis, m *member, by credentials.PerRPCCredentials, i discovery.Described) *maintenancev1.InstanceStatus {
	what := i.Service + "-" + i.Name + " at " + i.Addr
	end, err := m.checkHealth(ctx, i.Service, i.Addr)
	if err != nil {
		d.wrong(what, client.Describe(err).Message, "see its log; if it is gone, its registration ends by itself within "+show.Duration(max(i.Lease, 0)))
		return nil
	}
	found := "serving"
	if i.Version != "" {
		found += ", version " + i.Version + " since " + i.Since.Local().Format("2006-01-02 15:04")
	}
	if i.Lease >= 0 {
		found += ", lease " + show.Duration(i.Lease)
	}
	a.certificate(d, what, found, end)
	if i.Service == "gateway" { // it keeps nothing, and decides nothing: there is no more to ask
		return nil
	}
	sent := d.now()
	s, err := m.status(ctx, i.Service, i.Addr, by)
	if err != nil {
		if status.Code(err) == codes.PermissionDenied {
			d.unknown(what, "you may not ask for its status: the action maintenance/status/read is missing", "ask with a role at the installation itself (scope /)")
			return nil
		}
		p := client.Describe(err)
		d.wrong(what, "it gives no status: "+p.Message, p.Next)
		return nil
	}
	aboutInstance(d, what, s, sent, d.now())
	return s
}

// aboutInstance judges what an instance says of itself.
func aboutInstance(d *diagnosis, what string, s *maintenancev1.InstanceStatus, sent, got time.Time) {
	// Its clock against the middle of the call; it may be wrong by half of that.
	off := s.GetNow().AsTime().Sub(sent.Add(got.Sub(sent) / 2)).Round(time.Millisecond)
	switch {
	case off.Abs() > clockWrong:
		d.wrong(what, fmt.Sprintf("its clock is %v off", off), "set the clocks (NTP): tokens and certificates are refused from 30 s on")
	case off.Abs() > clockSoon:
		d.unknown(what, fmt.Sprintf("its clock is %v off", off), "set the clocks (NTP)")
	}
	if e := s.GetStateStale(); e != "" {
		d.wrong(what, e, "it refuses calls: see identity and workspace, and the network to them")
	}
	if e := s.GetEtcdError(); e != "" {
		d.wrong(what, "etcd: "+e, "it serves on, with the peers that it knows")
	}
	st := s.GetStore()
	switch {
	case st.GetError() != "":
		d.wrong(what, "its store: "+st.GetError(), "see its disk or database, and its log")
	case st.GetFreeBytes() < diskWrong:
		d.wrong(what, show.Bytes(st.GetFreeBytes())+" are free in its folder", "make room: it refuses changes when the disk is full")
	case st.GetFreeBytes() < diskSoon:
		d.unknown(what, show.Bytes(st.GetFreeBytes())+" are free in its folder", "make room soon")
	}
	found := fmt.Sprintf("%s, outbox %d, %s of memory", st.GetEngine(), s.GetOutboxDepth(), show.Bytes(s.GetMemoryBytes()))
	if len(s.GetLeads()) > 0 {
		found += ", leads " + strings.Join(s.GetLeads(), " ")
	}
	if t := s.GetOutboxOldestTime(); t != nil && s.GetNow().AsTime().Sub(t.AsTime()) > outboxWrong {
		d.wrong(what, fmt.Sprintf("%d records wait for telemetry, the oldest since %s", s.GetOutboxDepth(), show.Clock(t)), "nothing is lost; see telemetry, and this instance's log for why it refuses")
	} else {
		d.ok(what, found)
	}
	for _, p := range s.GetPeers() {
		if p.GetState() == "TRANSIENT_FAILURE" {
			d.wrong(what, "it cannot reach "+p.GetService(), "is that one running, and is the network between them open?")
		}
	}
}

// together judges what can be seen of all instances alone.
func together(d *diagnosis, all []*maintenancev1.InstanceStatus) {
	versions := make(map[string][]string)
	leaders, asked := make(map[string][]string), make(map[string]bool)
	for _, s := range all {
		name := s.GetService() + "-" + s.GetInstance()
		v := strings.TrimSpace(s.GetVersion() + " " + s.GetRevision())
		versions[v] = append(versions[v], name)
		asked[s.GetService()] = true
		if slices.Contains(s.GetLeads(), "outbox") {
			leaders[s.GetService()] = append(leaders[s.GetService()], name)
		}
	}
	if len(versions) > 1 {
		var list []string
		for v, names := range versions {
			list = append(list, v+": "+strings.Join(names, " "))
		}
		slices.Sort(list)
		d.unknown("versions", strings.Join(list, "; "), "an upgrade is under way? Finish it")
	}
	for _, name := range node.Services {
		if asked[name] && len(leaders[name]) == 0 {
			d.unknown(name, "none of its instances relays its records", "one is elected within seconds; if this stays, see etcd")
		}
		if len(leaders[name]) > 1 {
			d.unknown(name, "more than one instance says that it leads: "+strings.Join(leaders[name], " "), "the older one is refused at its next write; ask again")
		}
	}
}

// status asks one port of the mesh for its status.
func (m *member) status(ctx context.Context, service, addr string, by credentials.PerRPCCredentials) (*maintenancev1.InstanceStatus, error) {
	conn, err := m.connect(service, addr, by)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return maintenancev1.NewStatusServiceClient(conn).GetStatus(ctx, &maintenancev1.GetStatusRequest{})
}

// instances asks etcd which instances there are.
func (a verbs) instances(ctx context.Context, chosen settings.Context, from where) ([]discovery.Described, error) {
	r, err := a.registry(chosen, from)
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return r.Describe(ctx)
}

// registry connects to the installation's etcd with the certificate of one of its services.
func (a verbs) registry(chosen settings.Context, from where) (*discovery.Registry, error) {
	endpoints, cfg, err := a.etcdAccess(chosen, from)
	if err != nil {
		return nil, err
	}
	return discovery.Open(discovery.Config{Endpoints: endpoints, TLS: cfg, Now: a.Now})
}

// etcdAccess says where etcd is and with what it is reached: as a service's configuration says, or, of `redoubt up`, at its place after the public
// port.
func (a verbs) etcdAccess(chosen settings.Context, from where) ([]string, *tls.Config, error) {
	file := from.config
	if file == "" {
		file = serviceFile(from.data)
	}
	if file != "" {
		c, err := config.Load(file, a.settingsEnv(), node.Defaults())
		if err != nil {
			return nil, nil, err
		}
		t, err := node.EtcdClientTLS(c.Mesh.EtcdTLS)
		return c.Mesh.Etcd, t, err
	}
	dir := filepath.Join(from.data, "workspace", "etcd")
	if _, err := os.Stat(dir); err != nil {
		return nil, nil, fmt.Errorf("there is no installation in %s", from.data)
	}
	t, err := node.EtcdClientTLS(dir)
	if err != nil {
		return nil, nil, err
	}
	u, err := url.Parse(chosen.Server)
	if err != nil {
		return nil, nil, err
	}
	ports, err := node.Ports(net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), "443")))
	if err != nil {
		return nil, nil, err
	}
	return []string{"https://" + ports[len(ports)-1].Addr}, t, nil
}

// serviceFile is the configuration of a service in an installation's folder: of separate processes there is one for each.
func serviceFile(data string) string {
	for _, pattern := range []string{"workspace/service.yaml", "workspace-*/service.yaml"} {
		if found, err := filepath.Glob(filepath.Join(data, pattern)); err == nil && len(found) > 0 {
			return found[0]
		}
	}
	return ""
}
