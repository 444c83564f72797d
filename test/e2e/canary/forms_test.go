package canary

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base32"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"html"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/pquerna/otp/hotp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/internal/testmesh"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/redact"
)

// places of a form's values.
var placesOfForms = []struct {
	name string
	send func(path string, q url.Values) (verb, to, body, contentType string)
}{
	{"a form", func(p string, q url.Values) (string, string, string, string) { return "POST", p, q.Encode(), form }},
	{"the query", func(p string, q url.Values) (string, string, string, string) {
		return "GET", p + "?" + q.Encode(), "", ""
	}},
	{"the query of a POST", func(p string, q url.Values) (string, string, string, string) {
		return "POST", p + "?" + q.Encode(), "", form
	}},
	{"both", func(p string, q url.Values) (string, string, string, string) {
		return "POST", p + "?" + q.Encode(), q.Encode(), form
	}},
	{"JSON", func(p string, q url.Values) (string, string, string, string) {
		b, _ := json.Marshal(q)
		return "POST", p, string(b), "application/json"
	}},
	{"a form of another type", func(p string, q url.Values) (string, string, string, string) {
		return "POST", p, q.Encode(), "multipart/form-data; boundary=x"
	}},
	{"a form that is given twice", func(p string, q url.Values) (string, string, string, string) {
		return "POST", p, q.Encode() + "&" + q.Encode(), form
	}},
	{"a form that breaks off", func(p string, q url.Values) (string, string, string, string) {
		return "POST", p, q.Encode() + "%", form
	}},
	{"a form with NUL", func(p string, q url.Values) (string, string, string, string) {
		return "POST", p, strings.ReplaceAll(q.Encode(), "&", "%00&"), form
	}},
	{"a form that is too long", func(p string, q url.Values) (string, string, string, string) {
		return "POST", p, q.Encode() + "&x=" + strings.Repeat("x", 80<<10), form
	}},
	{"the path", func(p string, q url.Values) (string, string, string, string) {
		return "POST", p + "/" + url.PathEscape(q.Encode()), "", form
	}},
	{"another method", func(p string, q url.Values) (string, string, string, string) { return "PUT", p, q.Encode(), form }},
}

const form = "application/x-www-form-urlencoded"

// forms sends secrets that are none to the provider's endpoints and pages, in each place of a request.
func (w *walk) forms() {
	secret := func(what string) string {
		w.sensitive[what] = true
		return w.text(what)
	}
	values := url.Values{"client_id": {w.text("form: client_id")}, "user": {w.text("form: user")}}
	for _, name := range []string{
		"client_secret", "code", "code_verifier", "refresh_token", "device_code", "user_code", "subject_token", "actor_token", "assertion", "client_assertion", "token", "id_token_hint", "password", "request", "response",
	} {
		values.Set(name, secret("form: "+name))
	}
	heads := http.Header{
		"Dpop": {secret("header: dpop")}, "Cookie": {"__Host-redoubt=" + secret("header: cookie of the console") + "; redoubt_browser=" + secret("header: cookie of the provider")},
		"X-Api-Key": {secret("header: key")}, "Proxy-Authorization": {"Bearer " + secret("header: proxy")},
	}
	auths := []string{"Bearer " + secret("header: bearer"), "DPoP " + secret("header: bound token"), "Basic " + base64.StdEncoding.EncodeToString([]byte("x:"+secret("header: basic"))), "Basic " + secret("header: basic that is none")}
	client, i := w.browser(), 0
	for _, path := range []string{"/oauth2/token", "/oauth2/authorize", "/oauth2/sign-in", "/oauth2/device", "/oauth2/device_authorization", "/oauth2/introspect", "/oauth2/revoke", "/oauth2/userinfo", "/oauth2/end-session", "/oauth2/home/none", "/", "/console/", "/mlflow/a.b.c/api/2.0/mlflow/experiments/search"} {
		for _, grant := range []string{"authorization_code", "refresh_token", "client_credentials", "urn:ietf:params:oauth:grant-type:device_code", "urn:ietf:params:oauth:grant-type:token-exchange", values.Get("password")} {
			if grant != "authorization_code" && path != "/oauth2/token" {
				continue
			}
			values.Set("grant_type", grant)
			values.Set("action", "sign-in")
			values.Set("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer")
			for _, p := range placesOfForms {
				verb, to, body, contentType := p.send(path, values)
				h := heads.Clone()
				h.Set("Content-Type", contentType)
				h.Set("Origin", mesh.URL)
				h.Set("Sec-Fetch-Site", "same-origin")
				if i++; i%3 != 0 {
					h.Set("Authorization", auths[i%len(auths)])
				}
				w.ask(client, p.name+" to "+path, verb, to, body, h)
			}
		}
	}
}

var sealedRequest = regexp.MustCompile(`name="request" value="([^"]*)"`)

// secrets has everything made that opens something, and uses it as it should be.
func (w *walk) secrets() {
	t := w.t
	person := "frida-" + strings.ToLower(w.text("user of all secrets"))[:8]
	note := func(what, value string) string {
		t.Helper()
		w.sensitive[what] = true
		w.note(what, value)
		return value
	}
	directory, federation := w.admin.Directory(), identityv1.NewFederationServiceClient(mesh.Dial(t, mesh.Admin(t)))
	// An invitation, and the code that resets.
	_, err := directory.CreateUser(w.ctx, &identityv1.CreateUserRequest{UserId: person})
	w.must(err)
	invitation, err := directory.CreateUserCode(w.ctx, &identityv1.CreateUserCodeRequest{Name: "users/" + person})
	w.must(err)
	password := w.free("password of an invited user")
	w.sensitive["password of an invited user"] = true
	_, err = identityv1.NewDirectoryServiceClient(mesh.Dial(t, "")).RedeemUserCode(w.ctx, &identityv1.RedeemUserCodeRequest{Code: note("invitation", invitation.GetCode()), NewPassword: password})
	w.must(err)
	reset, err := directory.CreateUserCode(w.ctx, &identityv1.CreateUserCodeRequest{Name: "users/" + person})
	w.must(err)
	note("reset code", reset.GetCode())
	// A foreign issuer.
	_, err = federation.CreateIssuer(w.ctx, &identityv1.CreateIssuerRequest{
		IssuerId: "canary", IssuerUrl: "https://issuer.invalid", Class: identityv1.HomeClass_HOME_CLASS_GUEST, ClientSecret: note("foreign issuer's client secret", "cs"+strings.ToLower(w.text("seed of a client secret"))),
		Settings: &identityv1.IssuerSettings{DisplayName: "Partner", ClientId: "us"},
	})
	w.must(err)
	// Service principals: with a secret, and an application with a key.
	robot, err := directory.CreateServicePrincipal(w.ctx, &identityv1.CreateServicePrincipalRequest{ServicePrincipalId: "canary-robot"})
	w.must(err)
	key, err := directory.AddServicePrincipalSecret(w.ctx, &identityv1.AddServicePrincipalSecretRequest{Name: robot.GetName()})
	w.must(err)
	note("client secret of a service principal", key.GetSecret())
	apps := identityv1.NewApplicationServiceClient(mesh.Dial(t, mesh.Admin(t)))
	const callback = "https://board.example/callback"
	app, err := apps.CreateApplication(w.ctx, &identityv1.CreateApplicationRequest{
		ApplicationId: "canary-board", DisplayName: "Board", RedirectUris: []string{callback}, Confidential: true, ApiAccess: true,
		GrantTypes: []string{"authorization_code", "refresh_token", "urn:ietf:params:oauth:grant-type:device_code"},
	})
	w.must(err)
	secret, err := apps.AddApplicationSecret(w.ctx, &identityv1.AddApplicationSecretRequest{Name: app.GetName()})
	w.must(err)
	note("application's secret", secret.GetSecret())

	client := w.browser()
	post := func(path string, q url.Values, h http.Header) map[string]any {
		t.Helper()
		if h == nil {
			h = http.Header{}
		}
		h.Set("Content-Type", form)
		_, body := w.ask(client, path, "POST", path, q.Encode(), h)
		out := map[string]any{}
		if err := json.Unmarshal([]byte(body), &out); err != nil || out["error"] != nil {
			t.Fatalf("%s: %v %s", path, err, body)
		}
		return out
	}
	str := func(m map[string]any, k string) string { s, _ := m[k].(string); return s }
	w.token("token of a service principal", str(post("/oauth2/token", url.Values{"grant_type": {"client_credentials"}, "client_id": {key.GetClientId()}, "client_secret": {key.GetSecret()}}, nil), "access_token"))

	// A person at the pages, and what the application gets: with a proof by a key of its own.
	proofKey := w.key("key of a proof")
	prover, err := authn.NewProver(proofKey, nil)
	w.must(err)
	proof := func(what string) http.Header {
		p, err := prover.Proof("POST", mesh.URL+"/oauth2/token", "", "")
		w.must(err)
		w.token(what, p)
		return http.Header{"Dpop": {p}}
	}
	verifier := note("PKCE verifier", w.text("PKCE verifier, half")+w.text("PKCE verifier, other half"))
	sum := sha256.Sum256([]byte(verifier))
	cookie := ""
	page := func(verb, path, body string) (string, *url.URL) {
		t.Helper()
		h := http.Header{"Origin": {mesh.URL}, "Sec-Fetch-Site": {"same-origin"}}
		if body != "" {
			h.Set("Content-Type", form)
		}
		if cookie != "" {
			h.Set("Cookie", cookie)
		}
		res, text := w.ask(client, path, verb, path, body, h)
		if res == nil {
			t.Fatal("no answer")
		}
		for _, c := range res.Cookies() {
			cookie = c.Name + "=" + c.Value
			if w.canaries["cookie "+c.Value] == "" {
				note("cookie "+c.Value, c.Value)
			}
		}
		to, _ := url.Parse(res.Header.Get("Location"))
		return text, to
	}
	sealed := func(text string) string {
		t.Helper()
		m := sealedRequest.FindStringSubmatch(text)
		if m == nil {
			t.Fatalf("no form in %s", text)
		}
		return html.UnescapeString(m[1])
	}
	text, _ := page("GET", "/oauth2/authorize?"+url.Values{
		"client_id": {app.GetUid()}, "redirect_uri": {callback}, "response_type": {"code"}, "scope": {"openid offline_access redoubt"}, "state": {w.text("state")}, "nonce": {w.text("nonce")},
		"code_challenge": {base64.RawURLEncoding.EncodeToString(sum[:])}, "code_challenge_method": {"S256"},
	}.Encode(), "")
	_, to := page("POST", "/oauth2/sign-in", url.Values{"request": {sealed(text)}, "user": {person}, "password": {password}, "action": {"sign-in"}}.Encode())
	code := note("authorization code", to.Query().Get("code"))
	got := post("/oauth2/token", url.Values{
		"grant_type": {"authorization_code"}, "code": {code}, "redirect_uri": {callback}, "code_verifier": {verifier}, "client_id": {app.GetUid()}, "client_secret": {secret.GetSecret()},
	}, proof("proof of a code"))
	w.token("application's access token", str(got, "access_token"))
	w.token("ID token", str(got, "id_token"))
	note("refresh token", str(got, "refresh_token"))
	again := post("/oauth2/token", url.Values{"grant_type": {"refresh_token"}, "refresh_token": {str(got, "refresh_token")}, "client_id": {app.GetUid()}, "client_secret": {secret.GetSecret()}}, proof("proof of a refresh"))
	note("next refresh token", str(again, "refresh_token"))
	exchanged := post("/oauth2/token", url.Values{
		"grant_type": {"urn:ietf:params:oauth:grant-type:token-exchange"}, "subject_token": {str(again, "access_token")}, "subject_token_type": {"urn:ietf:params:oauth:token-type:access_token"},
		"client_id": {key.GetClientId()}, "client_secret": {key.GetSecret()},
	}, proof("proof of an exchange"))
	w.token("token that a client exchanged", str(exchanged, "access_token"))
	device := post("/oauth2/device_authorization", url.Values{"client_id": {app.GetUid()}, "client_secret": {secret.GetSecret()}, "scope": {"openid"}}, nil)
	note("device code", str(device, "device_code"))
	typed := note("user code", str(device, "user_code"))
	text, _ = page("GET", "/oauth2/device", "")
	text, _ = page("POST", "/oauth2/device", url.Values{"request": {sealed(text)}, "user_code": {typed}}.Encode())
	page("POST", "/oauth2/sign-in", url.Values{"request": {sealed(text)}, "action": {"continue"}}.Encode())
	polled := post("/oauth2/token", url.Values{"grant_type": {"urn:ietf:params:oauth:grant-type:device_code"}, "device_code": {str(device, "device_code")}, "client_id": {app.GetUid()}, "client_secret": {secret.GetSecret()}}, nil)
	w.token("device's ID token", str(polled, "id_token"))
	w.assertion(apps, app, post)

	// A second factor, and its recovery codes.
	session, err := identityv1.NewSignInServiceClient(mesh.Dial(t, "")).SignIn(w.ctx, &identityv1.SignInRequest{User: person, Password: password})
	w.must(err)
	w.token("session's access token", session.GetSession().GetAccessToken())
	conn := mesh.Dial(t, "")
	with := grpc.PerRPCCredentials(testmesh.Bearer(session.GetSession().GetAccessToken()))
	factors := identityv1.NewFactorServiceClient(conn)
	f, err := factors.EnrolFactor(w.ctx, &identityv1.EnrolFactorRequest{DisplayName: "phone"}, with)
	w.must(err)
	note("TOTP secret", f.GetSecret())
	raw, err := base32.StdEncoding.WithPadding(base32.NoPadding).DecodeString(f.GetSecret())
	w.must(err)
	note("TOTP secret, its bytes", string(raw))
	number, err := hotp.GenerateCode(f.GetSecret(), uint64(time.Now().Unix()/30))
	w.must(err)
	proved, err := factors.ProveFactor(w.ctx, &identityv1.ProveFactorRequest{FactorId: f.GetFactor().GetFactorId(), Code: number}, with)
	w.must(err)
	for _, c := range proved.GetRecoveryCodes()[:2] {
		note("recovery code "+c[:4], c)
	}
	asked, err := identityv1.NewSignInServiceClient(conn).SignIn(w.ctx, &identityv1.SignInRequest{User: person, Password: password})
	w.must(err)
	note("state of a sign-in", asked.GetChallenge().GetState())
	_, err = identityv1.NewSignInServiceClient(conn).ContinueSignIn(metadata.AppendToOutgoingContext(w.ctx, "x-request-id", "canary"), &identityv1.ContinueSignInRequest{State: asked.GetChallenge().GetState(), Factor: "recovery_code", Response: proved.GetRecoveryCodes()[0]})
	w.must(err)
}

// key makes a private key whose number may be found nowhere, in none of its forms.
func (w *walk) key(what string) *ecdsa.PrivateKey {
	k, err := authn.GenerateKey()
	w.must(err)
	d, err := k.Bytes()
	w.must(err)
	der, err := authn.MarshalKey(k)
	w.must(err)
	lines := strings.Split(string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der.Reveal()})), "\n")
	w.note(what+", its number", string(d))
	w.note(what+", a line of its PEM", lines[1])
	w.sensitive[what+", its number"], w.sensitive[what+", a line of its PEM"] = true, true
	return k
}

// assertion has an application show that it holds its key, in place of a secret (RFC 7523).
func (w *walk) assertion(apps identityv1.ApplicationServiceClient, app *identityv1.Application, post func(string, url.Values, http.Header) map[string]any) {
	key := w.key("application's key")
	spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	w.must(err)
	added, err := apps.AddApplicationKey(w.ctx, &identityv1.AddApplicationKeyRequest{Name: app.GetName(), PublicKeyPem: string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki}))})
	w.must(err)
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: added.GetKeyId()}}, (&jose.SignerOptions{}).WithType("JWT"))
	w.must(err)
	now := time.Now()
	assertion, err := jwt.Signed(signer).Claims(jwt.Claims{
		Issuer: app.GetUid(), Subject: app.GetUid(), Audience: jwt.Audience{mesh.URL + "/oauth2/token"}, ID: w.text("jti of an assertion"), IssuedAt: jwt.NewNumericDate(now), Expiry: jwt.NewNumericDate(now.Add(time.Minute)),
	}).Serialize()
	w.must(err)
	w.token("assertion", assertion)
	device := post("/oauth2/device_authorization", url.Values{
		"client_id": {app.GetUid()}, "client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"}, "client_assertion": {assertion}, "scope": {"openid"},
	}, nil)
	code, _ := device["device_code"].(string)
	w.note("device code by an assertion", redact.FromString(code).RevealString())
}
