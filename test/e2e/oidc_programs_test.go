package e2e

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/authn"
)

// A1: standard libraries sign a program in by a certificate, at the address that discovery names, with the CA file that every client has (RFC 8705); and a
// program exchanges the token that somebody called it with (RFC 8693). Through the gateway no certificate counts, nor what a header says of one.
func TestStandardPrograms(t *testing.T) {
	ok := mustOf(t)
	dir := identityv1.NewDirectoryServiceClient(mesh.Dial(t, mesh.Admin(t)))
	sp, err := dir.CreateServicePrincipal(t.Context(), &identityv1.CreateServicePrincipalRequest{ServicePrincipalId: "certified"})
	ok(err)
	key, err := authn.GenerateKey()
	ok(err)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	ok(err)
	text := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	registered, err := dir.AddServicePrincipalKey(t.Context(), &identityv1.AddServicePrincipalKeyRequest{Name: sp.GetName(), Pem: text})
	ok(err)

	client := func(certificates ...tls.Certificate) *http.Client {
		conf := mesh.TLS()
		conf.NextProtos, conf.Certificates = nil, certificates
		tr := &http.Transport{TLSClientConfig: conf}
		t.Cleanup(tr.CloseIdleConnections)
		return &http.Client{Transport: tr}
	}
	web := client(tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key})
	ctx := context.WithValue(t.Context(), oauth2.HTTPClient, web)
	provider, err := oidc.NewProvider(ctx, mesh.URL)
	ok(err)
	var meta struct {
		Aliases struct {
			Token string `json:"token_endpoint"`
		} `json:"mtls_endpoint_aliases"`
		Grants []string `json:"grant_types_supported"`
	}
	ok(provider.Claims(&meta))
	if !strings.HasPrefix(meta.Aliases.Token, mesh.MTLSURL+"/") || mesh.MTLSURL == mesh.URL {
		t.Fatalf("the alias is %q", meta.Aliases.Token)
	}
	cfg := clientcredentials.Config{ClientID: sp.GetUid(), TokenURL: meta.Aliases.Token, AuthStyle: oauth2.AuthStyleInParams}
	token, err := cfg.Token(ctx)
	ok(err)
	verifier := provider.Verifier(&oidc.Config{SkipClientIDCheck: true, SupportedSigningAlgs: []string{"ES256"}})
	verified, err := verifier.Verify(ctx, token.AccessToken)
	if err != nil || verified.Subject != sp.GetUid() {
		t.Errorf("verified: %+v %v", verified, err)
	}
	who, err := identityv1.NewSignInServiceClient(mesh.Dial(t, token.AccessToken)).WhoAmI(t.Context(), &identityv1.WhoAmIRequest{})
	if err != nil || who.GetUid() != sp.GetUid() {
		t.Errorf("who: %v %v", who, err)
	}

	post := func(web *http.Client, at string, q url.Values, header http.Header) (int, map[string]any) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, at, strings.NewReader(q.Encode()))
		ok(err)
		if header != nil {
			req.Header = header
		}
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		res, err := web.Do(req)
		ok(err)
		defer func() { _ = res.Body.Close() }()
		m := make(map[string]any)
		_ = json.NewDecoder(res.Body).Decode(&m)
		return res.StatusCode, m
	}
	// At the gateway the same certificate is nothing, and so is a header about it.
	asks := url.Values{"grant_type": {"client_credentials"}, "client_id": {sp.GetUid()}}
	for name, header := range map[string]http.Header{
		"as it is": {}, "forwarded": {"X-Forwarded-Client-Cert": {"Cert=\"" + url.QueryEscape(text) + "\""}}, "RFC 9440": {"Client-Cert": {":" + strings.ReplaceAll(text, "\n", "") + ":"}},
	} {
		if status, m := post(web, provider.Endpoint().TokenURL, asks, header); status != http.StatusUnauthorized || m["error"] != "invalid_client" {
			t.Errorf("at the gateway, %s: %d %v", name, status, m)
		}
	}
	// Somebody calls the program; it goes on in his name, by its certificate, and says so.
	uid, called := mesh.User(t, "caller")
	status, m := post(web, meta.Aliases.Token, url.Values{
		"grant_type": {"urn:ietf:params:oauth:grant-type:token-exchange"}, "client_id": {sp.GetUid()}, "subject_token": {called}, "subject_token_type": {"urn:ietf:params:oauth:token-type:access_token"},
	}, nil)
	acting, _ := m["access_token"].(string)
	if status != http.StatusOK || acting == "" || m["issued_token_type"] != "urn:ietf:params:oauth:token-type:access_token" {
		t.Fatalf("exchange: %d %v", status, m)
	}
	verified, err = verifier.Verify(ctx, acting)
	ok(err)
	var said struct {
		Act struct {
			Sub string `json:"sub"`
			SID string `json:"sid"`
		} `json:"act"`
	}
	ok(verified.Claims(&said))
	if verified.Subject != uid || said.Act.Sub != sp.GetUid() || said.Act.SID != registered.GetCredentialId() {
		t.Errorf("it says %s %+v", verified.Subject, said)
	}
	whoami := func(token string) error {
		r, err := identityv1.NewSignInServiceClient(mesh.Dial(t, token)).WhoAmI(t.Context(), &identityv1.WhoAmIRequest{})
		if err == nil && r.GetUid() != uid {
			t.Errorf("it is %s", r.GetUid())
		}
		return err
	}
	ok(whoami(acting))
	// When the certificate is removed, the connection that stands gives nothing more, and what it gave is over everywhere; the caller is as before.
	_, err = dir.DeleteServicePrincipalCredential(t.Context(), &identityv1.DeleteServicePrincipalCredentialRequest{Name: sp.GetName(), CredentialId: registered.GetCredentialId()})
	ok(err)
	if status, m := post(web, meta.Aliases.Token, asks, nil); status != http.StatusUnauthorized || m["error"] != "invalid_client" {
		t.Errorf("after the removal: %d %v", status, m)
	}
	if whoami(acting) == nil {
		t.Error("what the certificate gave in the caller's name is good")
	}
	ok(whoami(called))
}
