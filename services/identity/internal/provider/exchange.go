package provider

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"unicode/utf8"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
)

// oauthError is the metadata key with the error code of RFC 6749 section 5.2.
const oauthError = "oauth_error"

// Error codes of the protocol.
const (
	errRequest     = "invalid_request"
	errClient      = "invalid_client"
	errGrant       = "invalid_grant"
	errScope       = "invalid_scope"
	errTarget      = "invalid_target"
	errUnauthorzd  = "unauthorized_client"
	errGrantType   = "unsupported_grant_type"
	errToken       = "invalid_token"
	errProof       = "invalid_dpop_proof"
	errDenied      = "access_denied"
	errLogin       = "login_required"
	errInteraction = "interaction_required"
)

// refuse is a refusal of what a program asked for.
func refuse(code, format string, args ...any) *fault.Error {
	return fault.New(codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID, format, args...).With(oauthError, code)
}

// badClient is the one answer for a client that does not exist, a wrong secret and one that is over.
func badClient() *fault.Error {
	return fault.New(codes.Unauthenticated, faultv1.Reason_CREDENTIAL_INVALID, "the client is not known, or its secret, key or certificate is wrong or over").With(oauthError, errClient)
}

// badGrant is the one answer for a code or token that never was, was used, is over or is another client's.
func badGrant() *fault.Error {
	return fault.New(codes.Unauthenticated, faultv1.Reason_CREDENTIAL_INVALID, "the code or token is not known, was used, is over, or is not this client's: sign in again").With(oauthError, errGrant)
}

const (
	maxParams = 40
	form      = "application/x-www-form-urlencoded"
)

// params are the parameters of a request, each given once. One that is empty counts as not given (RFC 6749 section 3.1).
type params map[string]string

// badParams says what is wrong with the parameters.
type badParams string

func (b badParams) Error() string { return string(b) }

// parse reads parameters. free names those that may hold any text.
func parse(raw string, free ...string) (params, error) {
	values, err := url.ParseQuery(raw)
	if err != nil {
		return nil, badParams("the parameters cannot be read")
	}
	if len(values) > maxParams {
		return nil, badParams("there are too many parameters")
	}
	out := make(params, len(values))
next:
	for name, v := range values {
		if len(v) != 1 {
			return nil, badParams("a parameter is given twice")
		}
		if v[0] == "" {
			continue
		}
		for _, f := range free {
			if name == f {
				out[name] = v[0]
				continue next
			}
		}
		if !utf8.ValidString(v[0]) || strings.ContainsFunc(v[0], func(r rune) bool { return r < 0x20 || r == 0x7f }) {
			return nil, badParams("a parameter holds control characters")
		}
		out[name] = v[0]
	}
	return out, nil
}

// formOf reads the body of a POST that a program or a page of ours sent. Nothing may stand in the URL.
func formOf(x *identityv1.Exchange, free ...string) (params, error) {
	if x.GetMethod() != http.MethodPost {
		return nil, badParams("the method has to be POST")
	}
	if t, _, err := mime.ParseMediaType(x.GetContentType()); err != nil || t != form {
		return nil, badParams("the body has to be " + form)
	}
	if x.GetQuery() != "" {
		return nil, badParams("parameters stand in the URL; they belong in the body")
	}
	return parse(string(x.GetBody()), free...)
}

// tokenForm is formOf for the endpoints of programs.
func tokenForm(x *identityv1.Exchange) (params, error) {
	q, err := formOf(x)
	if err != nil {
		return nil, refuse(errRequest, "%s", err.Error())
	}
	return q, nil
}

// either reads a GET's query or a POST's body.
func either(x *identityv1.Exchange, free ...string) (params, error) {
	if x.GetMethod() == http.MethodGet {
		return parse(x.GetQuery(), free...)
	}
	return formOf(x, free...)
}

// ours reports whether a POST comes from a page of ours, as far as the browser says. A browser of today always says it; what is no browser
// has no cookie that somebody else could make it send.
func (p *Provider) ours(x *identityv1.Exchange) bool {
	if s := x.GetSecFetchSite(); s != "" {
		return s == "same-origin"
	}
	return x.GetOrigin() == "" || x.GetOrigin() == p.origin
}

// answer is JSON for a program.
func answer(v any) (*identityv1.Page, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, fault.Internal(err, "the answer could not be encoded")
	}
	return &identityv1.Page{Status: http.StatusOK, ContentType: "application/json", Body: body}, nil
}

// Prefixes of what the provider gives out, so that scanners of repositories can know one.
const (
	prefixCode    = "rdc_"
	prefixRefresh = "rdr_"
	prefixDevice  = "rdv_"
	prefixCookie  = "rdb_"
)

// newSecret makes a secret of 256 random bits.
func newSecret(prefix string) redact.Secret {
	var bits [32]byte
	_, _ = rand.Read(bits[:]) // never fails
	return redact.FromString(prefix + base64.RawURLEncoding.EncodeToString(bits[:]))
}
