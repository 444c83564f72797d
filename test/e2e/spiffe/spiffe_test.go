// Package spiffe has the standard's own client, go-spiffe, work on a whole installation: on the Workload APIs of its services and at its bundle
// endpoint, while roots and keys rotate below (A3, A4, D10).
package spiffe

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/federation"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/internal/testmesh"
	"github.com/redoubt-ml/redoubt/pkg/svid"
)

func TestMain(m *testing.M) {
	testmesh.Child()
	os.Exit(m.Run())
}

var td = spiffeid.RequireTrustDomainFromString("redoubt.local")

type lab struct {
	*testing.T
	mesh *testmesh.Mesh
	ctx  context.Context
}

func start(t *testing.T) *lab {
	mesh, err := testmesh.Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(mesh.Close)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	return &lab{t, mesh, ctx}
}

func (l *lab) must(err error) {
	l.Helper()
	if err != nil {
		l.Fatalf("%v\n%s", err, l.mesh.Log())
	}
}

// socket is the Workload API of a service.
func (l *lab) socket(service string) string {
	return "unix://" + filepath.Join(l.mesh.Dir, service, "svid", "agent.sock")
}

func (l *lab) sources(service string) (*workloadapi.X509Source, *workloadapi.JWTSource) {
	l.Helper()
	at := workloadapi.WithClientOptions(workloadapi.WithAddr(l.socket(service)))
	x, err := workloadapi.NewX509Source(l.ctx, at)
	l.must(err)
	l.Cleanup(func() { _ = x.Close() })
	j, err := workloadapi.NewJWTSource(l.ctx, at)
	l.must(err)
	l.Cleanup(func() { _ = j.Close() })
	return x, j
}

func service(name string) spiffeid.ID { return spiffeid.RequireFromPath(td, "/service/"+name) }

// bundles keeps what WatchBundle tells.
type bundles struct {
	mu   sync.Mutex
	last *spiffebundle.Bundle
	seqs []uint64
	errs []error
	told chan struct{}
}

func (b *bundles) NextRefresh(time.Duration) time.Duration { return 50 * time.Millisecond }

func (b *bundles) OnUpdate(u *spiffebundle.Bundle) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n, _ := u.SequenceNumber()
	b.last, b.seqs = u, append(b.seqs, n)
	select {
	case b.told <- struct{}{}:
	default:
	}
}

func (b *bundles) OnError(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.errs = append(b.errs, err)
}

func (b *bundles) until(l *lab, what string, ok func(*spiffebundle.Bundle) bool) {
	l.Helper()
	for {
		b.mu.Lock()
		last, errs := b.last, b.errs
		b.mu.Unlock()
		if last != nil && ok(last) {
			return
		}
		select {
		case <-b.told:
		case <-l.ctx.Done():
			l.Fatalf("%s does not come; errors on the way: %v", what, errs)
		}
	}
}

// until waits for a source to be as it should.
func until(l *lab, what string, updated func(context.Context) error, ok func() bool) {
	l.Helper()
	for !ok() {
		if err := updated(l.ctx); err != nil {
			l.Fatalf("%s does not come: %v\n%s", what, err, l.mesh.Log())
		}
	}
}

func TestTheStandardsClientFollowsAnInstallation(t *testing.T) {
	l := start(t)
	x, compute := l.sources("compute")
	_, telemetry := l.sources("telemetry")
	own, err := x.GetX509SVID()
	l.must(err)
	if own.ID != service("compute") {
		t.Fatalf("the X.509-SVID is of %s", own.ID)
	}
	for _, name := range []string{"identity", "workspace", "keyvault", "telemetry", "compute", "inference", "gateway"} {
		s, err := workloadapi.FetchJWTSVID(l.ctx, jwtsvid.Params{Audience: "board"}, workloadapi.WithAddr(l.socket(name)))
		l.must(err)
		if s.ID != service(name) {
			t.Errorf("%s has the JWT-SVID of %s", name, s.ID)
		}
	}
	first, err := compute.FetchJWTSVID(l.ctx, jwtsvid.Params{Audience: "board"})
	l.must(err)
	// Another service believes it, by what it was told and by its Workload API; for that audience alone.
	_, err = jwtsvid.ParseAndValidate(first.Marshal(), telemetry, []string{"board"})
	l.must(err)
	_, err = workloadapi.ValidateJWTSVID(l.ctx, first.Marshal(), "board", workloadapi.WithAddr(l.socket("telemetry")))
	l.must(err)
	if _, err := workloadapi.ValidateJWTSVID(l.ctx, first.Marshal(), "shop", workloadapi.WithAddr(l.socket("telemetry"))); status.Code(err) != codes.InvalidArgument {
		t.Errorf("for another audience: %v", err)
	}
	again, err := compute.FetchJWTSVID(l.ctx, jwtsvid.Params{Audience: "board"})
	l.must(err)
	if again.Marshal() != first.Marshal() {
		t.Error("it is not kept")
	}
	// Neither kind of token is the other, at services that run.
	admin := l.mesh.Admin(t)
	if _, err := identityv1.NewSignInServiceClient(l.mesh.Dial(t, first.Marshal())).WhoAmI(l.ctx, &identityv1.WhoAmIRequest{}); status.Code(err) != codes.Unauthenticated {
		t.Errorf("a JWT-SVID for an access token: %v", err)
	}
	if _, err := telemetryv1.NewActivityServiceClient(l.mesh.Dial(t, first.Marshal())).ListActivity(l.ctx, &telemetryv1.ListActivityRequest{}); status.Code(err) != codes.Unauthenticated {
		t.Errorf("a JWT-SVID for an access token, at telemetry: %v", err)
	}
	if _, err := workloadapi.ValidateJWTSVID(l.ctx, admin, l.mesh.URL, workloadapi.WithAddr(l.socket("telemetry"))); status.Code(err) != codes.InvalidArgument {
		t.Errorf("an access token for a JWT-SVID: %v", err)
	}
	// Strangers get no JWT-SVID at the gateway, in nobody's name.
	for name, token := range map[string]string{"a stranger": "", "the administrator": admin} {
		if r, err := identityv1.NewWorkloadIdentityServiceClient(l.mesh.Dial(t, token)).IssueJWTSVID(l.ctx, &identityv1.IssueJWTSVIDRequest{Audience: []string{"board"}}); err == nil {
			t.Errorf("%s gets %v", name, r)
		}
	}

	// The root rotates under who watches.
	keys := identityv1.NewKeyServiceClient(l.mesh.Dial(t, admin))
	roots := func(n int) func() bool {
		return func() bool {
			b, err := x.GetX509BundleForTrustDomain(td)
			l.must(err)
			return len(b.X509Authorities()) == n
		}
	}
	next, err := keys.PrepareAuthority(l.ctx, &identityv1.PrepareAuthorityRequest{})
	l.must(err)
	until(l, "the prepared root", x.WaitUntilUpdated, roots(2))
	_, err = keys.ActivateAuthority(l.ctx, &identityv1.ActivateAuthorityRequest{Pin: next.GetPin()})
	l.must(err)
	all, err := keys.ListAuthorities(l.ctx, &identityv1.ListAuthoritiesRequest{})
	l.must(err)
	_, err = keys.TaintAuthority(l.ctx, &identityv1.TaintAuthorityRequest{Pin: all.GetAuthorities()[0].GetPin()})
	l.must(err)
	until(l, "an SVID of the new root", x.WaitUntilUpdated, func() bool {
		s, err := x.GetX509SVID()
		l.must(err)
		root, err := x509.ParseCertificate(next.GetRoot())
		l.must(err)
		return s.Certificates[0].CheckSignatureFrom(root) == nil
	})

	// All keys go at once: what they signed is over for who watches, and the next one is of the new.
	_, err = keys.RotateSigningKeys(l.ctx, &identityv1.RotateSigningKeysRequest{Emergency: true})
	l.must(err)
	for name, source := range map[string]*workloadapi.JWTSource{"compute": compute, "telemetry": telemetry} {
		until(l, "the new keys at "+name, source.WaitUntilUpdated, func() bool {
			_, err := jwtsvid.ParseAndValidate(first.Marshal(), source, []string{"board"})
			return err != nil
		})
	}
	fresh, err := compute.FetchJWTSVID(l.ctx, jwtsvid.Params{Audience: "board"})
	l.must(err)
	if fresh.Marshal() == first.Marshal() {
		t.Error("a JWT-SVID is given out whose key has gone")
	}
	until(l, "the key of the next", telemetry.WaitUntilUpdated, func() bool {
		_, err := jwtsvid.ParseAndValidate(fresh.Marshal(), telemetry, []string{"board"})
		return err == nil
	})
}

func TestBundleEndpoint(t *testing.T) {
	l := start(t)
	x, compute := l.sources("compute")
	at := l.mesh.URL + "/spiffe/bundle"
	web := x509.NewCertPool()
	web.AppendCertsFromPEM(l.mesh.CA)

	res, err := (&http.Client{Transport: &http.Transport{TLSClientConfig: l.mesh.TLS(), ForceAttemptHTTP2: true}}).Get(at)
	l.must(err)
	defer func() { _ = res.Body.Close() }()
	var doc struct {
		Sequence uint64 `json:"spiffe_sequence"`
		Refresh  int    `json:"spiffe_refresh_hint"`
		Keys     []map[string]any
	}
	l.must(json.NewDecoder(res.Body).Decode(&doc))
	uses := map[string]int{}
	for _, k := range doc.Keys {
		use, _ := k["use"].(string)
		uses[use]++
		chain, _ := k["x5c"].([]any)
		if id, _ := k["kid"].(string); k["d"] != nil || (use == "jwt-svid") != (id != "") || (use == "x509-svid") != (len(chain) == 1) {
			t.Errorf("%v", k)
		}
	}
	if res.StatusCode != http.StatusOK || res.Header.Get("Content-Type") != "application/json" || doc.Sequence == 0 || doc.Refresh <= 0 || doc.Refresh > 300 || uses["x509-svid"] != 1 || uses["jwt-svid"] != 2 || len(uses) != 2 {
		t.Errorf("%s %s %+v", res.Status, res.Header.Get("Content-Type"), doc)
	}

	// Both profiles.
	byWeb, err := federation.FetchBundle(l.ctx, td, at, federation.WithWebPKIRoots(web))
	l.must(err)
	bySPIFFE, err := federation.FetchBundle(l.ctx, td, at, federation.WithSPIFFEAuth(x, service("gateway")))
	l.must(err)
	if !byWeb.Equal(bySPIFFE) {
		t.Error("the profiles give different bundles")
	}
	stranger, err := svid.NewAuthority(td, time.Now(), time.Hour)
	l.must(err)
	for name, opt := range map[string]federation.FetchOption{
		"an endpoint of another name": federation.WithSPIFFEAuth(x, service("identity")),
		"roots of a stranger":         federation.WithSPIFFEAuth(x509bundle.FromX509Authorities(td, stranger.Bundle()), service("gateway")),
		"no roots of the web":         federation.WithWebPKIRoots(x509.NewCertPool()),
	} {
		if _, err := federation.FetchBundle(l.ctx, td, at, opt); err == nil {
			t.Errorf("%s is believed", name)
		}
	}
	// What stands in it is enough to verify ours.
	token, err := compute.FetchJWTSVID(l.ctx, jwtsvid.Params{Audience: "partner"})
	l.must(err)
	_, err = jwtsvid.ParseAndValidate(token.Marshal(), byWeb, []string{"partner"})
	l.must(err)

	// Who watches it follows a rotation, by a number that rises.
	w := &bundles{told: make(chan struct{}, 1)}
	watch, stop := context.WithCancel(l.ctx)
	var done sync.WaitGroup
	done.Go(func() { _ = federation.WatchBundle(watch, td, at, w, federation.WithSPIFFEAuth(w, service("gateway"))) })
	defer func() { stop(); done.Wait() }()
	w.OnUpdate(byWeb)
	keys := identityv1.NewKeyServiceClient(l.mesh.Dial(t, l.mesh.Admin(t)))
	next, err := keys.PrepareAuthority(l.ctx, &identityv1.PrepareAuthorityRequest{})
	l.must(err)
	w.until(l, "the prepared root", func(b *spiffebundle.Bundle) bool { return len(b.X509Authorities()) == 2 })
	_, err = keys.ActivateAuthority(l.ctx, &identityv1.ActivateAuthorityRequest{Pin: next.GetPin()})
	l.must(err)
	all, err := keys.ListAuthorities(l.ctx, &identityv1.ListAuthoritiesRequest{})
	l.must(err)
	old := all.GetAuthorities()[0].GetPin()
	_, err = keys.TaintAuthority(l.ctx, &identityv1.TaintAuthorityRequest{Pin: old})
	l.must(err)
	// The connection of the order itself may hang on the root that goes.
	if _, err = keys.RevokeAuthority(l.ctx, &identityv1.RevokeAuthorityRequest{Pin: old, Force: true}); err != nil && !strings.Contains(err.Error(), "still believed") && status.Code(err) != codes.Unavailable {
		l.must(err)
	}
	w.until(l, "the bundle without the old root", func(b *spiffebundle.Bundle) bool {
		return len(b.X509Authorities()) == 1 && svid.Pin(b.X509Authorities()[0]) == next.GetPin()
	})
	_, err = keys.RotateSigningKeys(l.ctx, &identityv1.RotateSigningKeysRequest{Emergency: true})
	if status.Code(err) != codes.Unavailable { // as above
		l.must(err)
	}
	w.until(l, "the bundle with new keys", func(b *spiffebundle.Bundle) bool {
		_, err := jwtsvid.ParseAndValidate(token.Marshal(), b, []string{"partner"})
		return err != nil && len(b.JWTAuthorities()) == 2
	})
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := 2; i < len(w.seqs); i++ { // the first two are the same bundle: handed over, and fetched
		if w.seqs[i] <= w.seqs[i-1] {
			t.Errorf("the numbers are %v", w.seqs)
		}
	}
	t.Logf("%d bundles were watched, numbers %v; %d fetches failed", len(w.seqs), w.seqs, len(w.errs))
}

// GetX509BundleForTrustDomain implements x509bundle.Source with the last bundle: who watches believes the endpoint by what it has told.
func (b *bundles) GetX509BundleForTrustDomain(of spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.last == nil {
		return x509bundle.New(of), nil
	}
	return b.last.GetX509BundleForTrustDomain(of)
}
