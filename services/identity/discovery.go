package identity

import (
	"context"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/services/identity/internal/provider"
)

// discovery is the provider's metadata: OpenID Connect Discovery 1.0 section 3, RFC 8414 section 2, RFC 8705 section 5, RFC 9207 section 3, RFC 9449
// section 5.1.
type discovery struct {
	Issuer                 string   `json:"issuer"`
	AuthorizationEndpoint  string   `json:"authorization_endpoint"`
	TokenEndpoint          string   `json:"token_endpoint"`
	JWKSURI                string   `json:"jwks_uri"`
	UserInfoEndpoint       string   `json:"userinfo_endpoint"`
	EndSessionEndpoint     string   `json:"end_session_endpoint"`
	IntrospectionEndpoint  string   `json:"introspection_endpoint"`
	RevocationEndpoint     string   `json:"revocation_endpoint"`
	DeviceEndpoint         string   `json:"device_authorization_endpoint"`
	Scopes                 []string `json:"scopes_supported"`
	ResponseTypes          []string `json:"response_types_supported"`
	ResponseModes          []string `json:"response_modes_supported"`
	GrantTypes             []string `json:"grant_types_supported"`
	SubjectTypes           []string `json:"subject_types_supported"`
	IDTokenSigningAlgs     []string `json:"id_token_signing_alg_values_supported"`
	ChallengeMethods       []string `json:"code_challenge_methods_supported"`
	TokenEndpointAuth      []string `json:"token_endpoint_auth_methods_supported"`
	TokenEndpointAuthAlgs  []string `json:"token_endpoint_auth_signing_alg_values_supported"`
	IntrospectionAuth      []string `json:"introspection_endpoint_auth_methods_supported"`
	RevocationAuth         []string `json:"revocation_endpoint_auth_methods_supported"`
	DPoPSigningAlgs        []string `json:"dpop_signing_alg_values_supported"`
	Claims                 []string `json:"claims_supported"`
	Prompts                []string `json:"prompt_values_supported"`
	IssuerParameter        bool     `json:"authorization_response_iss_parameter_supported"`
	ClaimsParameter        bool     `json:"claims_parameter_supported"`
	RequestParameter       bool     `json:"request_parameter_supported"`
	RequestURIParameter    bool     `json:"request_uri_parameter_supported"`
	CertificateBoundTokens bool     `json:"tls_client_certificate_bound_access_tokens"`
	// MTLS are the endpoints for clients with certificates (RFC 8705 section 5); left out where there is no listener for them.
	MTLS *mtlsEndpoints `json:"mtls_endpoint_aliases,omitempty"`
}

type mtlsEndpoints struct {
	Token string `json:"token_endpoint"`
}

// pathKeys is where the gateway serves the key set, below the issuer.
const pathKeys = "/oauth2/keys"

// GetDiscovery implements TokenService.
func (s *Service) GetDiscovery(ctx context.Context, _ *identityv1.GetDiscoveryRequest) (*identityv1.Document, error) {
	at := func(path string) string { return s.cfg.Issuer + path }
	es256, proved := []string{"ES256"}, []string{"client_secret_basic", "client_secret_post", "private_key_jwt"}
	atToken := append([]string{"none"}, proved...)
	var mtls *mtlsEndpoints
	if s.cfg.CertificateURL != "" {
		atToken, mtls = append(atToken, provider.AuthCertificate), &mtlsEndpoints{Token: s.cfg.CertificateURL + provider.PathToken}
	}
	return s.document(ctx, discovery{
		Issuer: s.cfg.Issuer, AuthorizationEndpoint: at(provider.PathAuthorize), TokenEndpoint: at(provider.PathToken), JWKSURI: at(pathKeys),
		UserInfoEndpoint: at(provider.PathUserInfo), EndSessionEndpoint: at(provider.PathEnd), IntrospectionEndpoint: at(provider.PathIntro),
		RevocationEndpoint: at(provider.PathRevoke), DeviceEndpoint: at(provider.PathDeviceReq),
		Scopes:        []string{"openid", "profile", "offline_access", "redoubt"},
		ResponseTypes: []string{"code"}, ResponseModes: []string{"query"}, GrantTypes: provider.Grants, SubjectTypes: []string{"public"},
		IDTokenSigningAlgs: es256, ChallengeMethods: []string{"S256"},
		TokenEndpointAuth: atToken, TokenEndpointAuthAlgs: es256, IntrospectionAuth: proved, RevocationAuth: append([]string{"none"}, proved...),
		DPoPSigningAlgs: es256,
		Claims: []string{
			"iss", "sub", "aud", "exp", "iat", "jti", "auth_time", "nonce", "at_hash", "azp", "amr", "acr", "sid", "client_id", "preferred_username", "name",
		},
		Prompts: []string{"none", "login", "consent", "select_account"}, IssuerParameter: true, MTLS: mtls,
	})
}
