package identity

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"
	"google.golang.org/protobuf/types/known/timestamppb"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/edge"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/rule"
	"github.com/redoubt-ml/redoubt/services/identity/internal/provider"
)

// door is the listener for clients with certificates, over real TLS.
type door struct {
	l     *lab
	at    string // https://host:port
	roots *x509.CertPool
}

func newDoor(t *testing.T) *door {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	d := &door{at: "https://" + ln.Addr().String(), roots: x509.NewCertPool()}
	d.l = newLabOf(t, func(c *Config) { c.CertificateURL = d.at })
	for _, root := range d.l.s.Roots() {
		d.roots.AddCert(root)
	}
	rules, err := rule.Load("redoubt.identity.v1.ProviderService")
	must(t, err)
	chain, err := rpc.NewChain(rpc.Config{
		Service: Name, TrustDomain: d.l.cfg.TrustDomain, Installation: d.l.cfg.TrustDomain, Issuer: issuer, PublicURL: issuer, Enrolment: true, Rules: rules,
		Engine: d.l.cfg.Engine, Recorder: d.l.outbox, Logger: d.l.cfg.Logger, Now: d.l.now,
	})
	must(t, err)
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() {
		served <- d.l.s.ServeCertificates(ctx, ln, CertificatePort{Chain: chain, Certificate: edge.Mesh(func() (*tls.Certificate, error) {
			s, err := d.l.keeper.Current()
			if err != nil {
				return nil, err
			}
			c := &tls.Certificate{PrivateKey: s.Key, Leaf: s.Chain[0]}
			for _, x := range s.Chain {
				c.Certificate = append(c.Certificate, x.Raw)
			}
			return c, nil
		})})
	}()
	t.Cleanup(func() {
		stop()
		if err := <-served; err != nil {
			t.Errorf("the listener ended: %v", err)
		}
	})
	return d
}

// made is a certificate that a client has made for itself.
func (d *door) made(key crypto.Signer, change func(*x509.Certificate)) tls.Certificate {
	d.l.t.Helper()
	now := d.l.now()
	c := &x509.Certificate{SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: "robot"}, NotBefore: now.Add(-time.Minute), NotAfter: now.Add(24 * time.Hour)}
	if change != nil {
		change(c)
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	must(d.l.t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// register enters a certificate for a service principal.
func (d *door) register(name string, c tls.Certificate, until time.Time) *identityv1.ServicePrincipalCredential {
	d.l.t.Helper()
	ctx, dir := d.l.asAdmin()
	req := &identityv1.AddServicePrincipalKeyRequest{Name: name, Pem: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]}))}
	if !until.IsZero() {
		req.ExpireTime = timestamppb.New(until)
	}
	k, err := dir.AddServicePrincipalKey(ctx, req)
	must(d.l.t, err)
	return k
}

// client is an HTTP client that shows a certificate; the zero one shows none.
func (d *door) client(c tls.Certificate) *http.Client {
	conf := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: d.roots, Time: d.l.now, ClientSessionCache: tls.NewLRUClientSessionCache(8)}
	if c.Certificate != nil {
		// Whatever the server says of authorities that it likes.
		conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &c, nil }
	}
	tr := &http.Transport{TLSClientConfig: conf}
	d.l.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 20 * time.Second}
}

// said is an answer.
type said struct {
	status int
	body   map[string]any
	err    error
}

func (s said) code() string { return str(s.body, "error") }

func (d *door) post(web *http.Client, path string, q url.Values, header ...string) said {
	d.l.t.Helper()
	req, err := http.NewRequestWithContext(d.l.t.Context(), http.MethodPost, d.at+path, strings.NewReader(q.Encode()))
	must(d.l.t, err)
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	res, err := web.Do(req)
	if err != nil {
		return said{err: err}
	}
	defer func() { _ = res.Body.Close() }()
	raw, err := io.ReadAll(res.Body)
	s := said{status: res.StatusCode, err: err, body: make(map[string]any)}
	_ = json.Unmarshal(raw, &s.body)
	return s
}

func asks(id string, change ...string) url.Values {
	return with(url.Values{"grant_type": {"client_credentials"}, "client_id": {id}}, change...)
}

// A1: a service principal signs in with nothing but a certificate that was registered for it (RFC 8705), by the address that discovery names for that,
// and x/oauth2, which knows no more than that its HTTP client has one.
func TestCertificateSignsIn(t *testing.T) {
	d := newDoor(t)
	l := d.l
	sp := l.program(t, "robot")
	cert := d.made(newKey(t), nil)
	k := d.register(sp.GetName(), cert, time.Time{})
	web := d.client(cert)
	l.events()

	doc, err := l.tokens().GetDiscovery(t.Context(), &identityv1.GetDiscoveryRequest{})
	must(t, err)
	var meta struct {
		Auth    []string          `json:"token_endpoint_auth_methods_supported"`
		Bound   bool              `json:"tls_client_certificate_bound_access_tokens"`
		Aliases map[string]string `json:"mtls_endpoint_aliases"`
		Token   string            `json:"token_endpoint"`
	}
	must(t, json.Unmarshal(doc.GetJson(), &meta))
	if !slices.Contains(meta.Auth, "self_signed_tls_client_auth") || meta.Bound || meta.Aliases["token_endpoint"] != d.at+provider.PathToken || len(meta.Aliases) != 1 || meta.Token != issuer+provider.PathToken {
		t.Errorf("discovery says %s", doc.GetJson())
	}
	cfg := clientcredentials.Config{ClientID: sp.GetUid(), TokenURL: meta.Aliases["token_endpoint"], AuthStyle: oauth2.AuthStyleInParams}
	token, err := cfg.Token(context.WithValue(t.Context(), oauth2.HTTPClient, web))
	must(t, err)
	c := l.claims(token.AccessToken, issuer)
	if c.Subject != sp.GetUid() || c.PrincipalType != authn.ServicePrincipal || c.SessionID != k.GetCredentialId() || c.Confirmation != "" || token.TokenType != "Bearer" {
		t.Errorf("the token says %+v", c)
	}
	who, err := l.whoAmI(token.AccessToken)
	if err != nil || who.GetUid() != sp.GetUid() {
		t.Errorf("whoami: %v %v", who, err)
	}
	// The record has the credential, the address and the request id, as of a request through the gateway.
	if s := d.post(web, provider.PathToken, asks(sp.GetUid()), "X-Request-Id", "req-7"); s.status != 200 {
		t.Fatalf("%+v", s)
	}
	found := false
	for _, ev := range l.events() {
		if ev.GetRequestId() == "req-7" {
			found = ev.GetPrincipal() == sp.GetUid() && ev.GetDetails()["credential"] == k.GetCredentialId() && ev.GetAddress() == "127.0.0.1" && ev.GetPeer() == ""
			t.Logf("the record: %v", ev)
		}
	}
	if !found {
		t.Error("the record is not there, or says something else")
	}
	// Bound to a key by a proof for this address; one for the gateway's is for another.
	key := newKey(t)
	prover, err := authn.NewProver(key, l.now)
	must(t, err)
	here, err := prover.Proof("POST", d.at+provider.PathToken, "", "")
	must(t, err)
	s := d.post(web, provider.PathToken, asks(sp.GetUid()), "DPoP", here)
	if c := l.claims(str(s.body, "access_token"), issuer); c.Confirmation != authn.Thumbprint(&key.PublicKey) || str(s.body, "token_type") != "DPoP" {
		t.Errorf("bound: %+v %v", c, s)
	}
	if s := d.post(web, provider.PathToken, asks(sp.GetUid()), "DPoP", l.proof(key, "POST", provider.PathToken, "")); s.code() != "invalid_dpop_proof" {
		t.Errorf("a proof for the gateway's address: %+v", s)
	}
	// It exchanges tokens by it too.
	l.addUser("alice")
	ex := d.post(web, provider.PathToken, with(app{id: sp.GetUid()}.exchanges(l.apiToken(l.apiApp(), "alice", nil)), "client_secret", ""))
	if c := l.claims(str(ex.body, "access_token"), issuer); c.Actor == nil || c.Actor.Subject != sp.GetUid() || c.Actor.SessionID != k.GetCredentialId() {
		t.Errorf("exchanged: %+v %v", c.Actor, ex)
	}
	// Other kinds of keys, and a certificate from some authority: that one is looked at as any other.
	ca := newKey(t)
	leaf := d.made(newKey(t), nil)
	tmpl, err := x509.ParseCertificate(leaf.Certificate[0])
	must(t, err)
	der, err := x509.CreateCertificate(rand.Reader, tmpl, &x509.Certificate{Subject: pkix.Name{CommonName: "some CA"}}, leaf.PrivateKey.(*ecdsa.PrivateKey).Public(), ca)
	must(t, err)
	leaf.Certificate = [][]byte{der}
	d.register(sp.GetName(), leaf, time.Time{})
	if s := d.post(d.client(leaf), provider.PathToken, asks(sp.GetUid())); s.status != 200 {
		t.Errorf("of an authority: %+v", s)
	}
}

// A1: without a listener of its own discovery promises nothing.
func TestNoCertificateListener(t *testing.T) {
	l := newLab(t)
	doc, err := l.tokens().GetDiscovery(t.Context(), &identityv1.GetDiscoveryRequest{})
	must(t, err)
	for _, word := range []string{"mtls", "tls_client_auth"} {
		if bytes.Contains(doc.GetJson(), []byte(word)) {
			t.Errorf("discovery says %s: %s", word, doc.GetJson())
		}
	}
}

// A1, A3: what is no certificate that counts now, for this service principal, by this connection, gives no token.
func TestAttackCertificate(t *testing.T) {
	long(t)
	d := newDoor(t)
	l := d.l
	sp, other := l.program(t, "robot"), l.program(t, "other")
	key := newKey(t)
	cert, theirs := d.made(key, nil), d.made(newKey(t), nil)
	d.register(sp.GetName(), cert, time.Time{})
	d.register(other.GetName(), theirs, time.Time{})
	_, secret := l.robot("third")
	short := d.made(newKey(t), nil)
	d.register(sp.GetName(), short, l.now().Add(time.Hour))
	later := d.made(newKey(t), func(c *x509.Certificate) { c.NotBefore = l.now().Add(time.Hour) })
	d.register(sp.GetName(), later, time.Time{})
	public := newKey(t) // registered as a key, not as a certificate
	spki, err := x509.MarshalPKIXPublicKey(&public.PublicKey)
	must(t, err)
	ctx, dir := l.asAdmin()
	_, err = dir.AddServicePrincipalKey(ctx, &identityv1.AddServicePrincipalKeyRequest{Name: sp.GetName(), Pem: string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki}))})
	must(t, err)
	// An SVID of a service, by the authority of the mesh; registered too, for an administrator may be talked into that.
	svidKey := newKey(t)
	chain, err := l.s.authority.Load().Sign(&svidKey.PublicKey, l.id("service/compute"), 12*time.Hour, l.now())
	must(t, err)
	svid := tls.Certificate{Certificate: chain, PrivateKey: svidKey}
	unregistered := newKey(t)
	chain, err = l.s.authority.Load().Sign(&unregistered.PublicKey, l.id("service/gateway"), 12*time.Hour, l.now())
	must(t, err)
	meshed := tls.Certificate{Certificate: chain, PrivateKey: unregistered}
	d.register(sp.GetName(), svid, time.Time{})
	a := l.app("board", nil)
	own := d.client(cert)
	behind := d.made(newKey(t), nil)
	behind.Certificate = append(behind.Certificate, cert.Certificate[0])

	refused := func(name string, c tls.Certificate, q url.Values, header ...string) attack {
		return attack{name, func(*testing.T) string {
			s := d.post(d.client(c), provider.PathToken, q, header...)
			if s.err == nil && s.status == http.StatusUnauthorized && s.code() == "invalid_client" && str(s.body, "access_token") == "" {
				return ""
			}
			return fmt.Sprintf("%+v", s)
		}}
	}
	cut := func(name string, web *http.Client) attack {
		return attack{name, func(*testing.T) string {
			if s := d.post(web, provider.PathToken, asks(sp.GetUid())); s.err == nil {
				return fmt.Sprintf("%+v", s)
			}
			return ""
		}}
	}
	old := d.client(cert)
	old.Transport.(*http.Transport).TLSClientConfig.MaxVersion = tls.VersionTLS12
	stolen := cert
	stolen.PrivateKey = newKey(t)
	all := []attack{
		cut("no certificate", d.client(tls.Certificate{})), cut("TLS 1.2", old), cut("a certificate without its key", d.client(stolen)),
		refused("a certificate that was never registered", d.made(newKey(t), nil), asks(sp.GetUid())),
		refused("the same key in another certificate", d.made(key, nil), asks(sp.GetUid())),
		refused("another's certificate", theirs, asks(sp.GetUid())),
		refused("a certificate for another", cert, asks(other.GetUid())),
		refused("no client", cert, asks("")), refused("a client that is none", cert, asks("spn_nobody")), refused("an application", cert, asks(a.id)), refused("the command line", cert, asks(provider.CommandLine)),
		refused("a key that was registered without a certificate", d.made(public, nil), asks(sp.GetUid())),
		refused("a certificate that is not yet good", later, asks(sp.GetUid())),
		refused("a service's certificate", meshed, asks(sp.GetUid())),
		refused("a service's certificate that was registered", svid, asks(sp.GetUid())),
		refused("behind a stranger's certificate", behind, asks(sp.GetUid())),
		refused("a secret with it", cert, asks(sp.GetUid(), "client_secret", secret)),
		refused("an assertion with it", cert, asks(sp.GetUid(), "client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer", "client_assertion", "a.b.c")),
		refused("half an assertion with it", cert, asks(sp.GetUid(), "client_assertion_type", "x")),
		refused("a password in the header with it", cert, asks(sp.GetUid()), "Authorization", "Basic "+"c3BuX3g6c2VjcmV0"),
		refused("another's secret by a certificate that is not its own", theirs, asks(sp.GetUid(), "client_secret", secret)),
		{"a certificate in a header", func(*testing.T) string {
			stranger := d.client(d.made(newKey(t), nil))
			text := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]}))
			for _, name := range []string{"X-Forwarded-Client-Cert", "X-Client-Cert", "Client-Cert", "X-SSL-Client-Cert", "X-Amzn-Mtls-Clientcert", "Ssl-Client-Cert"} {
				if s := d.post(stranger, provider.PathToken, asks(sp.GetUid()), name, url.QueryEscape(text)); s.code() != "invalid_client" {
					return fmt.Sprintf("%s: %+v", name, s)
				}
			}
			return ""
		}},
		{"through the gateway", func(*testing.T) string {
			r := l.token(asks(sp.GetUid()), nil)
			return gave(r, r.code != "invalid_client")
		}},
		{"by a service of the mesh, as itself", func(*testing.T) string {
			_, err := identityv1.NewProviderServiceClient(l.service("compute")).RequestToken(t.Context(), &identityv1.RequestTokenRequest{Http: posted(asks(sp.GetUid()), nil)})
			if err == nil {
				return "a token"
			}
			return ""
		}},
		{"another route", func(*testing.T) string {
			for _, path := range []string{provider.PathRevoke, provider.PathIntro, provider.PathUserInfo, provider.PathAuthorize, "/", "/oauth2/token/", "/oauth2//token", "/OAUTH2/token", "/.well-known/openid-configuration"} {
				if s := d.post(own, path, asks(sp.GetUid())); s.status != http.StatusNotFound {
					return fmt.Sprintf("%s: %+v", path, s)
				}
			}
			return ""
		}},
		{"another method", func(t *testing.T) string {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, d.at+provider.PathToken+"?"+asks(sp.GetUid()).Encode(), http.NoBody)
			must(t, err)
			res, err := own.Do(req)
			must(t, err)
			_ = res.Body.Close()
			if res.StatusCode != http.StatusNotFound {
				return res.Status
			}
			return ""
		}},
		{"a body past all bounds", func(*testing.T) string {
			s := d.post(own, provider.PathToken, asks(sp.GetUid(), "x", strings.Repeat("a", 1<<20)))
			if s.err == nil && s.code() != "invalid_request" {
				return fmt.Sprintf("%+v", s)
			}
			return ""
		}},
		{"more than was registered in time", func(*testing.T) string { // past the entry's end, before the certificate's
			web := d.client(short)
			if s := d.post(web, provider.PathToken, asks(sp.GetUid())); s.status != 200 {
				return fmt.Sprintf("not even before: %+v", s)
			}
			l.advance(time.Hour)
			s := d.post(web, provider.PathToken, asks(sp.GetUid()))
			if s.code() != "invalid_client" {
				return fmt.Sprintf("%+v", s)
			}
			return ""
		}},
	}
	attacks(t, all)
	if s := d.post(own, provider.PathToken, asks(sp.GetUid())); s.status != 200 {
		t.Errorf("what is right does not work: %+v", s)
	}
}

// A1, A3: a certificate that was removed, and one of who was disabled, is refused from the moment that the call has returned, over a connection that has
// stood since before; what it gave is over too.
func TestCertificateIsOver(t *testing.T) {
	for name, end := range map[string]func(*lab, *identityv1.ServicePrincipal, string) error{
		"removed": func(l *lab, sp *identityv1.ServicePrincipal, id string) error {
			ctx, dir := l.asAdmin()
			_, err := dir.DeleteServicePrincipalCredential(ctx, &identityv1.DeleteServicePrincipalCredentialRequest{Name: sp.GetName(), CredentialId: id})
			return err
		},
		"disabled": func(l *lab, sp *identityv1.ServicePrincipal, _ string) error {
			ctx, dir := l.asAdmin()
			_, err := dir.SetServicePrincipalDisabled(ctx, &identityv1.SetServicePrincipalDisabledRequest{Name: sp.GetName(), Disabled: true})
			return err
		},
		"deleted": func(l *lab, sp *identityv1.ServicePrincipal, _ string) error {
			ctx, dir := l.asAdmin()
			_, err := dir.DeleteServicePrincipal(ctx, &identityv1.DeleteServicePrincipalRequest{Name: sp.GetName()})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDoor(t)
			sp := d.l.program(t, "robot")
			cert := d.made(newKey(t), nil)
			k := d.register(sp.GetName(), cert, time.Time{})
			// One connection, made before, with a dialer that makes no other.
			web, made := d.client(cert), 0
			web.Transport.(*http.Transport).DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
				if made++; made > 1 {
					return nil, errors.New("a second connection")
				}
				return new(net.Dialer).DialContext(ctx, network, addr)
			}
			first := d.post(web, provider.PathToken, asks(sp.GetUid()))
			if first.status != 200 {
				t.Fatalf("%+v", first)
			}
			d.l.advance(time.Second)
			must(t, end(d.l, sp, k.GetCredentialId()))
			if s := d.post(web, provider.PathToken, asks(sp.GetUid())); s.err != nil || s.code() != "invalid_client" || s.status != 401 {
				t.Errorf("over the connection that stood: %+v", s)
			}
			if s := d.post(d.client(cert), provider.PathToken, asks(sp.GetUid())); s.code() != "invalid_client" {
				t.Errorf("over another: %+v", s)
			}
			if _, err := d.l.whoAmI(str(first.body, "access_token")); err == nil {
				t.Error("the token that it gave is good")
			}
		})
	}
}

// D10: a session of TLS is never resumed here: each connection has proved its key in a handshake of its own.
func TestCertificateHandshakes(t *testing.T) {
	d := newDoor(t)
	sp := d.l.program(t, "robot")
	cert := d.made(newKey(t), nil)
	d.register(sp.GetName(), cert, time.Time{})
	web := d.client(cert)
	for range 3 {
		if s := d.post(web, provider.PathToken, asks(sp.GetUid())); s.status != 200 {
			t.Fatalf("%+v", s)
		}
		web.CloseIdleConnections()
	}
	conf := web.Transport.(*http.Transport).TLSClientConfig.Clone()
	for range 2 {
		c, err := tls.Dial("tcp", strings.TrimPrefix(d.at, "https://"), conf)
		must(t, err)
		_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		_, _ = io.ReadAll(c)
		if state := c.ConnectionState(); state.DidResume || state.Version != tls.VersionTLS13 {
			t.Errorf("resumed %v, version %x", state.DidResume, state.Version)
		}
		_ = c.Close()
	}
}
