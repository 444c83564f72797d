package provider

import (
	"context"
	"errors"
	"html/template"
	"net/http"
	"net/url"
	"time"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/identity/internal/clients"
	"github.com/redoubt-ml/redoubt/services/identity/internal/federation"
	"github.com/redoubt-ml/redoubt/services/identity/internal/login"
	"github.com/redoubt-ml/redoubt/services/identity/internal/store"
)

// Paths of the provider below the issuer; the gateway serves them.
const (
	PathAuthorize = "/oauth2/authorize"
	PathSignIn    = "/oauth2/sign-in"
	PathToken     = "/oauth2/token" //nolint:gosec // a path
	PathIntro     = "/oauth2/introspect"
	PathRevoke    = "/oauth2/revoke"
	PathUserInfo  = "/oauth2/userinfo"
	PathEnd       = "/oauth2/end-session"
	PathDeviceReq = "/oauth2/device_authorization"
	PathDevice    = "/oauth2/device"
	PathFactors   = "/oauth2/factors"
	PathScript    = "/oauth2/key.js"
	// PathHome is followed by the id of a foreign issuer: each has a callback of its own.
	PathHome = "/oauth2/home/"
)

// Lives of what the provider gives.
const (
	requestLife = 15 * time.Minute // of a request that waits for a person
	codeLife    = time.Minute
	codeKept    = time.Hour          // a used code is known as one
	grantLife   = 7 * 24 * time.Hour // of what an application was given, with all refreshing
	refreshIdle = 3 * 24 * time.Hour // of a refresh token that is not used
	refreshSlip = 10 * time.Second   // in which a used refresh token gives its own successor again
	idLife      = 10 * time.Minute
	deviceLife  = 10 * time.Minute
	deviceWait  = 5 * time.Second
	revokedFor  = 24 * time.Hour // longer than any access token lives
)

// BrowserLife is that of a browser that is signed in, and of all that a person with a home elsewhere has from it.
const BrowserLife = 12 * time.Hour

// Box seals what is stored in forms.
type Box interface {
	Seal(ctx context.Context, kind, id string, plain []byte) ([]byte, error)
	Open(ctx context.Context, kind, id string, sealed []byte) ([]byte, error)
}

// SignInOver is the metadata key of a refusal of Continue after which a sign-in begins anew.
const SignInOver = "sign_in_over"

// Config of a Provider. Everything but CertificateURL and Proofs is required.
type Config struct {
	Issuer string
	// CertificateURL is the address of the listener at which clients prove themselves by a certificate, "" where there is none.
	CertificateURL string

	DB       *sqldb.DB
	Store    *store.Store
	Box      Box
	Verifier *authn.Verifier
	Keys     authn.KeySet
	// Signer gives the key of the moment, and Mint an access token by it.
	Signer func() (*authn.Signer, error)
	Mint   func(ctx context.Context, q sqldb.DBTX, c authn.Claims, life time.Duration) (string, authn.Claims, error)
	// BySecret, ByKey and ByCertificate find the service principal that a secret, the private half of a key, or that of a certificate in DER proves;
	// remembered lets them answer from memory, which is good for MintFor alone. MintFor is Mint for it.
	BySecret func(ctx context.Context, id string, secret redact.Secret, remembered bool) (f clients.Facts, ok bool, err error)
	ByKey    func(ctx context.Context, id, thumbprint string, remembered bool) (f clients.Facts, ok bool, err error)

	ByCertificate func(ctx context.Context, id string, der []byte, remembered bool) (f clients.Facts, ok bool, err error)

	MintFor func(call *rpc.Call, f clients.Facts, c authn.Claims, life time.Duration) (string, authn.Claims, error)
	// Secure runs a change that makes something invalid: when it returns nil, everybody honours it.
	Secure func(ctx context.Context, fn func(ctx context.Context, tx *sqldb.Tx) error) error
	// SignIn and Continue prove who somebody is. Continue gives the recovery codes of a user whose first factor was proved.
	SignIn   func(ctx context.Context, req *identityv1.SignInRequest, finish login.Finish) (login.Asked, error)
	Continue func(ctx context.Context, req *identityv1.ContinueSignInRequest, finish login.Finish) ([]string, error)
	// AskKey asks a security key anew in a sign-in that waits for a factor, or "" where none can be.
	AskKey func(ctx context.Context, state string) (options string, err error)
	// BeginKey and AddKey register a further security key of a browser's user; ok is false where he has to sign in first.
	BeginKey func(ctx context.Context, sid string) (state, options string, has []store.Factor, ok bool, err error)
	AddKey   func(ctx context.Context, sid, state, name, answer string, finish login.Finish) ([]string, error)
	// Homes are the foreign issuers whose people may sign in, Relying speaks to them, and Arrive proves who came back from one.
	Homes   func(ctx context.Context) ([]store.Issuer, error)
	Relying *federation.Relying
	Arrive  func(ctx context.Context, i store.Issuer, who federation.Person, finish login.Finish) (login.Asked, error)
	// Left ends what a person has here whom his issuer has signed out.
	Left func(ctx context.Context, i store.Issuer, who federation.Leaver) error
	// May reports whether a principal has an action at the installation.
	May func(principal, action string) bool
	// TokenLife is that of access tokens.
	TokenLife time.Duration
	// Proofs are the used proofs of possession that all instances remember; nil where there is one.
	Proofs authn.SharedProofs
	Now    func() time.Time
}

// Provider serves the routes. It is safe for concurrent use.
type Provider struct {
	identityv1.UnsafeProviderServiceServer

	cfg    Config
	origin string // of the issuer
	proofs *authn.ProofChecker
	codes  *login.Guard // of user codes that are typed
	pages  *template.Template
}

var _ identityv1.ProviderServiceServer = (*Provider)(nil)

// New makes a Provider.
func New(cfg Config) (*Provider, error) {
	if cfg.Issuer == "" || cfg.DB == nil || cfg.Store == nil || cfg.Box == nil || cfg.Verifier == nil || cfg.Keys == nil || cfg.Signer == nil ||
		cfg.Mint == nil || cfg.BySecret == nil || cfg.ByKey == nil || cfg.ByCertificate == nil || cfg.MintFor == nil || cfg.Secure == nil || cfg.SignIn == nil || cfg.Continue == nil || cfg.AskKey == nil || cfg.BeginKey == nil || cfg.AddKey == nil ||
		cfg.May == nil || cfg.Homes == nil || cfg.Relying == nil || cfg.Arrive == nil || cfg.Left == nil || cfg.TokenLife <= 0 || cfg.Now == nil {
		return nil, errors.New("provider: every field of Config but CertificateURL and Proofs is required")
	}
	u, err := url.Parse(cfg.Issuer)
	if err != nil {
		return nil, err
	}
	p := &Provider{cfg: cfg, origin: u.Scheme + "://" + u.Host, codes: login.NewGuard(login.Limits{PerAccount: 1 << 30, PerAddress: 10})}
	if p.proofs, err = authn.NewProofChecker(authn.ProofConfig{Now: cfg.Now, Shared: cfg.Proofs}); err != nil {
		return nil, err
	}
	if p.pages, err = parsePages(); err != nil {
		return nil, err
	}
	return p, nil
}

// Authorize implements ProviderService.
func (p *Provider) Authorize(ctx context.Context, req *identityv1.AuthorizeRequest) (*identityv1.Page, error) {
	return p.authorize(ctx, req.GetHttp())
}

// SubmitSignIn implements ProviderService.
func (p *Provider) SubmitSignIn(ctx context.Context, req *identityv1.SubmitSignInRequest) (*identityv1.Page, error) {
	return p.submit(ctx, req.GetHttp())
}

// ReturnHome implements ProviderService.
func (p *Provider) ReturnHome(ctx context.Context, req *identityv1.ReturnHomeRequest) (*identityv1.Page, error) {
	if req.GetHttp().GetMethod() == http.MethodPost {
		return p.leaveHome(ctx, req.GetHttp(), req.GetIssuer())
	}
	return p.returnHome(ctx, req.GetHttp(), req.GetIssuer())
}

// RequestToken implements ProviderService.
func (p *Provider) RequestToken(ctx context.Context, req *identityv1.RequestTokenRequest) (*identityv1.Page, error) {
	return p.token(ctx, req.GetHttp())
}

// IntrospectToken implements ProviderService.
func (p *Provider) IntrospectToken(ctx context.Context, req *identityv1.IntrospectTokenRequest) (*identityv1.Page, error) {
	return p.introspect(ctx, req.GetHttp())
}

// WithdrawToken implements ProviderService.
func (p *Provider) WithdrawToken(ctx context.Context, req *identityv1.WithdrawTokenRequest) (*identityv1.Page, error) {
	return p.withdraw(ctx, req.GetHttp())
}

// GetUserInfo implements ProviderService.
func (p *Provider) GetUserInfo(ctx context.Context, req *identityv1.GetUserInfoRequest) (*identityv1.Page, error) {
	return p.userInfo(ctx, req.GetHttp())
}

// EndSession implements ProviderService.
func (p *Provider) EndSession(ctx context.Context, req *identityv1.EndSessionRequest) (*identityv1.Page, error) {
	return p.endSession(ctx, req.GetHttp())
}

// RequestDevice implements ProviderService.
func (p *Provider) RequestDevice(ctx context.Context, req *identityv1.RequestDeviceRequest) (*identityv1.Page, error) {
	return p.requestDevice(ctx, req.GetHttp())
}

// VisitDevice implements ProviderService.
func (p *Provider) VisitDevice(ctx context.Context, req *identityv1.VisitDeviceRequest) (*identityv1.Page, error) {
	return p.visitDevice(ctx, req.GetHttp())
}

// VisitFactors implements ProviderService.
func (p *Provider) VisitFactors(ctx context.Context, req *identityv1.VisitFactorsRequest) (*identityv1.Page, error) {
	return p.visitFactors(ctx, req.GetHttp())
}

// GetKeyScript implements ProviderService.
func (*Provider) GetKeyScript(context.Context, *identityv1.GetKeyScriptRequest) (*identityv1.Page, error) {
	return &identityv1.Page{Status: http.StatusOK, ContentType: "text/javascript; charset=utf-8", Body: keyScript}, nil
}
