package authz

import (
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
)

func TestNothingIsDecidedWithoutState(t *testing.T) {
	c := &clock{time.Unix(1e9, 0)}
	e := New(Config{Now: c.now})
	root := Scope{Name: resource.RootName(), Active: true}
	q := Query{Principal: "usr_1", Action: "a/b/read", Scope: root}
	if d := e.Decide(q); d.Allowed || d.MayKnow || d.Reason != faultv1.Reason_AUTHZ_STATE_STALE {
		t.Errorf("%+v", d)
	}
	// Half of a full state is none.
	err := e.ApplyAuthorization(&workspacev1.WatchAuthorizationResponse{Seq: 1, Reset_: true, Roles: BuiltinRoles(), Assignments: []*workspacev1.AssignmentRecord{assigned("asg_1", "/", Owner, "usr_1")}})
	if err != nil {
		t.Fatal(err)
	}
	if d := e.Decide(q); d.Allowed {
		t.Errorf("%+v", d)
	}
	if err := e.Fresh(c.t); !fault.Is(err, codes.Unavailable) {
		t.Errorf("%v", err)
	}
	if err := e.ApplyAuthorization(&workspacev1.WatchAuthorizationResponse{Seq: 1, Complete: true}); err != nil {
		t.Fatal(err)
	}
	if d := e.Decide(q); !d.Allowed {
		t.Errorf("%+v", d)
	}
	if err := e.Fresh(c.t); fault.ReasonOf(err) != faultv1.Reason_AUTHZ_STATE_STALE || e.Revocations().Fresh(c.t) == nil {
		t.Errorf("fresh without identity's stream: %v", err)
	}
}

func TestRemoval(t *testing.T) {
	f := engine(t, assigned("asg_1", ws1, Owner, "usr_1"), assigned("asg_2", grp1, Owner, "usr_2"), assigned("asg_3", sub1, Owner, "usr_3"), assigned("asg_4", ws4, Owner, "usr_1"))
	f.change(&workspacev1.WatchAuthorizationResponse{Removed: []string{"rgp_1", "rgp_unknown"}})
	for _, name := range []string{grp1, ws1, ws2, ws1 + "/runs/r1"} {
		if s, ok := f.Resolve(parsed(t, name)); ok {
			t.Errorf("%s is still there: %+v", name, s)
		}
	}
	for _, name := range []string{sub1, grp2, ws3, ws4} {
		f.scope(name)
	}
	if d := f.ask("usr_1", "a/b/read", ws4); !d.Allowed {
		t.Errorf("what is elsewhere went too: %+v", d)
	}
	// Even the same uid brings no assignment back.
	f.change(&workspacev1.WatchAuthorizationResponse{Scopes: []*workspacev1.ScopeRecord{record(grp1, true), record(ws1, true)}})
	for _, who := range []string{"usr_1", "usr_2"} {
		if d := f.ask(who, "compute/runs/submit", ws1); d.Allowed {
			t.Errorf("%s: %+v", who, d)
		}
	}
	f.change(&workspacev1.WatchAuthorizationResponse{Removed: []string{"rgp_1"}})
	// The names are used again, by others: nothing is inherited, and an old Scope does not come back to life (B2).
	old := Scope{Name: parsed(t, ws1), UID: "ws_1", WorkspaceUID: "ws_1", Active: true}
	f.change(&workspacev1.WatchAuthorizationResponse{Scopes: []*workspacev1.ScopeRecord{
		{Uid: "ws_1b", Name: ws1, ParentUid: "rgp_1b", Active: true}, {Uid: "rgp_1b", Name: grp1, ParentUid: "sub_1", Active: true},
	}})
	if s := f.scope(ws1); s.UID != "ws_1b" || s.WorkspaceUID != "ws_1b" || s.ResourceGroupUID != "rgp_1b" || s.SubscriptionUID != "sub_1" {
		t.Errorf("%+v", s)
	}
	for who, want := range map[string]bool{"usr_1": false, "usr_2": false, "usr_3": true} {
		if d := f.ask(who, "compute/runs/submit", ws1); d.Allowed != want {
			t.Errorf("%s: %+v", who, d)
		}
		if d := f.Decide(Query{Principal: who, Action: "compute/runs/submit", Scope: old}); d.Allowed {
			t.Errorf("%s at the old scope: %+v", who, d)
		}
	}
}

// TestAFullStateReplacesAll: what it does not hold is gone, what it holds again is there again.
func TestAFullStateReplacesAll(t *testing.T) {
	same := []*workspacev1.AssignmentRecord{assigned("asg_1", ws1, Owner, "usr_1"), assigned("asg_2", sub1, Contributor, "grp_1"), assigned("asg_3", sub1, "roleDefinitions/mine", "usr_3")}
	f := engine(t, same...)
	f.members("grp_1", "usr_2")
	f.change(&workspacev1.WatchAuthorizationResponse{Roles: []*workspacev1.RoleDefinition{{Name: "roleDefinitions/mine", Actions: []string{"*"}}}})
	whole := func(m *workspacev1.WatchAuthorizationResponse) {
		t.Helper()
		f.auth += 10
		m.Seq, m.Reset_, m.Complete = f.auth, true, true
		f.must(f.ApplyAuthorization(m))
	}
	check := func(one, two, three bool) {
		t.Helper()
		for who, want := range map[string]bool{"usr_1": one, "usr_2": two, "usr_3": three} {
			if d := f.ask(who, "compute/runs/submit", ws1); d.Allowed != want {
				t.Errorf("%s: %+v", who, d)
			}
		}
	}
	check(true, true, true)
	whole(&workspacev1.WatchAuthorizationResponse{Scopes: wholeTree(), Roles: BuiltinRoles(), Assignments: same})
	check(true, true, false) // the role is gone
	f.id += 10
	f.must(f.ApplySecurity(&identityv1.WatchSecurityResponse{Seq: f.id, Reset_: true, Complete: true, Groups: []*identityv1.GroupMembers{{GroupUid: "grp_1", MemberUids: []string{"usr_2"}}}}))
	check(true, true, false)
	whole(&workspacev1.WatchAuthorizationResponse{Scopes: wholeTree(), Roles: BuiltinRoles(), Assignments: same[1:]})
	check(false, true, false)
	old := f.scope(ws1)
	whole(&workspacev1.WatchAuthorizationResponse{Roles: BuiltinRoles(), Assignments: same})
	if d := f.Decide(Query{Principal: "usr_1", Action: "compute/runs/submit", Scope: old}); d.Allowed {
		t.Errorf("%+v", d)
	}
	if s, ok := f.Resolve(parsed(t, ws1)); ok {
		t.Errorf("a scope that is gone is there: %+v", s)
	}
	whole(&workspacev1.WatchAuthorizationResponse{Scopes: wholeTree(), Roles: BuiltinRoles(), Assignments: same})
	check(true, true, false)
}

func TestRevocations(t *testing.T) {
	f := engine(t)
	r := f.Revocations()
	at := f.clock.t
	stamp := timestamppb.New
	later := stamp(at.Add(time.Hour))
	f.secure(&identityv1.WatchSecurityResponse{Revocations: []*identityv1.Revocation{
		{Jti: "j1", ExpireTime: later}, {Sid: "s1", ExpireTime: later}, {RunUid: "run_1", ExpireTime: later},
		{Subject: "usr_1", IssuedUntil: stamp(at), ExpireTime: later}, {Subject: "usr_all", ExpireTime: later},
	}})
	cases := []struct {
		name               string
		sub, sid, jti, run string
		anc                []string
		issued             time.Time
		want               bool
	}{
		{name: "nothing", want: false},
		{name: "others", sub: "usr_2", sid: "s2", jti: "j2", run: "run_2", anc: []string{"j3", ""}, issued: at},
		{name: "token", jti: "j1", want: true},
		{name: "token in upper case", jti: "J1"},
		{name: "session", sid: "s1", want: true},
		{name: "run", run: "run_1", want: true},
		{name: "id of another kind", sub: "j1", sid: "j1", jti: "s1", run: "s1", anc: []string{"run_1", "s1"}, issued: at.Add(1)},
		{name: "ancestor", jti: "j9", anc: []string{"a", "j1"}, want: true},
		{name: "last of eight ancestors", jti: "j9", anc: []string{"a", "b", "c", "d", "e", "f", "g", "j1"}, want: true},
		{name: "subject before", sub: "usr_1", issued: at.Add(-time.Hour), want: true},
		{name: "subject at that time", sub: "usr_1", issued: at, want: true},
		{name: "subject after", sub: "usr_1", issued: at.Add(time.Microsecond)},
		{name: "subject whose token has no time", sub: "usr_1", want: true},
		{name: "subject without bound", sub: "usr_all", issued: at.Add(time.Hour), want: true},
	}
	for _, c := range cases {
		if got := r.Revoked(c.sub, c.sid, c.jti, c.run, c.anc, c.issued); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
	anc := []string{"a", "b", "c", "d", "e", "f", "g", "h"}
	if n := testing.AllocsPerRun(100, func() { r.Revoked("usr_1", "s", "j", "run", anc, at); r.Epoch() }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// What a key has signed is revoked by the key's name, and every change of keys is a reason to fetch them again (A3).
func TestKeysAreRevoked(t *testing.T) {
	f := engine(t)
	r := f.Revocations()
	epoch, keys := r.Epoch(), r.KeysEpoch()
	f.secure(&identityv1.WatchSecurityResponse{KeysChanged: true})
	if r.KeysEpoch() == keys || r.KeyRevoked("k1") || r.KeyRevoked("") {
		t.Error("a change of keys without a revocation")
	}
	keys = r.KeysEpoch()
	f.secure(&identityv1.WatchSecurityResponse{KeysChanged: true, Revocations: []*identityv1.Revocation{{KeyId: "k1", ExpireTime: timestamppb.New(f.clock.t.Add(time.Hour))}}})
	if !r.KeyRevoked("k1") || r.KeyRevoked("K1") || r.KeyRevoked("k2") || r.KeyRevoked("") {
		t.Error("not just k1 is revoked")
	}
	if r.Epoch() == epoch || r.KeysEpoch() == keys {
		t.Error("nobody would ask again")
	}
	if r.Revoked("k1", "k1", "k1", "k1", []string{"k1"}, f.clock.t) {
		t.Error("a key's name was taken for another's")
	}
	keys = r.KeysEpoch()
	f.must(f.ApplySecurity(&identityv1.WatchSecurityResponse{Seq: 900, Reset_: true, Complete: true}))
	if r.KeysEpoch() == keys {
		t.Error("who starts over has missed no change of keys")
	}
}

// A4: what a run may deliver is said of it by a mark that is only ever narrowed; none, an old one and one that makes no sense are none.
func TestRunsDeliver(t *testing.T) {
	at := engine(t).clock.t
	until := func(d time.Duration) *timestamppb.Timestamp { return timestamppb.New(at.Add(d)) }
	for name, tc := range map[string]struct {
		marks []*timestamppb.Timestamp
		want  time.Duration // 0 is none
	}{
		"none":                     {[]*timestamppb.Timestamp{nil}, 0},
		"one":                      {[]*timestamppb.Timestamp{until(time.Minute)}, time.Minute},
		"a later one":              {[]*timestamppb.Timestamp{until(time.Minute), until(time.Hour)}, time.Minute},
		"an earlier one":           {[]*timestamppb.Timestamp{until(time.Minute), until(time.Second)}, time.Second},
		"then the end":             {[]*timestamppb.Timestamp{until(time.Minute), nil}, 0},
		"after the end":            {[]*timestamppb.Timestamp{nil, until(time.Minute)}, 0},
		"one that is no time":      {[]*timestamppb.Timestamp{{Seconds: 1 << 60}}, 0},
		"then one that is no time": {[]*timestamppb.Timestamp{until(time.Minute), {Nanos: -1}}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			f := engine(t)
			r := f.Revocations()
			for _, m := range tc.marks {
				epoch := r.Epoch()
				f.secure(&identityv1.WatchSecurityResponse{Revocations: []*identityv1.Revocation{{RunUid: "run_1", ExpireTime: until(24 * time.Hour), DeliverUntil: m}}})
				if r.Epoch() == epoch {
					t.Error("nobody would ask again")
				}
			}
			if !r.Revoked("", "", "", "run_1", nil, at) {
				t.Error("a run that delivers passes for one that goes on")
			}
			want := time.Time{}
			if tc.want > 0 {
				want = at.Add(tc.want)
			}
			if got := r.DeliversUntil("run_1"); !got.Equal(want) {
				t.Errorf("until %v, want %v", got, want)
			}
			if !r.DeliversUntil("run_2").IsZero() || !r.DeliversUntil("").IsZero() {
				t.Error("another run delivers")
			}
		})
	}
	// A mark on anything but a run means nothing.
	f := engine(t)
	f.secure(&identityv1.WatchSecurityResponse{Revocations: []*identityv1.Revocation{{Sid: "run_1", DeliverUntil: until(time.Minute)}}})
	if !f.Revocations().DeliversUntil("run_1").IsZero() || !f.Revocations().Revoked("", "run_1", "", "", nil, at) {
		t.Error("a session delivers")
	}
}

func TestRevocationsAreWidenedAndForgotten(t *testing.T) {
	f := engine(t)
	r := f.Revocations()
	at := f.clock.t
	stamp := timestamppb.New
	epochs := map[uint64]bool{r.Epoch(): true}
	revoke := func(v *identityv1.Revocation) {
		t.Helper()
		f.secure(&identityv1.WatchSecurityResponse{Revocations: []*identityv1.Revocation{v}})
		if epochs[r.Epoch()] {
			t.Error("the epoch has not changed")
		}
		epochs[r.Epoch()] = true
	}
	subject := func(until, expire time.Duration) *identityv1.Revocation {
		return &identityv1.Revocation{Subject: "usr_1", IssuedUntil: stamp(at.Add(until)), ExpireTime: stamp(at.Add(expire))}
	}
	revoke(subject(time.Minute, time.Hour))
	revoke(subject(-time.Minute, 2*time.Hour)) // an earlier bound takes nothing back
	revoke(subject(0, time.Minute))            // nor does an earlier end
	revoke(&identityv1.Revocation{Jti: "short", ExpireTime: stamp(at.Add(time.Minute))})
	revoke(&identityv1.Revocation{Jti: "ever"})
	if !r.Revoked("usr_1", "", "", "", nil, at.Add(time.Minute)) {
		t.Error("a revocation was narrowed")
	}
	heartbeat := func(after time.Duration) {
		t.Helper()
		f.clock.t = at.Add(after)
		f.must(f.ApplySecurity(&identityv1.WatchSecurityResponse{Seq: f.id, Heartbeat: true}))
	}
	short := func(want bool) {
		t.Helper()
		if got := r.Revoked("", "", "short", "", nil, at); got != want {
			t.Errorf("%v after %v", got, f.clock.t.Sub(at))
		}
	}
	heartbeat(time.Minute)
	short(true)
	heartbeat(2 * time.Minute) // for clocks that are behind
	short(true)
	epoch := r.Epoch()
	heartbeat(4 * time.Minute)
	short(false)
	if r.Epoch() != epoch {
		t.Error("forgetting voids caches")
	}
	heartbeat(90 * time.Minute)
	if !r.Revoked("usr_1", "", "", "", nil, at) || !r.Revoked("", "", "ever", "", nil, at) {
		t.Error("one that still matters is forgotten")
	}
	// A full state without them: gone, and cached verdicts are void.
	f.id = 99
	f.must(f.ApplySecurity(&identityv1.WatchSecurityResponse{Seq: f.id, Reset_: true, Complete: true}))
	if r.Revoked("usr_1", "", "", "", nil, at) || r.Epoch() == epoch {
		t.Error("a full state did not replace the old one")
	}
}

func TestFresh(t *testing.T) {
	f := engine(t)
	at := f.clock.t
	fresh := func(after time.Duration, want, security bool) {
		t.Helper()
		err := f.Fresh(at.Add(after))
		if (err == nil) != want || err != nil && (fault.ReasonOf(err) != faultv1.Reason_AUTHZ_STATE_STALE || !fault.Is(err, codes.Unavailable)) {
			t.Errorf("after %v: %v", after, err)
		}
		if err := f.Revocations().Fresh(at.Add(after)); (err == nil) != security {
			t.Errorf("revocations after %v: %v", after, err)
		}
	}
	fresh(0, true, true)
	fresh(10*time.Second, true, true)
	fresh(10*time.Second+1, false, false)
	fresh(-10*time.Second-1, false, false)
	f.clock.t = at.Add(5 * time.Second)
	f.must(f.ApplySecurity(&identityv1.WatchSecurityResponse{Seq: f.id, Heartbeat: true}))
	fresh(12*time.Second, false, true) // workspace is silent
	f.must(f.ApplyAuthorization(&workspacev1.WatchAuthorizationResponse{Seq: f.auth, Heartbeat: true}))
	fresh(12*time.Second, true, true)
	f.clock.t = at.Add(8 * time.Second)
	f.change(&workspacev1.WatchAuthorizationResponse{}) // a change is a sign of life
	fresh(16*time.Second, false, false)
	f.members("grp_1")
	fresh(16*time.Second, true, true)
	// What was missed is not: the stream lives, and its state is old.
	f.clock.t = at.Add(20 * time.Second)
	if f.ApplyAuthorization(&workspacev1.WatchAuthorizationResponse{Seq: f.auth + 1, Heartbeat: true}) == nil {
		t.Error("a gap passes")
	}
	if f.ApplyAuthorization(&workspacev1.WatchAuthorizationResponse{Seq: f.auth, Heartbeat: true}) == nil {
		t.Error("the stream goes on after a gap")
	}
	fresh(20*time.Second, false, false)

	own := New(Config{Now: f.clock.now, OwnAuthorization: true, OwnSecurity: true})
	if own.Fresh(at) == nil {
		t.Error("fresh with nothing")
	}
	_ = own.ApplyAuthorization(&workspacev1.WatchAuthorizationResponse{Reset_: true, Complete: true})
	_ = own.ApplySecurity(&identityv1.WatchSecurityResponse{Reset_: true, Complete: true})
	if err := own.Fresh(at.Add(time.Hour * 1000)); err != nil {
		t.Error(err)
	}
}

// TestOrder goes through what a stream may and may not send.
func TestOrder(t *testing.T) {
	type m struct {
		seq          uint64
		reset, whole bool
		heartbeat    bool
		ok           bool
	}
	cases := []struct {
		name string
		in   []m
	}{
		{"one message", []m{{1, true, true, false, true}, {2, false, false, false, true}, {2, false, false, true, true}, {3, false, false, false, true}}},
		{"several of one number", []m{{5, true, false, false, true}, {5, false, false, false, true}, {5, false, true, false, true}, {6, false, false, false, true}}},
		{"several that count", []m{{5, true, false, false, true}, {6, false, false, false, true}, {7, false, true, false, true}, {8, false, false, false, true}}},
		{"a heartbeat while loading", []m{{5, true, false, false, true}, {5, false, false, true, true}, {5, false, true, false, true}}},
		{"from number 0", []m{{0, true, true, false, true}, {0, false, false, true, true}, {1, false, false, false, true}}},
		{"a change first", []m{{1, false, false, false, false}}},
		{"a heartbeat first", []m{{0, false, false, true, false}}},
		{"complete without a beginning", []m{{1, false, true, false, false}}},
		{"a gap", []m{{1, true, true, false, true}, {3, false, false, false, false}, {2, false, false, false, false}, {3, true, true, false, true}}},
		{"a gap while loading", []m{{1, true, false, false, true}, {3, false, true, false, false}, {1, false, true, false, false}}},
		{"twice", []m{{1, true, true, false, true}, {2, false, false, false, true}, {2, false, false, false, false}}},
		{"back", []m{{5, true, true, false, true}, {4, false, false, false, false}}},
		{"a heartbeat ahead", []m{{5, true, true, false, true}, {6, false, false, true, false}}},
		{"a heartbeat behind", []m{{5, true, true, false, true}, {4, false, false, true, false}}},
		{"a heartbeat that resets", []m{{5, true, true, true, false}, {5, true, true, false, true}}},
		{"around the end", []m{{1<<64 - 1, true, true, false, true}, {0, false, false, false, true}}},
		{"over again while loading", []m{{5, true, false, false, true}, {9, true, false, false, true}, {9, false, true, false, true}}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			e := New(Config{})
			for i, x := range c.in {
				a := e.ApplyAuthorization(&workspacev1.WatchAuthorizationResponse{Seq: x.seq, Reset_: x.reset, Complete: x.whole, Heartbeat: x.heartbeat})
				s := e.ApplySecurity(&identityv1.WatchSecurityResponse{Seq: x.seq, Reset_: x.reset, Complete: x.whole, Heartbeat: x.heartbeat})
				if (a == nil) != x.ok || (s == nil) != x.ok {
					t.Fatalf("message %d: %v, %v", i, a, s)
				}
			}
		})
	}
}

// TestMalformedRecords: the message is refused, the state stays, and only a full state helps.
func TestMalformedRecords(t *testing.T) {
	w := func(name, uid, parent string) *workspacev1.WatchAuthorizationResponse {
		return &workspacev1.WatchAuthorizationResponse{Scopes: []*workspacev1.ScopeRecord{{Uid: uid, Name: name, ParentUid: parent, Active: true}}}
	}
	cases := map[string]*workspacev1.WatchAuthorizationResponse{
		"scope without uid":          w(grp1+"/workspaces/w9", "", "rgp_1"),
		"scope without name":         w("", "ws_9", "rgp_1"),
		"scope with a bad name":      w(grp1+"/workspaces/W9", "ws_9", "rgp_1"),
		"scope of another kind":      w(ws1+"/runs/r1", "run_9", "ws_1"),
		"the installation":           w("/", "root", ""),
		"a user":                     w("users/ada", "usr_9", ""),
		"parent not known":           w(grp1+"/workspaces/w9", "ws_9", "rgp_9"),
		"parent of another name":     w(grp1+"/workspaces/w9", "ws_9", "rgp_2"),
		"parent of another kind":     w(grp1+"/workspaces/w9", "ws_9", "sub_1"),
		"no parent":                  w(grp1+"/workspaces/w9", "ws_9", ""),
		"its own parent":             w(grp1+"/workspaces/w9", "ws_9", "ws_9"),
		"renamed":                    w(grp1+"/workspaces/w9", "ws_1", "rgp_1"),
		"moved":                      w(ws3, "ws_1", "rgp_2"),
		"name that is taken":         w(ws1, "ws_9", "rgp_1"),
		"removed and there":          {Scopes: []*workspacev1.ScopeRecord{record(ws1, true)}, Removed: []string{"ws_1"}},
		"assignment removed, there":  {Assignments: []*workspacev1.AssignmentRecord{assigned("asg_9", ws1, Owner, "usr_9")}, Removed: []string{"asg_9"}},
		"removed nothing":            {Removed: []string{""}},
		"assignment without uid":     {Assignments: []*workspacev1.AssignmentRecord{assigned("", ws1, Owner, "usr_9")}},
		"assignment without role":    {Assignments: []*workspacev1.AssignmentRecord{assigned("asg_9", ws1, "", "usr_9")}},
		"assignment to nobody":       {Assignments: []*workspacev1.AssignmentRecord{assigned("asg_9", ws1, Owner, "")}},
		"role without name":          {Roles: []*workspacev1.RoleDefinition{{Actions: []string{"*"}}}},
		"good beside what is wrong":  {Assignments: []*workspacev1.AssignmentRecord{assigned("asg_9", ws1, Owner, "usr_9"), assigned("asg_8", ws1, Owner, "")}},
		"removal beside what is not": {Removed: []string{"ws_1", ""}},
	}
	for name, bad := range cases {
		t.Run(name, func(t *testing.T) {
			f := engine(t, assigned("asg_1", ws1, Owner, "usr_1"))
			version, _ := f.Version()
			bad.Seq = f.auth + 1
			if f.ApplyAuthorization(bad) == nil {
				t.Fatal("it is taken")
			}
			if v, _ := f.Version(); v != version {
				t.Error("the state has changed")
			}
			if !f.ask("usr_1", "a/b/read", ws1).Allowed || f.ask("usr_9", "a/b/read", ws1).Allowed {
				t.Error("half of it was taken")
			}
			if f.ApplyAuthorization(&workspacev1.WatchAuthorizationResponse{Seq: f.auth + 2}) == nil {
				t.Error("the stream goes on")
			}
		})
	}
	security := map[string]*identityv1.WatchSecurityResponse{
		"group without uid":        {Groups: []*identityv1.GroupMembers{{MemberUids: []string{"usr_1"}}}},
		"revocation of nothing":    {Revocations: []*identityv1.Revocation{{}}},
		"revocation of two things": {Revocations: []*identityv1.Revocation{{Jti: "a", Sid: "b"}}},
	}
	for name, bad := range security {
		t.Run(name, func(t *testing.T) {
			f := engine(t)
			epoch := f.Revocations().Epoch()
			bad.Seq = f.id + 1
			if f.ApplySecurity(bad) == nil || f.Revocations().Epoch() != epoch || f.Revocations().Revoked("", "b", "a", "", nil, f.clock.t) {
				t.Error("it is taken")
			}
			if f.ApplySecurity(&identityv1.WatchSecurityResponse{Seq: f.id + 2}) == nil {
				t.Error("the stream goes on")
			}
		})
	}
}

func TestRolesChange(t *testing.T) {
	f := engine(t, assigned("asg_1", ws1, "roleDefinitions/mine", "usr_1"))
	const action = "compute/runs/submit"
	for i, c := range []struct {
		def  *workspacev1.RoleDefinition
		want bool
	}{
		{nil, false},
		{&workspacev1.RoleDefinition{Actions: []string{"compute/runs/*"}}, true},
		{&workspacev1.RoleDefinition{Actions: []string{"COMPUTE/Runs/Submit"}}, true},
		{&workspacev1.RoleDefinition{Actions: []string{"*"}, NotActions: []string{"*/Submit"}}, false},
		{&workspacev1.RoleDefinition{DataActions: []string{"*"}}, false},
		{&workspacev1.RoleDefinition{Actions: []string{"*"}, NotDataActions: []string{"*"}}, true},
		{&workspacev1.RoleDefinition{Actions: []string{"*"}, NotActions: []string{"\u212a"}}, false},    // cannot be read: gives nothing
		{&workspacev1.RoleDefinition{Actions: []string{"*", ""}}, false},                                // nor this
		{&workspacev1.RoleDefinition{Actions: slices.Repeat([]string{"*"}, MaxPatterns+1)}, false},      // nor this
		{&workspacev1.RoleDefinition{Actions: []string{strings.Repeat("*", MaxPatternBytes+1)}}, false}, // nor this
		{&workspacev1.RoleDefinition{Actions: []string{"compute/runs/\u017fubmit"}}, false},             // long s
		{&workspacev1.RoleDefinition{Actions: []string{strings.Repeat("*", MaxPatternBytes)}}, true},
	} {
		if c.def != nil {
			c.def.Name = "roleDefinitions/mine"
			f.change(&workspacev1.WatchAuthorizationResponse{Roles: []*workspacev1.RoleDefinition{c.def}})
		}
		if d := f.ask("usr_1", action, ws1); d.Allowed != c.want {
			t.Errorf("%d: %+v", i, d)
		}
	}
	// Two roles add up; the not-list of one takes nothing from the other.
	f.change(&workspacev1.WatchAuthorizationResponse{
		Roles:       []*workspacev1.RoleDefinition{{Name: "roleDefinitions/mine", Actions: []string{"*"}, NotActions: []string{"compute/*"}}, {Name: "roleDefinitions/other", Actions: []string{action}}},
		Assignments: []*workspacev1.AssignmentRecord{assigned("asg_2", sub1, "roleDefinitions/other", "usr_1")},
	})
	if d := f.ask("usr_1", action, ws1); !d.Allowed || d.Assignment != "asg_2" {
		t.Errorf("%+v", d)
	}
	// An assignment can change its place; the old place is left.
	f.change(&workspacev1.WatchAuthorizationResponse{Assignments: []*workspacev1.AssignmentRecord{assigned("asg_2", ws4, "roleDefinitions/other", "usr_2")}})
	if f.ask("usr_1", action, ws1).Allowed || !f.ask("usr_2", action, ws4).Allowed || f.ask("usr_1", action, ws4).Allowed {
		t.Error("an assignment that changed is at two places, or none")
	}
}

func TestVersion(t *testing.T) {
	f := engine(t)
	v, changed := f.Version()
	select {
	case <-changed:
		t.Fatal("it has changed already")
	default:
	}
	f.must(f.ApplyAuthorization(&workspacev1.WatchAuthorizationResponse{Seq: f.auth, Heartbeat: true}))
	if w, _ := f.Version(); w != v {
		t.Error("a heartbeat changes something")
	}
	f.members("grp_1", "usr_1")
	<-changed
	w, changed := f.Version()
	if w == v {
		t.Error("the version is the same")
	}
	f.change(&workspacev1.WatchAuthorizationResponse{Removed: []string{"ws_1"}})
	<-changed
}
