package rotate

import (
	"context"
	"encoding/pem"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/internal/cli/app"
	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/internal/cli/show"
)

func (a verbs) ca() *cobra.Command {
	c := &cobra.Command{
		Use: "ca", Short: "The roots that sign the installation's certificates",
		Long: `ca rotates the root of the installation's certificates, in four steps that nobody notices: prepare, activate, taint, revoke. Each
waits until the one before it has arrived everywhere, and says for whom. The first three can be taken back: by revoke, by activating the old
root again, by untaint.

Before revoke, give the new roots to whoever believes a file: redoubt ca show > FILE. The context of this command line takes them up by
itself.`,
	}
	var forceActivate, forceRevoke bool
	activate := &cobra.Command{
		Use: "activate PIN [--force]", Short: "Sign with a prepared or an old root from now on", Args: app.Exactly(1),
		RunE: a.With(func(ctx context.Context, c *client.Client, args []string) error {
			if forceActivate {
				if err := a.Sure("signing with a root that not every service believes,"); err != nil {
					return err
				}
			}
			r, err := identityv1.NewKeyServiceClient(c.Conn()).ActivateAuthority(ctx, &identityv1.ActivateAuthorityRequest{Pin: args[0], Force: forceActivate})
			return a.root(r, err)
		}),
	}
	activate.Flags().BoolVar(&forceActivate, "force", false, "although services do not believe it yet")
	revoke := &cobra.Command{
		Use: "revoke PIN [--force]", Short: "End a prepared or tainted root for good: nobody believes it any more", Args: app.Exactly(1),
		RunE: a.With(func(ctx context.Context, c *client.Client, args []string) error {
			what := "deleting the root's key, which nothing brings back,"
			if forceRevoke {
				what = "deleting the root's key and refusing whoever still has a certificate of it,"
			}
			if err := a.Sure(what); err != nil {
				return err
			}
			return a.roots(a.revoke(ctx, c, args[0], forceRevoke))
		}),
	}
	revoke.Flags().BoolVar(&forceRevoke, "force", false, "although certificates of it are in use")
	c.AddCommand(
		&cobra.Command{Use: "list", Short: "The roots that are believed, what each does, and who holds certificates of it", Args: app.Exactly(0), RunE: a.With(func(ctx context.Context, c *client.Client, _ []string) error {
			r, err := identityv1.NewKeyServiceClient(c.Conn()).ListAuthorities(ctx, &identityv1.ListAuthoritiesRequest{})
			return a.roots(r, err)
		})},
		&cobra.Command{Use: "show", Short: "Print the roots as PEM, for files that are given to --ca", Args: app.Exactly(0), RunE: a.With(func(ctx context.Context, c *client.Client, _ []string) error {
			r, err := identityv1.NewKeyServiceClient(c.Conn()).ListAuthorities(ctx, &identityv1.ListAuthoritiesRequest{})
			if err != nil {
				return err
			}
			for _, root := range r.GetAuthorities() {
				if err := pem.Encode(a.Out, &pem.Block{Type: "CERTIFICATE", Bytes: root.GetRoot()}); err != nil {
					return err
				}
			}
			return nil
		})},
		&cobra.Command{Use: "prepare", Short: "Make a new root that is believed from now on and signs nothing yet", Args: app.Exactly(0), RunE: a.With(func(ctx context.Context, c *client.Client, _ []string) error {
			r, err := identityv1.NewKeyServiceClient(c.Conn()).PrepareAuthority(ctx, &identityv1.PrepareAuthorityRequest{})
			return a.root(r, err)
		})},
		activate,
		&cobra.Command{Use: "taint PIN", Short: "Have every certificate of an old root renewed now", Args: app.Exactly(1), RunE: a.With(func(ctx context.Context, c *client.Client, args []string) error {
			r, err := identityv1.NewKeyServiceClient(c.Conn()).TaintAuthority(ctx, &identityv1.TaintAuthorityRequest{Pin: args[0]})
			return a.root(r, err)
		})},
		&cobra.Command{Use: "untaint PIN", Short: "Make a tainted root an old one again", Args: app.Exactly(1), RunE: a.With(func(ctx context.Context, c *client.Client, args []string) error {
			r, err := identityv1.NewKeyServiceClient(c.Conn()).UntaintAuthority(ctx, &identityv1.UntaintAuthorityRequest{Pin: args[0]})
			return a.root(r, err)
		})},
		revoke,
	)
	return c
}

func (a verbs) root(r *identityv1.Authority, err error) error {
	if err != nil || a.Structured() {
		return a.Answer(r, err)
	}
	if len(r.GetPending()) > 0 {
		a.Say("not there yet: " + strings.Join(r.GetPending(), ", "))
	}
	return a.roots(&identityv1.ListAuthoritiesResponse{Authorities: []*identityv1.Authority{r}}, nil)
}

func (a verbs) roots(r *identityv1.ListAuthoritiesResponse, err error) error {
	if err != nil || a.Structured() {
		return a.Answer(r, err)
	}
	rows := make([][]string, 0, len(r.GetAuthorities()))
	for _, root := range r.GetAuthorities() {
		rows = append(rows, []string{
			root.GetPin(), strings.ToLower(strings.TrimPrefix(root.GetState().String(), "AUTHORITY_STATE_")), show.Clock(root.GetCreateTime()), show.Clock(root.GetExpireTime()),
			show.Clock(root.GetSignEndTime()), strconv.Itoa(len(root.GetHolders())), strings.Join(root.GetPending(), " "),
		})
	}
	if err := a.Table([]string{"pin", "state", "made", "ends", "signed until", "holders", "waits for"}, rows, ""); err != nil || r.GetClock() == nil {
		return err
	}
	_, err = fmt.Fprintf(a.Out, "\n%s\n", next(r.GetClock()))
	return err
}

// next says what the clock does, for whoever reads the list.
func next(c *identityv1.AuthorityClock) string {
	step := strings.ToLower(strings.TrimPrefix(c.GetNextStep().String(), "AUTHORITY_STEP_"))
	if c.GetPin() != "" {
		step += " " + c.GetPin()
	}
	switch {
	case c.GetNextStep() == identityv1.AuthorityStep_AUTHORITY_STEP_UNSPECIFIED:
		return "the clock knows no step that follows"
	case c.GetManual():
		return "an operator goes on with this rotation: the clock waits until one root stands alone"
	case c.GetWaitsFor() != "":
		return "next by the clock: " + step + ", due since " + show.Clock(c.GetNextTime()) + ", waits: " + c.GetWaitsFor()
	}
	return "next by the clock: " + step + ", at " + show.Clock(c.GetNextTime())
}
