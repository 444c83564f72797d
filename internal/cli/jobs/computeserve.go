package jobs

import (
	"context"
	"encoding/pem"
	"errors"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/internal/agent"
	"github.com/redoubt-ml/redoubt/internal/agent/host"
	"github.com/redoubt-ml/redoubt/internal/agent/sandbox"
	"github.com/redoubt-ml/redoubt/internal/cli/app"
	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/pkg/svid"
)

func (a verbs) computeServe() *cobra.Command {
	var id, secret string
	var how serving
	c := &cobra.Command{
		Use: "serve ID", Short: "Carry runs of a self-hosted target on this machine, until stopped", Args: app.Exactly(1),
		ValidArgsFunction: a.SuggestFirst("computes"),
	}
	c.Flags().StringVar(&id, "client-id", "", "call as this service principal, by its uid, and not as who is signed in")
	c.Flags().StringVar(&secret, "client-secret-file", "", "its secret, in a file that its owner alone can read; it is read again for each token")
	c.Flags().BoolVar(&how.wait, "wait", false, "wait for a target that is not there yet, or not any more; ID is its full name then")
	c.Flags().StringVar(&how.gateway, "gateway", "", "host:port at which --server is dialled from this machine, where that is another address")
	c.Flags().StringVar(&how.beat, "beat-file", "", "a file that is made anew whenever the installation answers; `redoubt health --beat-file` looks at it")
	c.Flags().StringVar(&how.roots, "roots-file", "", "a file in which the installation's roots are kept as they change, and which is believed at the next start in place of what the context knows of them")
	c.Flags().StringVar(&how.claim, "claim-file", "", "a file in which the claim that waits for its answer is kept, so that a run whose answer was lost is given again after a restart; one process has it at a time")
	c.Flags().DurationVar(&how.drain, "drain", 10*time.Minute, "how long runs that are going may take to end when this is stopped; a second signal ends them at once")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if (id == "") != (secret == "") {
			return app.Usagef("--client-id and --client-secret-file belong together")
		}
		if id == "" && how.gateway != "" {
			return app.Usagef("--gateway belongs to --client-id")
		}
		roots, server, err := a.followed(how.roots)
		if err != nil {
			return err
		}
		how.believed = roots
		var cl *client.Client
		if by := grpc.WithTransportCredentials(roots.Credentials(server, a.Now)); id == "" {
			cl, err = a.Connect(cmd.Context(), by)
		} else {
			cl, err = a.ConnectAs(id, secret, how.gateway, by)
		}
		if err != nil {
			return err
		}
		defer func() { _ = cl.Close() }()
		return a.serveTarget(cmd.Context(), cl, args[0], how)
	}
	return c
}

// serving is how a target is served.
type serving struct {
	wait                 bool
	gateway, beat, roots string
	claim                string
	drain                time.Duration
	believed             *agent.Roots
}

// followed are the roots that the chosen context believes, or those of the mesh that are kept in the file in their place, and the host that the
// installation's certificate is for.
func (a verbs) followed(file string) (*agent.Roots, string, error) {
	chosen, err := a.Chosen()
	if err != nil {
		return nil, "", err
	}
	text, err := chosen.Client().RootsPEM()
	if err != nil {
		return nil, "", err
	}
	roots, err := agent.NewRoots(text)
	if err != nil {
		return nil, "", err
	}
	u, err := url.Parse(chosen.Server)
	if err != nil {
		return nil, "", app.Usagef("%q is no address of an installation", chosen.Server)
	}
	if file == "" {
		return roots, u.Hostname(), nil
	}
	kept, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return roots, u.Hostname(), nil
	}
	var ders [][]byte
	for rest := kept; err == nil; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		ders = append(ders, block.Bytes)
	}
	if err == nil {
		if len(ders) == 0 {
			err = errors.New("there is no certificate in it")
		} else {
			_, err = roots.Take(ders)
		}
	}
	if err != nil {
		return nil, "", app.Usagef("--roots-file %s: %v; remove it, and the roots of the context are believed", file, err)
	}
	return roots, u.Hostname(), nil
}

// keep writes the roots down, as PEM.
func (a verbs) keep(file string) func([][]byte) {
	if file == "" {
		return nil
	}
	return func(roots [][]byte) {
		var out []byte
		for _, der := range roots {
			out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
		}
		if err := svid.WritePrivate(file, out); err != nil {
			a.Say("the roots could not be kept in %s: %v", file, err)
		}
	}
}

// serveTarget carries the runs of a target.
func (a verbs) serveTarget(ctx context.Context, c *client.Client, id string, how serving) error {
	if err := sandbox.Check(ctx); err != nil {
		return err
	}
	name, err := a.Named(ctx, c, "computes", id)
	if err != nil {
		return err
	}
	claim, err := openClaim(how.claim)
	if err != nil {
		return err
	}
	defer claim.close()
	keys := identityv1.NewKeyServiceClient(c.Conn())
	h, err := host.New(host.Config{
		Computes: c.Computes(), Server: c.Context().Server, Roots: how.believed, Target: name, Gateway: how.gateway, Wait: how.wait, Drain: how.drain, Say: a.Say, Beat: a.beat(how.beat),
		Keep: a.keep(how.roots), Claim: claim.id, KeepClaim: a.keepClaim(claim),
		Follow: func(ctx context.Context) ([][]byte, time.Duration, error) {
			b, err := keys.GetTrustBundle(ctx, &identityv1.GetTrustBundleRequest{})
			return b.GetRoots(), b.GetRefresh().AsDuration(), err
		},
		Logger: slog.New(slog.NewTextHandler(a.Err, &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	if err != nil {
		return err
	}
	return h.Serve(ctx)
}

// beat makes the file anew, whose time is what health looks at.
func (a verbs) beat(path string) func() {
	if path == "" {
		return nil
	}
	return func() {
		if err := os.WriteFile(path, nil, 0o600); err == nil {
			now := a.Now()
			_ = os.Chtimes(path, now, now) // an empty file that is written with nothing keeps its time
		}
	}
}
