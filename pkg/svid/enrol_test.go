package svid

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// keyTeller is a server that remembers which key and which peer each call came with.
type keyTeller struct {
	healthpb.UnimplementedHealthServer
	mu    sync.Mutex
	key   *ecdsa.PublicKey
	keyOK bool
	peer  string
	calls int
}

func (k *keyTeller) Check(ctx context.Context, _ *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.key, k.keyOK = PeerPublicKey(ctx)
	k.peer, _ = PeerFrom(ctx)
	k.calls++
	return &healthpb.HealthCheckResponse{Status: healthpb.HealthCheckResponse_SERVING}, nil
}

func serve(t *testing.T, c credentials.TransportCredentials, opts ...grpc.ServerOption) (addr string, k *keyTeller) {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	k = &keyTeller{}
	s := grpc.NewServer(append(opts, grpc.Creds(c))...)
	healthpb.RegisterHealthServer(s, k)
	go func() { _ = s.Serve(lis) }()
	t.Cleanup(s.Stop)
	return lis.Addr().String(), k
}

func check(t *testing.T, addr string, c credentials.TransportCredentials) error {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(c), grpc.WithNoProxy())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_, err = healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{})
	return err
}

// svidOf is what an identity service would show on its enrolment listener.
func svidOf(t *testing.T, a *Authority, name string) func() (*SVID, error) {
	t.Helper()
	key := newKey(t)
	chain, err := a.Sign(key.Public(), service(t, name), time.Minute, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	s := &SVID{ID: service(t, name), Chain: []*x509.Certificate{parse(t, chain[0])}, Key: key, Bundle: a.Bundle()}
	return func() (*SVID, error) { return s, nil }
}

func TestEnrolmentProvesBothSides(t *testing.T) {
	a, other := newAuthority(t, td), newAuthority(t, td)
	id := service(t, "identity")
	addr, told := serve(t, EnrolServerCredentials(svidOf(t, a, "identity"), nil, nil))
	key := newKey(t)
	for _, c := range []struct {
		name string
		e    Enrolment
		ok   bool
	}{
		{"pinned", Enrolment{Pins: []string{a.Pin()}, Server: id, Key: key}, true},
		{"one of two pins", Enrolment{Pins: []string{other.Pin(), a.Pin()}, Server: id, Key: key}, true},
		{"root known", Enrolment{Roots: a.Bundle(), Server: id, Key: key}, true},
		{"other pin", Enrolment{Pins: []string{other.Pin()}, Server: id, Key: key}, false},
		{"other root", Enrolment{Roots: other.Bundle(), Server: id, Key: key}, false},
		{"empty pin", Enrolment{Pins: []string{""}, Server: id, Key: key}, false},
		{"other server", Enrolment{Pins: []string{a.Pin()}, Server: service(t, "compute"), Key: key}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			config, err := EnrolClientTLS(c.e)
			if err != nil {
				t.Fatal(err)
			}
			told.key, told.keyOK = nil, false
			err = check(t, addr, credentials.NewTLS(config))
			if (err == nil) != c.ok {
				t.Fatalf("call: %v", err)
			}
			if !c.ok {
				return
			}
			if !told.keyOK || !key.PublicKey.Equal(told.key) {
				t.Error("the server did not see the key")
			}
			if told.peer != "" {
				t.Errorf("an enrolling peer has the identity %s", told.peer)
			}
		})
	}
	for name, e := range map[string]Enrolment{
		"no key": {Pins: []string{a.Pin()}, Server: id}, "no server": {Pins: []string{a.Pin()}, Key: key}, "nothing to believe": {Server: id, Key: key},
		"only a trust domain": {Pins: []string{a.Pin()}, Server: td.ID(), Key: key},
	} {
		if _, err := EnrolClientTLS(e); !fault.Is(err, codes.InvalidArgument) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestEnrolmentPinIsOfTheSigner shows the pinned root but a leaf that it has not signed.
func TestEnrolmentPinIsOfTheSigner(t *testing.T) {
	a, mallory := newAuthority(t, td), newAuthority(t, td)
	forged, err := svidOf(t, mallory, "identity")()
	if err != nil {
		t.Fatal(err)
	}
	for name, bundle := range map[string][]*x509.Certificate{
		"pinned root alone": a.Bundle(), "both roots": {mallory.Root(), a.Root()}, "no root": nil,
	} {
		s := *forged
		s.Bundle = bundle
		addr, _ := serve(t, EnrolServerCredentials(func() (*SVID, error) { return &s, nil }, nil, nil))
		config, err := EnrolClientTLS(Enrolment{Pins: []string{a.Pin()}, Server: service(t, "identity"), Key: newKey(t)})
		if err != nil {
			t.Fatal(err)
		}
		if err := check(t, addr, credentials.NewTLS(config)); status.Code(err) != codes.Unavailable {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestEnrolServerRefuses(t *testing.T) {
	a := newAuthority(t, td)
	failed := make(chan error, 64)
	addr, told := serve(t, EnrolServerCredentials(svidOf(t, a, "identity"), nil, func(err error) { failed <- err }))
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	chained := selfSigned(t, newKey(t))
	chained.Certificate = append(chained.Certificate, a.Root().Raw)
	stolen := selfSigned(t, newKey(t))
	stolen.PrivateKey = newKey(t) // a certificate that was seen, without its key
	for name, c := range map[string]*tls.Config{
		"no certificate": {}, "RSA": {Certificates: []tls.Certificate{selfSigned(t, rsaKey)}},
		"a chain": {Certificates: []tls.Certificate{chained}}, "not its key": {Certificates: []tls.Certificate{stolen}},
		"TLS 1.2": {Certificates: []tls.Certificate{selfSigned(t, newKey(t))}, MaxVersion: tls.VersionTLS12},
	} {
		c.InsecureSkipVerify = true
		if err := check(t, addr, credentials.NewTLS(c)); status.Code(err) != codes.Unavailable {
			t.Errorf("%s: %v", name, err)
		}
	}
	for n := range 5 {
		select {
		case <-failed:
		case <-time.After(5 * time.Second):
			t.Fatalf("%d failures were counted", n)
		}
	}
	if told.calls != 0 {
		t.Errorf("%d calls came through", told.calls)
	}
	if _, err := SelfSigned(rsaKey, time.Now()); !fault.Is(err, codes.InvalidArgument) {
		t.Errorf("SelfSigned with RSA: %v", err)
	}
	if _, ok := PeerPublicKey(context.Background()); ok {
		t.Error("a key without a connection")
	}
}

func selfSigned(t *testing.T, key crypto.Signer) tls.Certificate {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Minute)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func TestKeyFingerprint(t *testing.T) {
	a, b := newKey(t), newKey(t)
	fa, err := KeyFingerprint(&a.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	fb, err := KeyFingerprint(&b.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	if again, _ := KeyFingerprint(&a.PublicKey); fa == fb || fa != again || len(fa) != 43 {
		t.Errorf("%s %s %s", fa, again, fb)
	}
	if _, err := KeyFingerprint(nil); err == nil {
		t.Error("the fingerprint of no key")
	}
}
