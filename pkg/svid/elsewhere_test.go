package svid

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"net/url"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// anothersAPI is a Workload API that we did not make the SVIDs of: it gives a process as many as it likes.
type anothersAPI struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	addr string

	mu      sync.Mutex
	now     *workload.X509SVIDResponse
	changed chan struct{}
}

func (a *anothersAPI) FetchX509SVID(_ *workload.X509SVIDRequest, stream grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
	for {
		a.mu.Lock()
		now, changed := a.now, a.changed
		a.mu.Unlock()
		if now != nil {
			if err := stream.Send(now); err != nil {
				return err
			}
		}
		select {
		case <-changed:
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

func (a *anothersAPI) give(svids ...*workload.X509SVID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.now = &workload.X509SVIDResponse{Svids: svids}
	close(a.changed)
	a.changed = make(chan struct{})
}

func newAnothersAPI(t *testing.T) *anothersAPI {
	t.Helper()
	a := &anothersAPI{changed: make(chan struct{})}
	path := filepath.Join(t.TempDir(), "api.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	workload.RegisterSpiffeWorkloadAPIServer(s, a)
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	a.addr = "unix://" + path
	return a
}

// signed is an SVID as such an API gives it; between are the authorities below the root.
func signed(t *testing.T, a *Authority, id spiffeid.ID, between ...*x509.Certificate) *workload.X509SVID {
	t.Helper()
	key := newKey(t)
	chain, err := a.Sign(&key.PublicKey, id, time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	out := &workload.X509SVID{SpiffeId: id.String(), X509Svid: chain[0], X509SvidKey: der, Bundle: concat(a.Bundle())}
	for _, c := range between {
		out.X509Svid = append(out.X509Svid, c.Raw...)
	}
	return out
}

func elsewhere(t *testing.T, a *anothersAPI, id spiffeid.ID) *Source {
	t.Helper()
	s, err := NewSource(withHeader(t), SourceConfig{Addr: a.addr, TrustDomain: td, Workload: id})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func TestSourceTakesItsOwnSVIDOfMany(t *testing.T) {
	ca, id := newAuthority(t, td), service(t, "compute")
	api := newAnothersAPI(t)
	api.give(signed(t, ca, service(t, "identity")), signed(t, ca, service(t, "workspace")))
	short, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := NewSource(short, SourceConfig{Addr: api.addr, TrustDomain: td, Workload: id}); !fault.Is(err, codes.Unavailable) {
		t.Fatalf("with the SVIDs of others alone: %v", err)
	}
	got := make(chan *Source, 1)
	go func() { got <- elsewhere(t, api, id) }()
	api.give(signed(t, ca, service(t, "identity")), signed(t, ca, id), signed(t, ca, service(t, "workspace")))
	s := <-got
	own, err := s.Current()
	if err != nil || own.ID != id || s.ID() != id || len(s.Bundle()) != 1 {
		t.Fatalf("%v, %v", own, err)
	}
	// It is taken away again: nothing else is shown in its place.
	api.give(signed(t, ca, service(t, "identity")))
	for range 500 {
		if _, err = s.Current(); err != nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err == nil {
		t.Fatal("an SVID that was taken away is still shown")
	}
	if c, err := s.certificate(); err == nil {
		t.Errorf("a handshake shows %v", c.Leaf.URIs)
	}
}

// TestDelegatedRootsNameRunsAndOperators is who identity may name where services have their SVIDs from elsewhere.
func TestDelegatedRootsNameRunsAndOperators(t *testing.T) {
	theirs, ours := newAuthority(t, td), newAuthority(t, td)
	api := newAnothersAPI(t)
	api.give(signed(t, theirs, service(t, "inference")))
	s := elsewhere(t, api, service(t, "inference"))
	leaf := func(a *Authority, id spiffeid.ID, err error) []*x509.Certificate {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return []*x509.Certificate{parse(t, signed(t, a, id).GetX509Svid())}
	}
	run, err := RunID(td, "ws_1", "run_1")
	byUs := leaf(ours, run, err)
	if _, err := s.verify(byUs, x509.ExtKeyUsageClientAuth, time.Now()); err == nil {
		t.Error("a root is believed that was not told")
	}
	s.Delegate(ours.Bundle())
	operator, operr := OperatorID(td, "usr_1")
	agent, agerr := AgentID(td, "agt_1")
	endpoint, enderr := EndpointID(td, "ws_1", "e")
	for name, c := range map[string]struct {
		chain []*x509.Certificate
		ok    bool
	}{
		"a service of theirs": {leaf(theirs, service(t, "compute"), nil), true}, "a run of ours": {byUs, true}, "an operator of ours": {leaf(ours, operator, operr), true},
		"a service of ours": {leaf(ours, service(t, "identity"), nil), false}, "an agent of ours": {leaf(ours, agent, agerr), false}, "an endpoint of ours": {leaf(ours, endpoint, enderr), false},
		"a run of a stranger": {leaf(newAuthority(t, td), run, nil), false}, "nobody": {nil, false},
	} {
		id, err := s.verify(c.chain, x509.ExtKeyUsageClientAuth, time.Now())
		if (err == nil) != c.ok || (err != nil && !id.IsZero()) {
			t.Errorf("%s: %v, %v", name, id, err)
		}
	}
	s.Delegate(nil)
	if _, err := s.verify(byUs, x509.ExtKeyUsageClientAuth, time.Now()); err == nil {
		t.Error("a root is believed that was taken back")
	}
}

// TestSourceBelievesAnothersIntermediates: an authority that has one above it names the trust domain, as an endorsement of ours would.
func TestSourceBelievesAnothersIntermediates(t *testing.T) {
	root := newAuthority(t, td)
	key := newKey(t)
	below := forge(t, root, &key.PublicKey, &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "below"}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true, URIs: []*url.URL{td.ID().URL()},
	})
	chain := func(id spiffeid.ID) []*x509.Certificate {
		leafKey := newKey(t)
		der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
			SerialNumber: big.NewInt(8), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true, URIs: []*url.URL{id.URL()},
		}, below, &leafKey.PublicKey, key)
		if err != nil {
			t.Fatal(err)
		}
		return []*x509.Certificate{parse(t, der), below}
	}
	api := newAnothersAPI(t)
	api.give(signed(t, root, service(t, "compute")))
	s := elsewhere(t, api, service(t, "compute"))
	if id, err := s.verify(chain(service(t, "telemetry")), x509.ExtKeyUsageServerAuth, time.Now()); err != nil || id != service(t, "telemetry") {
		t.Errorf("%v, %v", id, err)
	}
	run, err := RunID(td, "ws_1", "run_1")
	if err != nil {
		t.Fatal(err)
	}
	other := newAuthority(t, td)
	s.Delegate(other.Bundle())
	if _, err := s.verify(chain(run), x509.ExtKeyUsageClientAuth, time.Now()); err != nil {
		t.Errorf("a run of theirs: %v", err)
	}
}
