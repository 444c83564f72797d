package provider

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"html/template"
	"net/http"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/services/identity/internal/store"
)

//go:embed pages
var files embed.FS

//go:embed pages/style.css
var style string

// keyScript is the one script of the pages.
//
//go:embed pages/key.js
var keyScript []byte

// styleHash lets the one style of the pages pass their policy.
var styleHash = func() string {
	sum := sha256.Sum256([]byte(style))
	return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}()

func parsePages() (*template.Template, error) {
	return template.New("").Funcs(template.FuncMap{
		"style": func() template.CSS { return template.CSS(style) }, //nolint:gosec // a file of ours
		"factor": func(name string) string {
			switch name {
			case "recovery_code":
				return "a recovery code"
			case kindKey:
				return "security key"
			}
			return "a code of the authenticator app"
		},
	}).ParseFS(files, "pages/*.html")
}

// view is what the pages know. What strangers wrote of it passes html/template.
type view struct {
	Title, Error string
	// Client that asks, and the origin that the answer goes to, "" for a device.
	Client, To string
	// As is who is signed in here, where he is asked whether to go on.
	As string
	// User to fill in.
	User    string
	Factors []string
	// Secret and URI of the factor that is enrolled here, and the recovery codes that came with it.
	Secret   string
	URI      template.URL
	Recovery []string
	// Key is what a security key is asked, in JSON, "" where none is; Own are the factors of who looks at his own.
	Key string
	Own []ownFactor
	// API says that the client will act with all that the person may do.
	API      bool
	UserCode string
	// Request is the sealed request.
	Request string
	Text    string
	// Homes are the foreign issuers that can be gone to. Away is where the page leads, and Host whose that is.
	Homes      []store.Issuer
	Away, Host string
}

var titles = map[string]string{
	"sign-in.html": "Sign in", "factor.html": "One more step", "continue.html": "Continue", "device.html": "Connect a device",
	"done.html": "Done", "away.html": "Sign in elsewhere", "leave.html": "Sign out", "factors.html": "Your second factors", "broken.html": "This does not work",
}

func (p *Provider) show(status int, name string, page view) (*identityv1.Page, error) {
	page.Title = titles[name]
	var b bytes.Buffer
	if err := p.pages.ExecuteTemplate(&b, name, page); err != nil {
		return nil, fault.Internal(err, "a page could not be made")
	}
	policy := "default-src 'none'; style-src " + styleHash + "; base-uri 'none'; frame-ancestors 'none'; form-action 'self'"
	if page.To != "" { // browsers hold the redirect after a form to it too
		policy += " " + page.To
	}
	if page.Key != "" { // the one file, on the pages that ask for a key
		policy += "; script-src " + p.origin + PathScript
	}
	return &identityv1.Page{Status: int32(status), ContentType: "text/html; charset=utf-8", Body: b.Bytes(), ContentSecurityPolicy: policy}, nil
}

// broken says to a person what does not work, where nobody else can be told.
func (p *Provider) broken(ctx context.Context, text string) (*identityv1.Page, error) {
	return p.show(http.StatusBadRequest, "broken.html", view{Error: text, Text: "request id " + rpc.From(ctx).RequestID})
}

// forged refuses a form that another site sent.
func (p *Provider) forged(ctx context.Context) (*identityv1.Page, error) {
	rpc.From(ctx).Refuse(fault.New(codes.PermissionDenied, faultv1.Reason_ACCESS_DENIED, "the form came from another site"))
	out, err := p.broken(ctx, "This form was sent by another site, so nothing was done.")
	if err == nil {
		out.Status = http.StatusForbidden
	}
	return out, err
}
