package endpoints

import (
	"context"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	"github.com/redoubt-ml/redoubt/services/inference/internal/store"
)

const (
	local     = inferencev1.Endpoint_KIND_LOCAL
	container = inferencev1.Endpoint_KIND_CONTAINER_INSTANCE
	byDefault = inferencev1.Endpoint_AUTH_UNSPECIFIED
	byKey     = inferencev1.Endpoint_AUTH_KEY
	byToken   = inferencev1.Endpoint_AUTH_TOKEN
	byNone    = inferencev1.Endpoint_AUTH_NONE
)

// A5: what each kind is closed by when it is made, and what it can be switched to.
func TestAuthByKind(t *testing.T) {
	l := newLab(t)
	for _, tc := range []struct {
		id       string
		kind     inferencev1.Endpoint_Kind
		ask, got inferencev1.Endpoint_Auth
		refused  bool
	}{
		{"plain", 0, byDefault, byKey, false},
		{"local", local, byDefault, byKey, false},
		{"local-key", local, byKey, byKey, false},
		{"local-token", local, byToken, byToken, false},
		{"local-none", local, byNone, byNone, false},
		{"container", container, byDefault, byNone, false},
		{"container-key", container, byKey, byKey, false},
		{"container-none", container, byNone, byNone, false},
		{"container-token", container, byToken, 0, true},
	} {
		e, err := l.rpc().CreateEndpoint(l.as("owner"), &inferencev1.CreateEndpointRequest{Parent: ws1, EndpointId: tc.id, Endpoint: &inferencev1.NewEndpoint{Kind: tc.kind, Auth: tc.ask}})
		if tc.refused {
			want(t, tc.id, err, codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID)
			if err == nil || !strings.Contains(err.Error(), "AUTH_KEY") {
				t.Errorf("%s: the refusal does not say what to choose: %v", tc.id, err)
			}
			continue
		}
		must(t, err)
		if e.GetAuth() != tc.got || e.GetKind() == 0 || e.GetScoringUri() != "https://localhost:1/endpoints/"+e.GetUid()+"/score" || e.GetBaseUri()+"/score" != e.GetScoringUri() {
			t.Errorf("%s: %v", tc.id, e)
		}
	}
	e, err := l.rpc().GetEndpoint(l.as("owner"), &inferencev1.GetEndpointRequest{Name: ws1 + "/endpoints/container"})
	must(t, err)
	_, err = l.rpc().UpdateEndpoint(l.as("owner"), &inferencev1.UpdateEndpointRequest{Endpoint: &inferencev1.EndpointUpdate{Name: e.GetName(), Auth: byToken}})
	want(t, "switching a container-instance to tokens", err, codes.InvalidArgument, 0)
	_, err = l.rpc().UpdateEndpoint(l.as("owner"), &inferencev1.UpdateEndpointRequest{Endpoint: &inferencev1.EndpointUpdate{Name: e.GetName(), Auth: byKey}})
	must(t, err)
	kinds, err := l.rpc().ListEndpointKinds(l.as("reader"), &inferencev1.ListEndpointKindsRequest{Parent: ws1})
	must(t, err)
	if !slices.Equal(kinds.GetKinds(), []string{"local", "container-instance"}) {
		t.Errorf("%v", kinds.GetKinds())
	}
	found := false
	for _, ev := range l.of("/CreateEndpoint") {
		found = found || ev.GetDetails()["auth"] == "AUTH_NONE" && ev.GetDetails()["kind"] == "KIND_CONTAINER_INSTANCE"
	}
	if !found {
		t.Error("nothing in the activity log says that an endpoint was made open")
	}
}

func TestEndpoints(t *testing.T) {
	l := newLab(t)
	name := ws1 + "/endpoints/e1"
	for what, id := range map[string]string{"empty": "", "a slash": "a/b", "upper case": "A", "dots": ".."} {
		_, err := l.rpc().CreateEndpoint(l.as("owner"), &inferencev1.CreateEndpointRequest{Parent: ws1, EndpointId: id})
		want(t, what, err, codes.InvalidArgument, 0)
	}
	_, err := l.rpc().CreateEndpoint(l.as("reader"), &inferencev1.CreateEndpointRequest{Parent: ws1, EndpointId: "e1"})
	want(t, "by a reader", err, codes.PermissionDenied, faultv1.Reason_AUTHZ_ACTION_MISSING)
	_, err = l.rpc().CreateEndpoint(l.as("other"), &inferencev1.CreateEndpointRequest{Parent: ws1, EndpointId: "e1"})
	want(t, "by the owner of another workspace", err, codes.NotFound, 0)
	e := l.endpoint("e1", &inferencev1.NewEndpoint{Description: "first", Tags: map[string]string{"a": "b"}})
	if e.GetName() != name || e.GetDescription() != "first" || e.GetTags()["a"] != "b" || e.GetCreatedBy() != "usr_owner" || e.GetTokenTtl().AsDuration() != time.Hour || e.GetEtag() == "" {
		t.Errorf("%v", e)
	}
	_, err = l.rpc().CreateEndpoint(l.as("owner"), &inferencev1.CreateEndpointRequest{Parent: ws1, EndpointId: "e1"})
	want(t, "again", err, codes.AlreadyExists, 0)
	update := func(u *inferencev1.EndpointUpdate, mask ...string) (*inferencev1.Endpoint, error) {
		u.Name = name
		req := &inferencev1.UpdateEndpointRequest{Endpoint: u}
		if len(mask) > 0 {
			req.UpdateMask = &fieldmaskpb.FieldMask{Paths: mask}
		}
		return l.rpc().UpdateEndpoint(l.as("owner"), req)
	}
	u, err := update(&inferencev1.EndpointUpdate{Description: "second", Etag: e.GetEtag()})
	must(t, err)
	if u.GetDescription() != "second" || u.GetTags()["a"] != "b" || u.GetEtag() == e.GetEtag() || u.GetUid() != e.GetUid() {
		t.Errorf("%v", u)
	}
	_, err = update(&inferencev1.EndpointUpdate{Description: "third", Etag: e.GetEtag()})
	want(t, "an old etag", err, codes.Aborted, 0)
	u, err = update(&inferencev1.EndpointUpdate{}, "tags", "description")
	must(t, err)
	if u.GetDescription() != "" || len(u.GetTags()) != 0 {
		t.Errorf("what the mask names is not emptied: %v", u)
	}
	_, err = update(&inferencev1.EndpointUpdate{}, "uid")
	want(t, "a mask with what cannot be changed", err, codes.InvalidArgument, 0)
	for what, ttl := range map[string]time.Duration{"too short": 5*time.Minute - 1, "too long": 24*time.Hour + 1, "negative": -time.Hour} {
		_, err = update(&inferencev1.EndpointUpdate{TokenTtl: durationpb.New(ttl)})
		want(t, "a token_ttl that is "+what, err, codes.InvalidArgument, 0)
	}
	_, err = update(&inferencev1.EndpointUpdate{Traffic: map[string]int32{"absent": 100}})
	want(t, "traffic to what is not there", err, codes.InvalidArgument, 0)

	for _, id := range []string{"e2", "e3"} {
		l.endpoint(id, nil)
	}
	var names []string
	for token := ""; ; {
		page, err := l.rpc().ListEndpoints(l.as("reader"), &inferencev1.ListEndpointsRequest{Parent: ws1, PageSize: 2, PageToken: token})
		must(t, err)
		for _, e := range page.GetEndpoints() {
			names = append(names, e.GetName()[len(ws1+"/endpoints/"):])
		}
		if token = page.GetNextPageToken(); token == "" {
			break
		}
	}
	if !slices.Equal(names, []string{"e1", "e2", "e3"}) {
		t.Errorf("listed %v", names)
	}
	d, err := l.internal("telemetry").DescribeEndpoint(t.Context(), &inferencev1.DescribeEndpointRequest{WorkspaceUid: l.uids[ws1], EndpointId: "e1"})
	must(t, err)
	if d.GetEndpointUid() != e.GetUid() {
		t.Errorf("%v", d)
	}
	_, err = l.internal("telemetry").DescribeEndpoint(t.Context(), &inferencev1.DescribeEndpointRequest{WorkspaceUid: l.uids[ws2], EndpointId: "e1"})
	want(t, "an endpoint of another workspace", err, codes.NotFound, 0)
	_, err = l.internal("compute").DescribeEndpoint(t.Context(), &inferencev1.DescribeEndpointRequest{WorkspaceUid: l.uids[ws1], EndpointId: "e1"})
	want(t, "asked by compute", err, codes.PermissionDenied, faultv1.Reason_PEER_NOT_ALLOWED)

	_, err = l.rpc().DeleteEndpoint(l.as("reader"), &inferencev1.DeleteEndpointRequest{Name: name})
	want(t, "deleted by a reader", err, codes.PermissionDenied, 0)
	_, err = l.rpc().DeleteEndpoint(l.as("owner"), &inferencev1.DeleteEndpointRequest{Name: name})
	must(t, err)
	_, err = l.rpc().GetEndpoint(l.as("owner"), &inferencev1.GetEndpointRequest{Name: name})
	want(t, "after that", err, codes.NotFound, 0)
	if again := l.endpoint("e1", nil); again.GetUid() == e.GetUid() {
		t.Error("the name is not free again")
	}
	for _, method := range []string{"/CreateEndpoint", "/UpdateEndpoint", "/DeleteEndpoint"} {
		if len(l.of(method)) == 0 {
			t.Errorf("%s is not in the activity log", method)
		}
	}
}

// A5: keys are shown by their own action alone, and replacing one leaves the other.
func TestKeys(t *testing.T) {
	l := newLab(t)
	e := l.endpoint("e1", nil)
	model := l.model()
	l.ready(l.deploy(e.GetName(), "blue", spec(model)).GetName())
	c := l.client()
	_, err := l.rpc().GetCredentials(l.as("reader"), &inferencev1.GetCredentialsRequest{Name: e.GetName()})
	want(t, "the keys, by a reader", err, codes.PermissionDenied, faultv1.Reason_AUTHZ_ACTION_MISSING)
	k := l.keys(e.GetName())
	form := regexp.MustCompile(`^rdk_[A-Za-z0-9_-]{43}$`)
	if !form.MatchString(k.GetPrimaryKey()) || !form.MatchString(k.GetSecondaryKey()) || k.GetPrimaryKey() == k.GetSecondaryKey() {
		t.Errorf("keys of another form")
	}
	is := func(what, credential string, status int) {
		t.Helper()
		if got, body := l.score(c, e.GetUid(), credential); got != status {
			t.Errorf("%s: %d %s, want %d", what, got, body, status)
		}
	}
	is("primary", k.GetPrimaryKey(), http.StatusOK)
	is("secondary", k.GetSecondaryKey(), http.StatusOK)
	is("none", "", http.StatusUnauthorized)
	is("wrong", k.GetPrimaryKey()[:46]+"x", http.StatusUnauthorized)
	other := l.endpoint("e2", nil)
	is("another endpoint's", l.keys(other.GetName()).GetPrimaryKey(), http.StatusUnauthorized)

	fresh, err := l.rpc().RegenerateKey(l.as("owner"), &inferencev1.RegenerateKeyRequest{Name: e.GetName(), KeyType: inferencev1.KeyType_KEY_TYPE_PRIMARY})
	must(t, err)
	if fresh.GetPrimaryKey() == k.GetPrimaryKey() || fresh.GetSecondaryKey() != k.GetSecondaryKey() || !form.MatchString(fresh.GetPrimaryKey()) {
		t.Error("not one key was replaced, and that one")
	}
	is("the old primary", k.GetPrimaryKey(), http.StatusUnauthorized)
	is("the new primary", fresh.GetPrimaryKey(), http.StatusOK)
	is("the secondary meanwhile", k.GetSecondaryKey(), http.StatusOK)
	_, err = l.rpc().RegenerateKey(l.as("owner"), &inferencev1.RegenerateKeyRequest{Name: e.GetName()})
	want(t, "neither key", err, codes.InvalidArgument, 0)
	_, err = l.rpc().IssueEndpointToken(l.as("owner"), &inferencev1.IssueEndpointTokenRequest{Name: e.GetName()})
	want(t, "a token where keys are", err, codes.FailedPrecondition, 0)

	l.restart()
	c = l.client()
	l.eventually("the replica is back", func() bool {
		status, _ := l.score(c, e.GetUid(), fresh.GetPrimaryKey())
		return status == http.StatusOK
	})
	is("the old primary after a restart", k.GetPrimaryKey(), http.StatusUnauthorized)
	if ev := l.of("/GetCredentials"); len(ev) < 3 {
		t.Errorf("showing keys is not recorded: %v", ev)
	}
	for _, ev := range l.log() {
		for _, v := range ev.GetDetails() {
			if strings.Contains(v, "rdk_") {
				t.Errorf("a key stands in the activity log: %v", ev.GetMethod())
			}
		}
	}
}

// A5: tokens of one caller, with an end; they go with their form.
func TestTokens(t *testing.T) {
	l := newLab(t)
	e := l.endpoint("e1", &inferencev1.NewEndpoint{Auth: byToken, TokenTtl: durationpb.New(10 * time.Minute)})
	l.ready(l.deploy(e.GetName(), "blue", spec(l.model())).GetName())
	c := l.client()
	is := func(what, credential string, status int) {
		t.Helper()
		if got, body := l.score(c, e.GetUid(), credential); got != status {
			t.Errorf("%s: %d %s, want %d", what, got, body, status)
		}
	}
	issue := func() *inferencev1.EndpointToken {
		t.Helper()
		tok, err := l.rpc().IssueEndpointToken(l.as("owner"), &inferencev1.IssueEndpointTokenRequest{Name: e.GetName()})
		must(t, err)
		return tok
	}
	_, err := l.rpc().IssueEndpointToken(l.as("reader"), &inferencev1.IssueEndpointTokenRequest{Name: e.GetName()})
	want(t, "a token for a reader", err, codes.PermissionDenied, 0)
	begin := l.now()
	tok := issue()
	life, half := tok.GetExpireTime().AsTime().Sub(begin), tok.GetRefreshAfterTime().AsTime().Sub(begin)
	if !regexp.MustCompile(`^rde_[A-Za-z0-9_-]{43}$`).MatchString(tok.GetAccessToken()) || life < 10*time.Minute-time.Second || life > 10*time.Minute+longTime || half < 5*time.Minute-time.Second || half > 5*time.Minute+longTime {
		t.Errorf("a token for %s, to be replaced after %s", life, half)
	}
	is("the token", tok.GetAccessToken(), http.StatusOK)
	is("a key where tokens are", l.keys(e.GetName()).GetPrimaryKey(), http.StatusUnauthorized)
	is("none", "", http.StatusUnauthorized)
	l.restart()
	c = l.client()
	l.eventually("the replica is back", func() bool {
		status, _ := l.score(c, e.GetUid(), tok.GetAccessToken())
		return status == http.StatusOK
	})
	l.advance(10*time.Minute + time.Second)
	is("the token after its end", tok.GetAccessToken(), http.StatusUnauthorized)
	second := issue()
	is("another", second.GetAccessToken(), http.StatusOK)
	n, err := l.s.store.SweepTokens(t.Context(), l.now())
	must(t, err)
	if n != 1 {
		t.Errorf("%d tokens were swept", n)
	}
	set := func(a inferencev1.Endpoint_Auth) {
		t.Helper()
		_, err := l.rpc().UpdateEndpoint(l.as("owner"), &inferencev1.UpdateEndpointRequest{Endpoint: &inferencev1.EndpointUpdate{Name: e.GetName(), Auth: a}})
		must(t, err)
	}
	keys := l.keys(e.GetName())
	set(byKey)
	is("the token after the switch", second.GetAccessToken(), http.StatusUnauthorized)
	is("the key after the switch", keys.GetPrimaryKey(), http.StatusOK)
	set(byToken)
	is("the token after the way back", second.GetAccessToken(), http.StatusUnauthorized)
	is("the key after the way back", keys.GetPrimaryKey(), http.StatusUnauthorized)
	set(byNone)
	is("nothing where nothing is asked for", "", http.StatusOK)
	set(byToken)
	is("nothing after that", "", http.StatusUnauthorized)
}

// At most 1,000 tokens live at once; their ends make room.
func TestTokenLimit(t *testing.T) {
	l := newLab(t)
	e := l.endpoint("e1", &inferencev1.NewEndpoint{Auth: byToken})
	key, err := l.s.store.Key(t.Context(), l.uids[ws1])
	must(t, err)
	must(t, l.s.store.Write(t.Context(), writing(func(ctx context.Context, x store.Endpoints) error {
		for i := range maxTokens {
			tok := store.Token{Principal: "usr_owner", Expires: l.now().Add(time.Minute)}
			tok.Hash[0], tok.Hash[1] = byte(i), byte(i>>8)
			if err := x.AddToken(ctx, e.GetUid(), tok); err != nil {
				return err
			}
		}
		return nil
	}, l.s.store, key)))
	_, err = l.rpc().IssueEndpointToken(l.as("owner"), &inferencev1.IssueEndpointTokenRequest{Name: e.GetName()})
	want(t, "one too many", err, codes.ResourceExhausted, 0)
	l.advance(2 * time.Minute)
	_, err = l.rpc().IssueEndpointToken(l.as("owner"), &inferencev1.IssueEndpointTokenRequest{Name: e.GetName()})
	must(t, err)
}

// A5: while requests go on, the old key opens nothing once the call has returned, and the other never fails.
func TestRegenerateUnderLoad(t *testing.T) {
	l := newLab(t)
	e := l.endpoint("e1", nil)
	s := spec(l.model())
	s.Workers = 4
	l.until(l.deploy(e.GetName(), "blue", s).GetName(), "all workers", func(d *inferencev1.Deployment) bool {
		return isReady(d) && d.GetReplicas()[0].GetReadyWorkers() == 4
	})
	k := l.keys(e.GetName())
	secondary := k.GetSecondaryKey()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var answered atomic.Int64
	for range 3 {
		c := l.client()
		wg.Go(func() {
			for ctx.Err() == nil {
				if status, body := l.score(c, e.GetUid(), secondary); status != http.StatusOK {
					t.Errorf("the secondary key: %d %s", status, body)
				}
				answered.Add(1)
			}
		})
	}
	c := l.client()
	const rounds = 200
	for range rounds {
		before := k.GetPrimaryKey()
		var err error
		k, err = l.rpc().RegenerateKey(l.as("owner"), &inferencev1.RegenerateKeyRequest{Name: e.GetName(), KeyType: inferencev1.KeyType_KEY_TYPE_PRIMARY})
		must(t, err)
		if status, _ := l.score(c, e.GetUid(), before); status != http.StatusUnauthorized {
			t.Errorf("the old key: %d", status)
		}
		if status, body := l.score(c, e.GetUid(), k.GetPrimaryKey()); status != http.StatusOK {
			t.Errorf("the new key: %d %s", status, body)
		}
	}
	l.eventually("requests meanwhile", func() bool { return answered.Load() > 0 })
	cancel()
	wg.Wait()
}

// A5: a switch of the form holds when its call has returned, in each direction, while requests go on.
func TestSwitchUnderLoad(t *testing.T) {
	l := newLab(t)
	e := l.endpoint("e1", nil)
	s := spec(l.model())
	s.Workers = 4
	l.ready(l.deploy(e.GetName(), "blue", s).GetName())
	key := l.keys(e.GetName()).GetPrimaryKey()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 2 {
		c := l.client()
		wg.Go(func() {
			for ctx.Err() == nil {
				if status, body := l.score(c, e.GetUid(), key); status != http.StatusOK && status != http.StatusUnauthorized {
					t.Errorf("the key: %d %s", status, body)
				}
			}
		})
	}
	c := l.client()
	is := func(what, credential string, status int) {
		t.Helper()
		if got, body := l.score(c, e.GetUid(), credential); got != status {
			t.Errorf("%s: %d %s, want %d", what, got, body, status)
		}
	}
	set := func(a inferencev1.Endpoint_Auth) {
		t.Helper()
		_, err := l.rpc().UpdateEndpoint(l.as("owner"), &inferencev1.UpdateEndpointRequest{Endpoint: &inferencev1.EndpointUpdate{Name: e.GetName(), Auth: a}})
		must(t, err)
	}
	for range 50 {
		set(byToken)
		is("the key while tokens open", key, http.StatusUnauthorized)
		tok, err := l.rpc().IssueEndpointToken(l.as("owner"), &inferencev1.IssueEndpointTokenRequest{Name: e.GetName()})
		must(t, err)
		is("the token", tok.GetAccessToken(), http.StatusOK)
		set(byKey)
		is("the token while keys open", tok.GetAccessToken(), http.StatusUnauthorized)
		is("the key", key, http.StatusOK)
	}
	cancel()
	wg.Wait()
}
