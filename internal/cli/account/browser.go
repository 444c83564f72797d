package account

import (
	"cmp"
	"context"
	"crypto/tls"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/types/known/timestamppb"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/internal/cli/app"
	"github.com/redoubt-ml/redoubt/internal/cli/openid"
	"github.com/redoubt-ml/redoubt/internal/cli/settings"
	"github.com/redoubt-ml/redoubt/internal/cli/show"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
)

const maxClientSecret = 1024

// way is how somebody signs in at the OpenID provider; the zero way is a browser, or a device's code where there is no display.
type way struct {
	device bool
	client string
	secret bool // on standard input
	// certificate and key are files, as PEM.
	certificate, key string
}

// program reports whether a service principal signs in, and is complete.
func (w way) program() bool { return w.secret || w.certificate != "" || w.key != "" }

func (w *way) flags(c *cobra.Command) {
	c.Flags().BoolVar(&w.device, "device", false, "sign in by a browser elsewhere: show a code that is typed there")
	c.Flags().StringVar(&w.client, "client-id", "", "sign in as a service principal, by its client id, spn_…")
	c.Flags().BoolVar(&w.secret, "client-secret-stdin", false, "read the service principal's secret from standard input")
	c.Flags().StringVar(&w.certificate, "client-certificate", "", "prove the service principal by this certificate (PEM), which was registered for it")
	c.Flags().StringVar(&w.key, "client-key", "", "the private key of the certificate (PEM)")
}

func (w way) given() bool { return w != way{} }

// byProvider signs in at the installation's OpenID provider. The tokens are bound to a key that is made for them here.
func (a verbs) byProvider(ctx context.Context, chosen settings.Context, w way, user string, password bool) error {
	user = strings.TrimPrefix(user, "users/")
	switch {
	case password:
		return app.Usagef("a password is one way to sign in, --device and --client-id are others; give one")
	case (w.client != "") != w.program() || w.secret && (w.certificate != "" || w.key != ""):
		return app.Usagef("a service principal signs in with --client-id and either --client-secret-stdin or --client-certificate and --client-key")
	case (w.certificate != "") != (w.key != ""):
		return app.Usagef("--client-certificate and --client-key belong together")
	case w.program() && (w.device || user != ""):
		return app.Usagef("--client-id says who signs in; leave --user and --device out")
	}
	last, ok := strings.CutPrefix(chosen.User, "users/")
	if !ok { // nobody, or a program
		last = ""
	}
	chosen, err := a.kept(chosen, "")
	if err != nil {
		return err
	}
	p, err := openid.Find(ctx, chosen.Client(), redact.Secret{}, a.Now)
	if err != nil {
		return err
	}
	defer p.Close()
	var s openid.Signed
	switch {
	case w.secret:
		secret, err := a.FirstLine(maxClientSecret)
		if err != nil {
			return err
		}
		defer secret.Wipe()
		s.Token, err = p.Program(ctx, w.client, secret)
		if err != nil {
			return err
		}
	case w.certificate != "":
		pair, err := tls.LoadX509KeyPair(w.certificate, w.key)
		if err != nil {
			return app.Usagef("the certificate and its key cannot be used: %v", err)
		}
		if s.Token, err = p.Certified(ctx, w.client, pair); err != nil {
			return err
		}
	case w.device || !a.display():
		if s, err = p.Device(ctx, a.showCode, pause); err != nil {
			return err
		}
	default:
		done := func() {}
		s, err = p.Browser(ctx, cmp.Or(user, last), func(ctx context.Context, address string) error {
			done = a.lead(ctx, address)
			return nil
		})
		done()
		if err != nil {
			return err
		}
	}
	return a.begin(ctx, p, chosen, user, s)
}

// anew signs in again, as whoever the kept session is of, by a browser that asks him anew, and puts the session that comes in the place of the kept one.
func (a verbs) anew(ctx context.Context, chosen settings.Context) (credentials.PerRPCCredentials, error) {
	user, ok := strings.CutPrefix(chosen.User, "users/")
	if !ok || chosen.Name == "" || !a.display() {
		return nil, fault.FailedPrecondition("a security key is asked by a browser, and there is none here: sign in again with `redoubt login` or `redoubt login --device`, and repeat it")
	}
	d, err := a.Folder()
	if err != nil {
		return nil, err
	}
	before, _, err := d.Session(ctx, chosen.Name, chosen.Server, a.Now())
	if err != nil {
		return nil, err
	}
	p, err := openid.Find(ctx, chosen.Client(), redact.Secret{}, a.Now)
	if err != nil {
		return nil, err
	}
	defer p.Close()
	done := func() {}
	s, err := p.Browser(ctx, user, func(ctx context.Context, address string) error {
		done = a.lead(ctx, address)
		return nil
	}, openid.Fresh())
	done()
	if err != nil {
		return nil, err
	}
	session, err := a.same(ctx, chosen, user, s)
	if err != nil {
		_ = p.Revoke(context.WithoutCancel(ctx), s.Token.Refresh) // nobody will use it
		return nil, err
	}
	if before.Refresh != "" {
		_, _ = openid.End(ctx, openid.Config{Context: chosen, Folder: d, Now: a.Now}) // it is over by itself some time
	}
	s.Token.Server = chosen.Server
	return session, d.SetToken(ctx, chosen.Name, s.Token)
}

// same is a session of what a sign-in gave, if that was by the user.
func (a verbs) same(ctx context.Context, chosen settings.Context, user string, s openid.Signed) (*openid.Session, error) {
	d, err := a.Folder()
	if err != nil {
		return nil, err
	}
	s.Token.Server = chosen.Server
	session, err := openid.NewSession(openid.Config{Context: chosen, Folder: d, Now: a.Now}, s.Token)
	if err != nil {
		return nil, err
	}
	c, err := a.DialBy(chosen, session)
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }()
	who, err := c.Identity().WhoAmI(ctx, &identityv1.WhoAmIRequest{})
	if err != nil {
		return nil, err
	}
	if who.GetPrincipal() != "users/"+user {
		return nil, fault.PermissionDenied("%s signed in, and not users/%s: sign out in the browser, or choose another account there", who.GetPrincipal(), user)
	}
	return session, nil
}

// begin keeps a session after its first call, which shows whose it is and that its proofs are taken.
func (a verbs) begin(ctx context.Context, p *openid.Provider, chosen settings.Context, user string, s openid.Signed) (err error) {
	defer func() {
		if err != nil && s.Token.Refresh != "" { // nobody will use it
			_ = p.Revoke(context.WithoutCancel(ctx), s.Token.Refresh)
		}
	}()
	d, err := a.Folder()
	if err != nil {
		return err
	}
	s.Token.Server = chosen.Server
	session, err := openid.NewSession(openid.Config{Context: chosen, Folder: d, Now: a.Now}, s.Token)
	if err != nil {
		return err
	}
	c, err := a.DialBy(chosen, session)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	who, err := c.Identity().WhoAmI(ctx, &identityv1.WhoAmIRequest{})
	switch {
	case err != nil:
		return err
	case s.Subject != "" && who.GetUid() != s.Subject:
		return fault.PermissionDenied("the token is for %s, and the ID token for %s: neither is kept", who.GetUid(), s.Subject)
	case user != "" && who.GetPrincipal() != "users/"+user:
		return fault.PermissionDenied("%s signed in, and not users/%s: sign out in the browser, or choose another account there", who.GetPrincipal(), user)
	}
	chosen.User = who.GetPrincipal()
	f, err := d.Read()
	if err != nil {
		return err
	}
	f.Put(chosen)
	f.CurrentContext = chosen.Name
	if err := d.Write(f); err != nil {
		return err
	}
	if err := d.SetToken(ctx, chosen.Name, s.Token); err != nil {
		return err
	}
	if a.Structured() {
		return a.Answer(&identityv1.Session{TokenType: "DPoP", ExpireTime: timestamppb.New(s.Token.Expires), Principal: who.GetPrincipal(), Uid: who.GetUid()}, nil)
	}
	if s.Token.Refresh != "" {
		a.Say("signed in at %s as %s, until you sign out, or for a week at most", chosen.Server, who.GetPrincipal())
		return nil
	}
	a.Say("signed in at %s as %s, until %s", chosen.Server, who.GetPrincipal(), show.Clock(timestamppb.New(s.Token.Expires)))
	return nil
}

// endGrant ends a session that the provider gave, here and there. ended is false where there is none.
func (a verbs) endGrant(ctx context.Context, chosen settings.Context) (ended bool, err error) {
	if a.Env("REDOUBT_TOKEN") != "" || chosen.Name == "" {
		return false, nil
	}
	d, err := a.Folder()
	if err != nil {
		return false, err
	}
	kept, ok, err := d.Session(ctx, chosen.Name, chosen.Server, a.Now())
	if err != nil || !ok || !kept.Bound() {
		return false, err
	}
	cfg := openid.Config{Context: chosen, Folder: d, Now: a.Now}
	var remote error
	if kept.Refresh == "" {
		remote = a.signOut(ctx, cfg, kept)
	}
	ended, err = openid.End(ctx, cfg)
	if remote == nil {
		remote = err
	}
	if remote != nil {
		a.Say("the session is forgotten here, but the installation did not end it:")
		return true, remote
	}
	a.Say("signed out")
	if kept.Refresh != "" {
		a.Say("the browser may be signed in still: %s/oauth2/end-session ends that", chosen.Server)
	}
	return ended, nil
}

// signOut withdraws the token of a session that has no refresh token.
func (a verbs) signOut(ctx context.Context, cfg openid.Config, kept settings.Token) error {
	session, err := openid.NewSession(cfg, kept)
	if err != nil {
		return err
	}
	c, err := a.DialBy(cfg.Context, session)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	_, err = c.Identity().SignOut(ctx, &identityv1.SignOutRequest{})
	return err
}

// display reports whether a browser could show something to whoever sits here.
func (a verbs) display() bool {
	return a.Env("BROWSER") != "" || a.Env("DISPLAY") != "" || a.Env("WAYLAND_DISPLAY") != "" || runtime.GOOS == "darwin"
}

// lead shows the address, and opens it where somebody sits at a terminal. done forgets how; the browser stays.
func (a verbs) lead(ctx context.Context, address string) (done func()) {
	a.Say("sign in at this address, in a browser on this machine:\n\n  %s\n", address)
	if f, ok := a.Err.(*os.File); !ok || !app.IsTerminal(f) {
		return func() {}
	}
	page, remove, err := leadingTo(address)
	if err != nil {
		a.Say("no browser is opened: %v", err)
		return func() {}
	}
	for _, b := range append(strings.Split(a.Env("BROWSER"), ":"), "xdg-open", "open") {
		argv := strings.Fields(strings.ReplaceAll(b, "%s", ""))
		if len(argv) == 0 {
			continue
		}
		c := exec.CommandContext(context.WithoutCancel(ctx), argv[0], append(argv[1:], page)...)
		if c.Start() == nil {
			go func() { _ = c.Wait() }() // it ends with the browser, or at once: neither says anything
			break
		}
	}
	return remove
}

// showCode tells what to type where.
func (a verbs) showCode(at, code string, limit time.Duration) {
	a.Say("in any browser, go to\n\n  %s\n\nand type the code\n\n  %s\n\nwithin %s. Type it only if you have started this yourself.", at, code, show.Duration(limit))
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
