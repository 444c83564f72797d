package matrix

import (
	"fmt"
	"slices"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/internal/node"
	"github.com/redoubt-ml/redoubt/pkg/authz"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
)

// peersThatExchange are the services that carry callers' tokens onward.
var peersThatExchange = []string{"inference", "compute", "telemetry", "workspace", "keyvault"}

// cell is one call that was made, for the check of its record.
type cell struct {
	name      string
	m         method
	c         caller
	want      want
	requestID string
}

// row asks one method.
type row struct {
	f     *fixture
	m     method
	s     spec
	cells *[]cell
	score *score
}

// score counts cells.
type score struct{ tried, failed int }

// run tries one cell.
func (r row) run(t *testing.T, name string, f func(t *testing.T)) {
	t.Helper()
	r.score.tried++
	if !t.Run(name, f) {
		r.score.failed++
	}
}

// B1, B2, A3, A4, G2: who may call what, and what the activity log says of it.
func TestMatrix(t *testing.T) {
	f := live(t)
	rows := methods(t)
	var cells []cell
	var all score
	for _, m := range rows {
		s, known := requests[m.FullName]
		t.Run(m.short, func(t *testing.T) {
			if !known {
				t.Fatalf("%s has no request in the matrix: enter one that succeeds into the registry", m.FullName)
			}
			r := row{f, m, s, &cells, &all}
			switch {
			case m.service == "maintenance":
				r.maintenance(t)
			case len(m.Rule.GetCallers()) > 0:
				r.internal(t)
			case m.Rule.GetPublic():
				r.public(t)
			default:
				r.user(t)
			}
		})
	}
	for name := range requests {
		if !slices.ContainsFunc(rows, func(m method) bool { return m.FullName == name }) {
			t.Errorf("the registry has a request for %s, which no contract has", name)
		}
	}
	t.Run("channelz", func(t *testing.T) { f.channelz(t, &cells, &all) })
	t.Run("records", func(t *testing.T) { f.records(t, cells) })
	t.Run("uses", func(t *testing.T) { f.foreignUses(t, rows) })
	fmt.Printf("matrix: %d methods, %d cells tried, %d failed\n", len(rows), all.tried, all.failed)
}

// ask tries one cell.
func (r row) ask(t *testing.T, name string, req request, c caller, w want) {
	t.Helper()
	r.run(t, name, func(t *testing.T) {
		id, err := r.f.send(t, r.m, req, c)
		expect(t, err, w)
		*r.cells = append(*r.cells, cell{name: t.Name(), m: r.m, c: c, want: w, requestID: id})
	})
}

func expect(t *testing.T, err error, w want) {
	t.Helper()
	if w.code == codes.OK {
		if err != nil {
			t.Errorf("refused: %v", err)
		}
		return
	}
	if err == nil {
		t.Errorf("got OK; want %v %v", w.code, w.reason)
		return
	}
	d := fault.Describe(err)
	switch {
	case fault.Code(err) != w.code || fault.ReasonOf(err) != w.reason:
		t.Errorf("got %v; want %v %v", err, w.code, w.reason)
	case w.action != "" && d.Metadata()["action"] != w.action:
		t.Errorf("the refusal names the action %q, not %q", d.Metadata()["action"], w.action)
	case w.words != "" && d.Message() != w.words:
		t.Errorf("the refusal reads %q, not %q", d.Message(), w.words)
	}
}

// expected is the registry's word for a cell, or else the rule's.
func (r row) expected(cell string, byRule want) want {
	if w, ok := r.s.want[cell]; ok {
		return w
	}
	return byRule
}

// user asks a method that needs a caller.
func (r row) user(t *testing.T) {
	f, rule := r.f, r.m.Rule
	build := func(p *place) request { return r.s.build(t, f, p) }
	// as gives the caller, with credentials of his own where the call uses them up.
	as := func(c caller) caller {
		if r.s.fresh {
			return c.renew(t)
		}
		return c
	}
	allowed := func(req request) caller {
		switch {
		case req.from != nil:
			return *req.from
		case r.s.run:
			return f.ours.run.caller
		}
		return as(f.owner)
	}
	// fresh asks with a request of its own where OK is expected, for it may be good only once.
	req := build(f.ours)
	cell := func(name string, c caller, w want) {
		t.Helper()
		w = r.expected(name, w)
		if w.code == codes.OK {
			r.ask(t, name, build(f.ours), as(c), w)
			return
		}
		r.ask(t, name, req, c, w)
	}
	first := build(f.ours)
	r.ask(t, "allowed", first, allowed(first), r.expected("allowed", ok))
	if r.s.run {
		cell("owner", f.owner, r.byRole(authz.Owner))
	}

	// Who is nobody.
	cell("no token", outside("", nothing), refused(codes.Unauthenticated, faultv1.Reason_TOKEN_MISSING))
	cell("expired token", outside("", bearer(f.expired)), refused(codes.Unauthenticated, faultv1.Reason_TOKEN_EXPIRED))
	cell("forged token", outside("", bearer(f.forged)), refused(codes.Unauthenticated, faultv1.Reason_TOKEN_INVALID))
	x, y, z := r.others()
	cell("token for another service", outside("", bearer(f.exchanged(t, x, z))), refused(codes.Unauthenticated, faultv1.Reason_TOKEN_AUDIENCE))
	cell("token for this service from outside", outside("", bearer(f.exchanged(t, x, r.m.service))), refused(codes.Unauthenticated, faultv1.Reason_TOKEN_AUDIENCE))

	// Who is somebody else.
	cell("contributor", f.contributor, r.byRole(authz.Contributor))
	cell("reader", f.reader, r.byRole(authz.Reader))
	scope, err := r.m.Scope(req.in[0])
	must(t, err)
	switch {
	case rule.GetSelf():
		cell("stranger", f.stranger, ok)
	case scope == "/":
		cell("stranger", f.stranger, missing(rule.GetAction()))
	default:
		cell("stranger", f.stranger, notFound(scope))
		// The same words for what is not there at all.
		ghost := renamed(r.m, req)
		name, err := r.m.Scope(ghost.in[0])
		must(t, err)
		r.ask(t, "stranger, no such resource", ghost, f.stranger, notFoundSilent(name))
		r.ask(t, "allowed, no such resource", ghost, f.owner, notFoundSilent(name))
	}

	// A run's token.
	agent := f.ours.run.caller
	switch {
	case !rule.GetRun():
		cell("run token", agent, refused(codes.PermissionDenied, faultv1.Reason_AUTHZ_OUTSIDE_RUN))
	case rule.GetSelf():
		cell("run token", agent, ok)
	default:
		own := build(f.ours)
		if own.from == nil {
			r.ask(t, "run token", own, agent, ok)
		}
		other := build(f.beside)
		scope, err := r.m.Scope(other.in[0])
		must(t, err)
		r.ask(t, "run token of another run", other, agent, notFound(scope))
	}
	cell("stolen run token", outside("", bearer(f.ours.run.token)), refused(codes.Unauthenticated, faultv1.Reason_TOKEN_PROOF_INVALID))
	cell("stolen run token, the thief's key", outside("", dpop(f.ours.run.token, prover(t))), refused(codes.Unauthenticated, faultv1.Reason_TOKEN_PROOF_INVALID))

	// Another service's certificate.
	cell("service without a token", f.service(t, x, nothing), refused(codes.Unauthenticated, faultv1.Reason_TOKEN_MISSING))
	cell("service with the caller's own token", f.service(t, x, bearer(mesh.Admin(t))), refused(codes.Unauthenticated, faultv1.Reason_TOKEN_AUDIENCE))
	cell("service with another one's token", f.service(t, x, bearer(f.exchanged(t, y, r.m.service))), refused(codes.Unauthenticated, faultv1.Reason_PEER_MAY_NOT_FORWARD))

	// An operator's certificate.
	operator := func(uid, token string) caller {
		return f.peer(t, "operator", f.owner.uid, f.operator, uid, bearer(token))
	}
	own := operator(f.owner.uid, mesh.Admin(t))
	own.renew = func(t *testing.T) caller { return operator(f.owner.uid, signIn(t, "admin", mesh.Password())) }
	cell("operator", own, ok)
	cell("operator with another one's token", f.peer(t, "operator", f.owner.uid, f.operator, "", f.reader.auth), refused(codes.Unauthenticated, faultv1.Reason_PEER_MAY_NOT_FORWARD))

	// The very request that all those were refused.
	r.ask(t, "allowed in the end", req, allowed(req), r.expected("allowed in the end", ok))
}

// others are two services that exchange tokens and are not this one, and a third one's name.
func (r row) others() (x, y, z string) {
	var out []string
	for _, s := range peersThatExchange {
		if s != r.m.service {
			out = append(out, s)
		}
	}
	return out[0], out[1], out[2]
}

// byRole is what somebody gets who holds a built-in role at the installation.
func (r row) byRole(role string) want {
	i := slices.IndexFunc(authz.BuiltinRoles(), func(d *workspacev1.RoleDefinition) bool { return d.GetName() == role })
	def, rule := authz.BuiltinRoles()[i], r.m.Rule
	if rule.GetSelf() {
		return ok
	}
	if !authz.RoleAllows(def, rule.GetAction(), rule.GetData()) {
		return missing(rule.GetAction())
	}
	for _, u := range rule.GetUses() {
		if !authz.RoleAllows(def, u.GetAction(), u.GetData()) {
			return missing(u.GetAction())
		}
	}
	return ok
}

// notFound is the one text for what is absent and for what is hidden.
func notFound(name string) want {
	return want{code: codes.NotFound, reason: faultv1.Reason_RESOURCE_NOT_FOUND, words: name + " does not exist, or you may not see it"}
}

func notFoundSilent(name string) want {
	w := notFound(name)
	w.silent = true // nothing is there that could be denied
	return w
}

// public asks a method that needs nobody: it succeeds whatever token is sent, and refuses what its handler knows to be wrong.
func (r row) public(t *testing.T) {
	f := r.f
	at := func(req request, c caller) caller {
		if r.s.conn != nil {
			c.peer, c.conn = "", req.from.conn
		}
		return c
	}
	if r.s.build != nil {
		for _, c := range []struct{ name, token string }{{"allowed", ""}, {"expired token", f.expired}, {"forged token", f.forged}, {"allowed again", ""}} {
			req := r.s.build(t, f, f.ours)
			auth := nothing
			if c.token != "" {
				auth = bearer(c.token)
			}
			r.ask(t, c.name, req, at(req, outside("", auth)), ok)
		}
	}
	for name, b := range r.s.bad {
		req := b.build(t, f)
		r.ask(t, name, req, at(req, outside("", nothing)), b.want)
	}
	if r.s.conn != nil { // neither the gateway nor the mesh port has it
		req := r.s.build(t, f, f.ours)
		r.unknown(t, "through the gateway", req, outside(f.owner.uid, bearer(mesh.Admin(t))))
		r.unknown(t, "at the mesh port", req, f.service(t, "workspace", nothing))
	}
}

// unknown asks where the method does not exist.
func (r row) unknown(t *testing.T, name string, req request, c caller) {
	t.Helper()
	r.run(t, name, func(t *testing.T) {
		_, err := r.f.send(t, r.m, req, c)
		expect(t, err, refused(codes.Unimplemented, faultv1.Reason_METHOD_UNKNOWN))
	})
}

// internal asks a method for services of the mesh.
func (r row) internal(t *testing.T) {
	f, allowed := r.f, r.m.Rule.GetCallers()
	every := slices.Contains(allowed, "*")
	if every {
		allowed = []string{"identity", "workspace"}
	}
	req := r.s.peer(t, f, allowed[0])
	for _, s := range allowed {
		r.ask(t, "allowed "+s, r.s.peer(t, f, s), f.service(t, s, nothing), ok)
	}
	no := refused(codes.PermissionDenied, faultv1.Reason_PEER_NOT_ALLOWED)
	for _, s := range node.Services {
		if !slices.Contains(allowed, s) && (s == rpc.Gateway || !every) {
			r.ask(t, "service "+s, req, f.service(t, s, nothing), no)
			r.ask(t, "service "+s+" with the owner's token", req, f.service(t, s, bearer(mesh.Admin(t))), no)
		}
	}
	r.ask(t, "operator", req, f.peer(t, "operator", f.owner.uid, f.operator, "", bearer(mesh.Admin(t))), no)
	for name, c := range map[string]caller{"owner through the gateway": f.owner, "run token through the gateway": f.ours.run.caller, "nobody through the gateway": outside("", nothing)} {
		r.unknown(t, name, req, c)
	}
	r.ask(t, "allowed in the end", req, f.service(t, allowed[0], nothing), ok)
}

// foreignUses asks for what a request only refers to, in a workspace of the caller's own: the stranger may do everything in his, and
// learns nothing of ours (B2).
func (f *fixture) foreignUses(t *testing.T, rows []method) {
	for _, m := range rows {
		for _, u := range m.Rule.GetUses() {
			t.Run(m.short+" "+u.GetField(), func(t *testing.T) {
				s, known := requests[m.FullName]
				if !known {
					t.Fatal("no request in the matrix")
				}
				mine := s.build(t, f, f.theirs)
				hidden, fd := field(s.build(t, f, f.ours).in[0], u.GetField())
				var name string
				if fd.IsList() {
					name = hidden.Get(fd).List().Get(0).String()
				} else {
					name = hidden.Get(fd).String()
				}
				for _, name := range []string{name, elsewhere(name)} {
					changed := proto.Clone(mine.in[0])
					at, fd := field(changed, u.GetField())
					if fd.IsList() { // all or nothing: the last of several counts as much
						at.Mutable(fd).List().Append(protoreflect.ValueOfString(name))
					} else {
						at.Set(fd, protoreflect.ValueOfString(name))
					}
					_, err := f.send(t, m, one(changed), f.stranger)
					expect(t, err, notFound(name))
				}
				_, err := f.send(t, m, mine, f.stranger)
				expect(t, err, ok)
			})
		}
	}
}
