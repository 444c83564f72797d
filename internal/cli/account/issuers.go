package account

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/internal/cli/app"
	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/internal/cli/show"
)

const (
	issuerCollection = "issuers/"
	maxIssuerSecret  = 1024
	flagStdin        = "client-secret-stdin"
)

func issuerName(arg string) string {
	return issuerCollection + strings.TrimPrefix(arg, issuerCollection)
}

// issuerFlags are the settings of an issuer as flags say them.
type issuerFlags struct {
	in     *identityv1.IssuerSettings
	groups []string
	roots  string
	stdin  bool
}

func (f *issuerFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	f.in = new(identityv1.IssuerSettings)
	flags.StringVar(&f.in.DisplayName, "display-name", "", "what people read on the button")
	flags.StringVar(&f.in.ClientId, "client-id", "", "as what this installation is registered there")
	flags.BoolVar(&f.stdin, flagStdin, false, "read the client secret from standard input")
	flags.StringSliceVar(&f.in.AllowedAudiences, "audience", nil, "a further audience that ID tokens may name; repeat it")
	flags.StringSliceVar(&f.in.AllowedAlgorithms, "algorithm", nil, "RS256, PS256, ES256 or EdDSA; repeat it (RS256 and ES256)")
	flags.StringSliceVar(&f.in.Scopes, "scope", nil, "a scope to ask for beside openid; repeat it")
	flags.StringVar(&f.in.DisplayNameClaim, "name-claim", "", "the claim with the display name (name)")
	flags.StringVar(&f.in.EmailClaim, "email-claim", "", "the claim with the e-mail address (email)")
	flags.StringVar(&f.in.GroupsClaim, "groups-claim", "", "the claim with the groups")
	flags.StringSliceVar(&f.groups, "map-group", nil, "VALUE=GROUP: who has the value there is in the group here; repeat it")
	flags.StringSliceVar(&f.in.AllowedDomains, "domain", nil, "only people with a verified e-mail address of this domain; repeat it")
	flags.StringSliceVar(&f.in.AllowPrivateHosts, "allow-private-host", nil, "a host that may have an address of the own network; repeat it")
	flags.StringVar(&f.roots, "roots", "", "a file of certificates in PEM that the issuer's are checked against")
	flags.BoolVar(&f.in.TrustMfa, "trust-mfa", false, "a second factor there counts as one here")
	flags.BoolVar(&f.in.Disabled, "disabled", false, "let nobody in from there")
}

// apply puts the flags that were given into settings.
func (f *issuerFlags) apply(cmd *cobra.Command, to *identityv1.IssuerSettings) error {
	for name, set := range map[string]func(){
		"display-name":       func() { to.DisplayName = f.in.GetDisplayName() },
		"client-id":          func() { to.ClientId = f.in.GetClientId() },
		"audience":           func() { to.AllowedAudiences = f.in.GetAllowedAudiences() },
		"algorithm":          func() { to.AllowedAlgorithms = f.in.GetAllowedAlgorithms() },
		"scope":              func() { to.Scopes = f.in.GetScopes() },
		"name-claim":         func() { to.DisplayNameClaim = f.in.GetDisplayNameClaim() },
		"email-claim":        func() { to.EmailClaim = f.in.GetEmailClaim() },
		"groups-claim":       func() { to.GroupsClaim = f.in.GetGroupsClaim() },
		"domain":             func() { to.AllowedDomains = f.in.GetAllowedDomains() },
		"allow-private-host": func() { to.AllowPrivateHosts = f.in.GetAllowPrivateHosts() },
		"trust-mfa":          func() { to.TrustMfa = f.in.GetTrustMfa() },
		"disabled":           func() { to.Disabled = f.in.GetDisabled() },
	} {
		if cmd.Flags().Changed(name) {
			set()
		}
	}
	if cmd.Flags().Changed("map-group") {
		to.GroupMappings = nil
		for _, m := range f.groups {
			i := strings.LastIndex(m, "=")
			if i < 1 || i == len(m)-1 {
				return app.Usagef("--map-group is VALUE=GROUP, and not %q", m)
			}
			to.GroupMappings = append(to.GroupMappings, &identityv1.GroupMapping{Value: m[:i], Group: groupName(m[i+1:])})
		}
	}
	if cmd.Flags().Changed("roots") {
		to.TrustedRootsPem = ""
		if f.roots != "" {
			b, err := os.ReadFile(f.roots)
			if err != nil {
				return err
			}
			to.TrustedRootsPem = string(b)
		}
	}
	return nil
}

// secret reads the client secret, if it was said that there is one.
func (f *issuerFlags) secret(a verbs) (string, error) {
	if !f.stdin {
		return "", nil
	}
	s, err := a.FirstLine(maxIssuerSecret)
	return s.RevealString(), err
}

// issuers are the commands about foreign issuers.
func (a verbs) issuers() *cobra.Command {
	of := func(c *client.Client) identityv1.FederationServiceClient {
		return identityv1.NewFederationServiceClient(c.Conn())
	}
	list := &cobra.Command{Use: "list", Short: "The foreign issuers", Args: app.Exactly(0), RunE: a.With(func(ctx context.Context, c *client.Client, _ []string) error {
		r, err := of(c).ListIssuers(ctx, &identityv1.ListIssuersRequest{})
		if err != nil || a.Structured() {
			return a.Answer(r, err)
		}
		rows := make([][]string, 0, len(r.GetIssuers()))
		for _, i := range r.GetIssuers() {
			state := "lets in"
			if i.GetSettings().GetDisabled() {
				state = "disabled"
			}
			rows = append(rows, []string{show.Last(i.GetName()), i.GetIssuerUrl(), classOf(i.GetClass()), state, i.GetUid()})
		}
		return a.Table([]string{"name", "issuer", "class", "state", "uid"}, rows, "")
	})}
	one := &cobra.Command{Use: "show NAME", Short: "A foreign issuer with its settings, and the redirect URI to register there", Args: app.Exactly(1), RunE: a.With(func(ctx context.Context, c *client.Client, args []string) error {
		return a.issuer(of(c).GetIssuer(ctx, &identityv1.GetIssuerRequest{Name: issuerName(args[0])}))
	})}
	remove := &cobra.Command{Use: "delete NAME", Short: "Trust an issuer no more; its people are signed out at once", Args: app.Exactly(1), RunE: a.With(func(ctx context.Context, c *client.Client, args []string) error {
		if err := a.Sure("trust " + args[0] + " no more, and sign its people out"); err != nil {
			return err
		}
		r, err := of(c).DeleteIssuer(ctx, &identityv1.DeleteIssuerRequest{Name: issuerName(args[0])})
		return a.Done(r, err, "%s is removed", issuerName(args[0]))
	})}
	return app.Noun("issuer", "Foreign OpenID issuers, whose people sign in here as guests or consumers", a.createIssuer(of), list, one, a.updateIssuer(of), remove)
}

func classOf(c identityv1.HomeClass) string {
	return strings.ToLower(strings.TrimPrefix(c.String(), "HOME_CLASS_"))
}

func (a verbs) createIssuer(of func(*client.Client) identityv1.FederationServiceClient) *cobra.Command {
	var f issuerFlags
	class := ""
	cmd := &cobra.Command{Use: "create NAME URL", Short: "Let the people of a foreign issuer in", Args: app.Exactly(2)}
	f.add(cmd)
	cmd.Flags().StringVar(&class, "class", "guest", "guest or consumer")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return a.With(func(ctx context.Context, c *client.Client, args []string) error {
			v, ok := identityv1.HomeClass_value["HOME_CLASS_"+strings.ToUpper(class)]
			if !ok || v == 0 {
				return app.Usagef("--class is guest or consumer, and not %q", class)
			}
			req := &identityv1.CreateIssuerRequest{
				IssuerId: strings.TrimPrefix(args[0], issuerCollection), IssuerUrl: args[1], Class: identityv1.HomeClass(v), Settings: &identityv1.IssuerSettings{DisplayName: args[0]},
			}
			if err := f.apply(cmd, req.GetSettings()); err != nil {
				return err
			}
			var err error
			if req.ClientSecret, err = f.secret(a); err != nil {
				return err
			}
			return a.issuer(of(c).CreateIssuer(ctx, req))
		})(cmd, args)
	}
	return cmd
}

func (a verbs) updateIssuer(of func(*client.Client) identityv1.FederationServiceClient) *cobra.Command {
	var f issuerFlags
	cmd := &cobra.Command{Use: "update NAME", Short: "Change what the flags say; --disabled signs its people out at once", Args: app.Exactly(1)}
	f.add(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return a.With(func(ctx context.Context, c *client.Client, args []string) error {
			i, err := of(c).GetIssuer(ctx, &identityv1.GetIssuerRequest{Name: issuerName(args[0])})
			if err != nil {
				return err
			}
			req := &identityv1.UpdateIssuerRequest{Name: i.GetName(), Settings: i.GetSettings(), Etag: i.GetEtag()}
			if err := f.apply(cmd, req.GetSettings()); err != nil {
				return err
			}
			if req.ClientSecret, err = f.secret(a); err != nil {
				return err
			}
			return a.issuer(of(c).UpdateIssuer(ctx, req))
		})(cmd, args)
	}
	return cmd
}

func (a verbs) issuer(i *identityv1.Issuer, err error) error {
	if err != nil || a.Structured() {
		return a.Answer(i, err)
	}
	s := i.GetSettings()
	groups := make([]string, 0, len(s.GetGroupMappings()))
	for _, m := range s.GetGroupMappings() {
		groups = append(groups, fmt.Sprintf("%s=%s", m.GetValue(), show.Last(m.GetGroup())))
	}
	return show.Pairs(a.Out, "name", i.GetName(), "uid", i.GetUid(), "issuer", i.GetIssuerUrl(), "class", classOf(i.GetClass()), "redirect uri", i.GetRedirectUri(),
		"display name", s.GetDisplayName(), "client id", s.GetClientId(), "client secret", map[bool]string{true: "stored", false: "none"}[i.GetHasClientSecret()],
		"algorithms", strings.Join(s.GetAllowedAlgorithms(), " "), "audiences", strings.Join(s.GetAllowedAudiences(), " "), "scopes", strings.Join(s.GetScopes(), " "),
		"groups claim", s.GetGroupsClaim(), "group mappings", strings.Join(groups, " "), "domains", strings.Join(s.GetAllowedDomains(), " "),
		"private hosts", strings.Join(s.GetAllowPrivateHosts(), " "), "trust mfa", strconv.FormatBool(s.GetTrustMfa()), "disabled", strconv.FormatBool(s.GetDisabled()))
}
