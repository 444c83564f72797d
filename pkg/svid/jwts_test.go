package svid

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// jwtWorkloadServer is a Workload API with both kinds of SVID.
func jwtWorkloadServer(t *testing.T, i *jwtIssuer) (*WorkloadServer, *Keeper) {
	t.Helper()
	x := &issuer{a: newAuthority(t, td), id: i.id, ttl: time.Hour}
	k := startKeeper(t, KeeperConfig{Dir: t.TempDir(), ID: i.id, Issue: x.issue})
	w, err := NewWorkloadServer(WorkloadConfig{Keeper: k, JWTs: i.jwts(), Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.Close() })
	return w, k
}

// TestWorkloadAPIServesTheStandardsClient has go-spiffe's own sources work on our socket while keys and roots change below it.
func TestWorkloadAPIServesTheStandardsClient(t *testing.T) {
	i := newJWTIssuer(t, service(t, "compute"))
	w, k := jwtWorkloadServer(t, i)
	ready(t, k)
	ctx := withHeader(t)
	at := workloadapi.WithClientOptions(workloadapi.WithAddr(w.Addr()))
	jwts, err := workloadapi.NewJWTSource(ctx, at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = jwts.Close() })
	x509s, err := workloadapi.NewX509Source(ctx, at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = x509s.Close() })
	fetch := func() *jwtsvid.SVID {
		t.Helper()
		s, err := jwts.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "board", ExtraAudiences: []string{"shop"}})
		if err != nil {
			t.Fatal(err)
		}
		if s.ID != i.id || strings.Join(s.Audience, " ") != "board shop" || time.Until(s.Expiry) > 5*time.Minute {
			t.Errorf("%+v", s)
		}
		return s
	}
	s := fetch()
	if got, err := workloadapi.ValidateJWTSVID(ctx, s.Marshal(), "shop", workloadapi.WithAddr(w.Addr())); err != nil || got.ID != i.id {
		t.Errorf("the API validates: %v, %v", got, err)
	}
	if got, err := jwtsvid.ParseAndValidate(s.Marshal(), jwts, []string{"board"}); err != nil || got.ID != i.id {
		t.Errorf("the client validates with the bundle that it was sent: %v, %v", got, err)
	}
	if _, err := jwts.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "board", Subject: i.id}); err != nil {
		t.Errorf("for the own name: %v", err)
	}

	// The next key is told first, signs then, and the first one goes: each step reaches who watches.
	told := func(want ...string) {
		t.Helper()
		if err := w.jwts.SetBundle(i.bundle()); err != nil {
			t.Fatal(err)
		}
		for {
			b, err := jwts.GetJWTBundleForTrustDomain(td)
			if err != nil {
				t.Fatal(err)
			}
			ok := len(b.JWTAuthorities()) == len(want)
			for _, kid := range want {
				ok = ok && b.HasJWTAuthority(kid)
			}
			if ok {
				return
			}
			if err := jwts.WaitUntilUpdated(ctx); err != nil {
				t.Fatalf("the keys %v do not come: %v", want, err)
			}
		}
	}
	i.next("second")
	told("first", "second")
	if _, err := jwtsvid.ParseAndValidate(s.Marshal(), jwts, []string{"board"}); err != nil {
		t.Errorf("of the key before, while both stand: %v", err)
	}
	i.drop()
	told("second")
	if _, err := jwtsvid.ParseAndValidate(s.Marshal(), jwts, []string{"board"}); err == nil {
		t.Error("a key that has gone is believed")
	}
	if _, err := workloadapi.ValidateJWTSVID(ctx, s.Marshal(), "board", workloadapi.WithAddr(w.Addr())); status.Code(err) != codes.InvalidArgument {
		t.Errorf("of a key that has gone: %v", err)
	}
	again := fetch()
	if again.Marshal() == s.Marshal() {
		t.Error("the JWT-SVID of a key that has gone is given out")
	}
	if _, err := jwtsvid.ParseAndValidate(again.Marshal(), jwts, []string{"board"}); err != nil {
		t.Error(err)
	}
	before, err := x509s.GetX509SVID()
	if err != nil {
		t.Fatal(err)
	}
	k.Refresh()
	for {
		now, err := x509s.GetX509SVID()
		if err != nil {
			t.Fatal(err)
		}
		if !now.Certificates[0].Equal(before.Certificates[0]) {
			break
		}
		if err := x509s.WaitUntilUpdated(ctx); err != nil {
			t.Fatalf("the new X.509-SVID does not come: %v", err)
		}
	}
}

func TestWorkloadAPIRefusesJWTs(t *testing.T) {
	i := newJWTIssuer(t, service(t, "compute"))
	w, k := jwtWorkloadServer(t, i)
	ready(t, k)
	api := workload.NewSpiffeWorkloadAPIClient(dialWorkload(t, w))
	long := strings.Repeat("a", maxAudienceBytes+1)
	for name, c := range map[string]struct {
		req  *workload.JWTSVIDRequest
		want codes.Code
	}{
		"no audience":              {&workload.JWTSVIDRequest{}, codes.InvalidArgument},
		"an empty audience":        {&workload.JWTSVIDRequest{Audience: []string{""}}, codes.InvalidArgument},
		"an empty one among them":  {&workload.JWTSVIDRequest{Audience: []string{"a", ""}}, codes.InvalidArgument},
		"one twice":                {&workload.JWTSVIDRequest{Audience: []string{"a", "a"}}, codes.InvalidArgument},
		"too many":                 {&workload.JWTSVIDRequest{Audience: strings.Split("123456789", "")}, codes.InvalidArgument},
		"too long":                 {&workload.JWTSVIDRequest{Audience: []string{long}}, codes.InvalidArgument},
		"a control character":      {&workload.JWTSVIDRequest{Audience: []string{"a\x00b"}}, codes.InvalidArgument},
		"no SPIFFE ID":             {&workload.JWTSVIDRequest{Audience: []string{"a"}, SpiffeId: "compute"}, codes.InvalidArgument},
		"another's SPIFFE ID":      {&workload.JWTSVIDRequest{Audience: []string{"a"}, SpiffeId: service(t, "identity").String()}, codes.PermissionDenied},
		"one of a foreign domain":  {&workload.JWTSVIDRequest{Audience: []string{"a"}, SpiffeId: "spiffe://other.test/service/compute"}, codes.PermissionDenied},
		"the own, for one board":   {&workload.JWTSVIDRequest{Audience: []string{"a"}, SpiffeId: i.id.String()}, codes.OK},
		"for whom it will do well": {&workload.JWTSVIDRequest{Audience: []string{"https://board.example/a?b=c"}}, codes.OK},
	} {
		if _, err := api.FetchJWTSVID(withHeader(t), c.req); status.Code(err) != c.want {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	for name, ctx := range map[string]context.Context{"without the header": t.Context()} {
		if _, err := api.FetchJWTSVID(ctx, &workload.JWTSVIDRequest{Audience: []string{"a"}}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := api.ValidateJWTSVID(ctx, &workload.ValidateJWTSVIDRequest{}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
	denied := fault.PermissionDenied("not you")
	err := error(denied)
	i.away.Store(&err)
	if _, err := api.FetchJWTSVID(withHeader(t), &workload.JWTSVIDRequest{Audience: []string{"another"}}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("identity says no: %v", err)
	}
}

// TestJWTSVIDsAreHeld is the life of what is held, by a clock of its own.
func TestJWTSVIDsAreHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newJWTIssuer(t, spiffeid.RequireFromString("spiffe://mesh.test/service/compute"))
		j := i.jwts()
		fetch := func(audience ...string) string {
			t.Helper()
			token, _, err := j.Fetch(t.Context(), audience)
			if err != nil {
				t.Fatal(err)
			}
			return token
		}
		first := fetch("board")
		time.Sleep(149 * time.Second)
		if fetch("board") != first || i.n.Load() != 1 {
			t.Error("it is asked for again before half of its life")
		}
		if fetch("shop") == first || fetch("board", "shop") == first {
			t.Error("what is for one audience is given for another")
		}
		time.Sleep(2 * time.Second)
		second := fetch("board")
		if second == first {
			t.Error("it is not renewed at half of its life")
		}
		down := error(fault.Unavailable("away"))
		i.away.Store(&down)
		time.Sleep(151 * time.Second)
		if fetch("board") != second {
			t.Error("while identity is away the one that is held does not serve")
		}
		time.Sleep(149 * time.Second) // 300 s after it was issued
		if _, _, err := j.Fetch(t.Context(), []string{"board"}); !fault.Is(err, codes.Unavailable) {
			t.Errorf("one that has ended is given out: %v", err)
		}
		i.away.Store(nil)
		held := fetch("board")
		refused := error(fault.PermissionDenied("no more"))
		time.Sleep(151 * time.Second)
		i.away.Store(&refused)
		if _, _, err := j.Fetch(t.Context(), []string{"board"}); !fault.Is(err, codes.PermissionDenied) {
			t.Errorf("what is held serves although identity says no: %v", err)
		}
		i.away.Store(nil)
		_ = held

		// Those who ask at the same time share the work.
		before := i.n.Load()
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() { fetch("together") })
		}
		all.Wait()
		if n := i.n.Load() - before; n > 2 {
			t.Errorf("identity was asked %d times at once", n)
		}
		// A bound on what is held.
		for n := range 2 * maxHeldJWTs {
			fetch(fmt.Sprint("board", n))
		}
		if n := len(j.held); n > maxHeldJWTs {
			t.Errorf("%d are held", n)
		}
		// One of a key that the bundle does not have yet waits for it.
		i.next("second")
		got := make(chan string, 1)
		go func() {
			token, _, _ := j.Fetch(t.Context(), []string{"later"})
			got <- token
		}()
		synctest.Wait()
		select {
		case <-got:
			t.Error("a key that is not in the bundle is believed")
		default:
		}
		if err := j.SetBundle(i.bundle()); err != nil {
			t.Fatal(err)
		}
		if <-got == "" {
			t.Error("the bundle has come and nothing follows")
		}
	})
}

func TestJWTSVIDsThatIdentityWouldNotGive(t *testing.T) {
	i := newJWTIssuer(t, service(t, "compute"))
	for name, issue := range map[string]func(context.Context, []string) (string, error){
		"another's": func(_ context.Context, aud []string) (string, error) {
			token, _, err := i.keys[0].Sign(service(t, "identity"), aud, time.Minute, time.Now())
			return token, err
		},
		"of another domain": func(_ context.Context, aud []string) (string, error) {
			token, _, err := i.keys[0].Sign(spiffeid.RequireFromString("spiffe://other.test/service/compute"), aud, time.Minute, time.Now())
			return token, err
		},
		"for more": func(_ context.Context, aud []string) (string, error) {
			token, _, err := i.keys[0].Sign(i.id, append(aud, "thief"), time.Minute, time.Now())
			return token, err
		},
		"over": func(_ context.Context, aud []string) (string, error) {
			token, _, err := i.keys[0].Sign(i.id, aud, time.Minute, time.Now().Add(-time.Hour))
			return token, err
		},
		"by another's key": func(_ context.Context, aud []string) (string, error) {
			token, _, err := JWTKey{Key: newKey(t), ID: "first"}.Sign(i.id, aud, time.Minute, time.Now())
			return token, err
		},
	} {
		j := i.jwts(func(c *JWTConfig) { c.Issue = issue })
		if _, _, err := j.Fetch(t.Context(), []string{"board"}); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
	blank, err := NewJWTs(JWTConfig{ID: i.id, Issue: i.issue})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := blank.Validate("x", "board"); !fault.Is(err, codes.Unavailable) {
		t.Errorf("without a bundle: %v", err)
	}
	if err := blank.SetBundle([]byte("{}")); err == nil {
		t.Error("what is no bundle is taken up")
	}
}
