package account

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/internal/cli/app"
	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/internal/cli/settings"
	"github.com/redoubt-ml/redoubt/internal/cli/show"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
)

// signIn signs in, and answers what is asked for besides the password.
func (a verbs) signIn(ctx context.Context, cl *client.Client, user string, password redact.Secret, stdin bool) (*identityv1.SignInResponse, error) {
	r, err := cl.Identity().SignIn(ctx, &identityv1.SignInRequest{User: user, Password: password.RevealString()})
	if err != nil || r.GetChallenge() == nil {
		return r, err
	}
	c := r.GetChallenge()
	prompt, kind := "code of the authenticator app: ", ""
	switch {
	case c.GetEnrol():
		e, err := cl.Identity().EnrolSignInFactor(ctx, &identityv1.EnrolSignInFactorRequest{State: c.GetState()})
		if err != nil {
			return nil, err
		}
		a.Say("this installation wants a second factor, and you have none yet. Read this into an authenticator app, or type the key into it:")
		a.Say("%s\nkey: %s", e.GetUri(), e.GetSecret())
		kind = e.GetKind()
	case !slices.Contains(c.GetFactors(), "totp") && !slices.Contains(c.GetFactors(), "recovery_code"):
		return nil, fault.FailedPrecondition("you have security keys alone, which a browser asks: sign in with `redoubt login`, without a password here")
	case !slices.Contains(c.GetFactors(), "totp"):
		prompt = "recovery code (a browser asks for your security key: `redoubt login`): "
	case slices.Contains(c.GetFactors(), "recovery_code"):
		prompt = "code of the authenticator app, or a recovery code: "
	}
	for {
		code, err := a.Code(ctx, prompt, stdin)
		if err != nil {
			return nil, err
		}
		answer := &identityv1.ContinueSignInRequest{State: c.GetState(), Factor: kind, Response: code.RevealString()}
		if kind == "" {
			answer.Factor = app.KindOfCode(answer.GetResponse())
		}
		code.Wipe()
		r, err := cl.Identity().ContinueSignIn(ctx, answer)
		if err == nil && r.GetSession() == nil {
			err = fault.New(codes.FailedPrecondition, faultv1.Reason_FACTOR_REQUIRED, "the installation asks for more than this version knows")
		}
		again := fault.ReasonOf(fault.FromStatus(err)) == faultv1.Reason_SIGN_IN_FAILED && fault.Describe(fault.FromStatus(err)).Metadata()["sign_in_over"] == ""
		if err == nil || stdin || !again {
			return r, err
		}
		a.Say("%s", fault.Describe(fault.FromStatus(err)).Message())
	}
}

// plain is where something goes that a person has to see: to standard output, if no program reads an answer there.
func (a verbs) plain() io.Writer {
	if a.Structured() {
		return a.Err
	}
	return a.Out
}

// recovery shows recovery codes, this once.
func (a verbs) recovery(shown []string) error {
	if len(shown) == 0 {
		return nil
	}
	a.Say("recovery codes, shown this once: each signs you in once without the app. Keep them where the phone is not:")
	_, err := fmt.Fprintln(a.plain(), strings.Join(shown, "\n"))
	return err
}

func (a verbs) factors() *cobra.Command {
	of := func(c *client.Client) identityv1.FactorServiceClient {
		return identityv1.NewFactorServiceClient(c.Conn())
	}
	var name string
	var stdin bool
	add := &cobra.Command{Use: "add", Short: "Enrol an authenticator app; with the first one all sessions end but this", Args: app.Exactly(0), RunE: a.With(func(ctx context.Context, c *client.Client, _ []string) error {
		e, err := of(c).EnrolFactor(ctx, &identityv1.EnrolFactorRequest{DisplayName: name})
		if err != nil {
			return err
		}
		a.Say("read this into an authenticator app, or type the key into it: %s", e.GetSecret())
		if _, err := fmt.Fprintln(a.plain(), e.GetUri()); err != nil {
			return err
		}
		code, err := a.Code(ctx, "code that the app shows: ", stdin)
		if err != nil {
			return err
		}
		defer code.Wipe()
		r, err := of(c).ProveFactor(ctx, &identityv1.ProveFactorRequest{FactorId: e.GetFactor().GetFactorId(), Code: code.RevealString()})
		if err != nil {
			return err
		}
		if err := a.keepSession(ctx, c, r.GetSession()); err != nil {
			return err
		}
		if err := a.recovery(r.GetRecoveryCodes()); err != nil {
			return err
		}
		if s := r.GetSession(); s != nil {
			s.AccessToken = "" // kept, not shown
		}
		r.RecoveryCodes = nil
		return a.Done(r, nil, "%s counts from now on", e.GetFactor().GetFactorId())
	})}
	add.Flags().StringVar(&name, "name", "", "what you call it, such as phone")
	add.Flags().BoolVar(&stdin, "code-stdin", false, "read the code from standard input")

	list := &cobra.Command{Use: "list", Short: "Your factors, and how many recovery codes are left", Args: app.Exactly(0), RunE: a.With(func(ctx context.Context, c *client.Client, _ []string) error {
		r, err := of(c).ListFactors(ctx, &identityv1.ListFactorsRequest{})
		if err != nil || a.Structured() {
			return a.Answer(r, err)
		}
		rows := make([][]string, 0, len(r.GetFactors()))
		for _, f := range r.GetFactors() {
			state := "not proved"
			if f.GetProved() {
				state = "counts"
			}
			rows = append(rows, []string{f.GetFactorId(), f.GetKind(), f.GetDisplayName(), state, show.Ago(a.Now(), f.GetCreateTime()), show.Ago(a.Now(), f.GetUseTime())})
		}
		a.Say("%d recovery codes are left", r.GetRecoveryCodes())
		return a.Table([]string{"factor", "kind", "name", "state", "created", "used"}, rows, "")
	})}
	remove := &cobra.Command{Use: "remove FACTOR", Short: "Remove one of your factors; with the last one the recovery codes go", Args: app.Exactly(1), RunE: a.With(func(ctx context.Context, c *client.Client, args []string) error {
		if err := a.Sure("remove the factor " + args[0]); err != nil {
			return err
		}
		r, err := of(c).DeleteFactor(ctx, &identityv1.DeleteFactorRequest{FactorId: args[0]})
		return a.Done(r, err, "%s is removed", args[0])
	})}
	recovery := &cobra.Command{Use: "recovery-codes", Short: "Ten new recovery codes, in place of those before", Args: app.Exactly(0), RunE: a.With(func(ctx context.Context, c *client.Client, _ []string) error {
		r, err := of(c).RegenerateRecoveryCodes(ctx, &identityv1.RegenerateRecoveryCodesRequest{})
		if err != nil || a.Structured() {
			return a.Answer(r, err)
		}
		return a.recovery(r.GetRecoveryCodes())
	})}
	return app.Noun("factor", "What you prove yourself with beside your password", add, list, remove, recovery, a.reset(of), a.policy(of))
}

// reset removes another user's factors: by a call, or on identity's host where nobody is left who could call.
func (a verbs) reset(of func(*client.Client) identityv1.FactorServiceClient) *cobra.Command {
	var offline bool
	var config, data string
	c := &cobra.Command{
		Use: "reset USER", Short: "Remove all factors and recovery codes of a user who has lost them; his sessions end", Args: app.Exactly(1),
		Long: `Remove all factors and recovery codes of a user who has lost them; his sessions end.

With --offline it is done on identity's host, for the only Owner, whom nobody else can reset: as the account that identity runs as, with its database and its
seal, while it is stopped. --config is the configuration that redoubt serve identity has, --data the folder of redoubt up.`,
	}
	c.Flags().BoolVar(&offline, "offline", false, "on identity's host, while it is stopped")
	c.Flags().StringVar(&config, "config", "", "identity's configuration, with --offline")
	c.Flags().StringVar(&data, "data", "", "the folder of redoubt up, with --offline")
	online := a.With(func(ctx context.Context, c *client.Client, args []string) error {
		r, err := of(c).ResetFactors(ctx, &identityv1.ResetFactorsRequest{Name: app.Principal(args[0])})
		return a.Done(r, err, "%s has no factor any more and is signed out; removed: %d", app.Principal(args[0]), r.GetRemoved())
	})
	c.RunE = func(cmd *cobra.Command, args []string) error {
		switch {
		case offline == (config == "" && data == "") || config != "" && data != "":
			return app.Usagef("--offline takes one of --config and --data, and they are for it alone")
		}
		if err := a.Sure("remove all factors of " + args[0]); err != nil {
			return err
		}
		if !offline {
			return online(cmd, args)
		}
		said, err := a.OfflineReset(cmd.Context(), config, data, args[0])
		if err == nil {
			a.Say("%s", said)
		}
		return err
	}
	return c
}

// policy shows and changes whether the installation wants a factor of everyone.
func (a verbs) policy(of func(*client.Client) identityv1.FactorServiceClient) *cobra.Command {
	const flag = "require-mfa"
	var require bool
	c := &cobra.Command{Use: "policy", Short: "Whether every user needs a second factor; --require-mfa=true ends all sessions by a password alone", Args: app.Exactly(0)}
	c.Flags().BoolVar(&require, flag, false, "true or false: change it")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		return a.With(func(ctx context.Context, cl *client.Client, _ []string) error {
			if !cmd.Flags().Changed(flag) {
				r, err := of(cl).GetSignInPolicy(ctx, &identityv1.GetSignInPolicyRequest{})
				if err != nil || a.Structured() {
					return a.Answer(r, err)
				}
				return show.Pairs(a.Out, flag, strconv.FormatBool(r.GetRequireMfa()))
			}
			r, err := of(cl).UpdateSignInPolicy(ctx, &identityv1.UpdateSignInPolicyRequest{RequireMfa: require})
			return a.Done(r, err, "%s is %v; sessions that ended: %d. Whose was by a password alone signs in again and enrols a factor", flag, require, r.GetSessionsEnded())
		})(cmd, args)
	}
	return c
}

// keepSession keeps the session that came in place of the one that the command was called with.
func (a verbs) keepSession(ctx context.Context, c *client.Client, s *identityv1.Session) error {
	switch {
	case s == nil:
		return nil
	case c.Context().Name == "" || a.Env("REDOUBT_TOKEN") != "":
		a.Say("the session of this command has ended, as all others of yours; sign in again with `redoubt login`")
		return nil
	}
	d, err := a.Folder()
	if err != nil {
		return err
	}
	return d.SetToken(ctx, c.Context().Name, settings.Token{Server: c.Context().Server, Value: s.GetAccessToken(), Expires: s.GetExpireTime().AsTime()})
}
