package account

import (
	"context"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/internal/cli/app"
	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/internal/cli/show"
	"github.com/redoubt-ml/redoubt/pkg/redact"
)

const maxCode = 512

// code makes the code with which a user sets his password.
func (a verbs) code() *cobra.Command {
	var life time.Duration
	c := &cobra.Command{Use: "code NAME", Short: "A code with which the user sets his own password, once: an invitation, or a reset", Args: app.Exactly(1), RunE: a.With(func(ctx context.Context, c *client.Client, args []string) error {
		req := &identityv1.CreateUserCodeRequest{Name: app.Principal(args[0])}
		if life > 0 {
			req.ExpireTime = timestamppb.New(a.Now().Add(life))
		}
		r, err := c.Directory().CreateUserCode(ctx, req)
		if err != nil || a.Structured() {
			return a.Answer(r, err)
		}
		a.Say("good once, until %s; he uses it with `redoubt user redeem --server %s`:", show.Clock(r.GetExpireTime()), c.Context().Server)
		_, err = a.Out.Write([]byte(r.GetCode() + "\n"))
		return err
	})}
	c.Flags().DurationVar(&life, "life", 0, "how long it is good, such as 2h; without it a day, at most seven")
	return c
}

// redeem uses a code up. Nobody is signed in.
func (a verbs) redeem() *cobra.Command {
	var stdin bool
	c := &cobra.Command{Use: "redeem [--server https://host:port --ca FILE]", Short: "Set one's own password with a code from an administrator", Args: app.Exactly(0)}
	c.Flags().BoolVar(&stdin, "stdin", false, "read code and password from the first two lines of standard input")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx := cmd.Context()
		chosen, err := a.Chosen()
		if err != nil {
			return err
		}
		cl, err := client.Dial(chosen.Client(), redact.Secret{}, a.DialOptions()...)
		if err != nil {
			return err
		}
		defer func() { _ = cl.Close() }()
		var code, password redact.Secret
		if stdin {
			lines, err := a.Lines(maxCode, 2)
			if err != nil {
				return err
			}
			code, password = lines[0], lines[1]
		} else {
			if code, err = a.Password(ctx, "code: ", false, false); err != nil {
				return err
			}
			if password, err = a.Password(ctx, "new password: ", false, true); err != nil {
				return err
			}
		}
		defer code.Wipe()
		defer password.Wipe()
		r, err := cl.Directory().RedeemUserCode(ctx, &identityv1.RedeemUserCodeRequest{Code: code.RevealString(), NewPassword: password.RevealString()})
		return a.Done(r, err, "the password of %s is set; sign in: redoubt login", r.GetPrincipal())
	}
	return c
}
