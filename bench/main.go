// Command bench measures Redoubt beside something that a reader knows, in the same run: rounds of the one and of the other alternate,
// so that a busy machine slows both. Each line reads
//
//	figure <name> <value> <unit> ratio <r> beside <what>
//
// The ratio is the median over the rounds of the figure over its peer's mean in the rounds around it; below it stands what it was
// measured against. The servers run in processes of their own, all with the same GOGC.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"time"

	"github.com/redoubt-ml/redoubt/internal/agent"
	"github.com/redoubt-ml/redoubt/internal/agent/sandbox"
	"github.com/redoubt-ml/redoubt/pkg/authn/password/apart"
)

// options of a run.
type options struct {
	rounds  int
	each    time.Duration
	only    string
	gogc    string
	profile string
	inside  bool
	out     io.Writer
	log     io.Writer
}

func main() {
	sandbox.MaybeStage()
	apart.Maybe()
	if len(os.Args) == 2 && os.Args[1] == "agent" { // an installation's local target starts its own binary again
		os.Exit(agent.Main(context.Background(), os.NewFile(3, "bootstrap"), os.Stderr))
	}
	o := options{out: os.Stdout, log: os.Stderr}
	flag.IntVar(&o.rounds, "rounds", 7, "rounds of each pair")
	flag.DurationVar(&o.each, "each", 2*time.Second, "length of a round")
	flag.StringVar(&o.only, "only", "", "names of figures, with commas between; empty for all")
	flag.StringVar(&o.gogc, "gogc", "400", "GOGC of every server; 400 is the default of ours")
	flag.StringVar(&o.profile, "profile", "", "write a CPU profile of the chain's or the installation's server here")
	flag.BoolVar(&o.inside, "passwords-inside", false, "sign-ins: compute password hashes in the services' process, to compare")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if kind := os.Getenv(serverEnv); kind != "" {
		do := func(ctx context.Context) error { return serve(ctx, kind) }
		if strings.HasPrefix(kind, "installation") {
			do = func(ctx context.Context) error { return serveInstallation(ctx, kind) }
		}
		if kind == "floor" {
			do = func(context.Context) error { return serveFloor() }
		}
		if kind == "busy" {
			do = func(context.Context) error { return serveBusy() }
		}
		if err := do(ctx); err != nil {
			fmt.Fprintln(os.Stderr, "bench server:", err)
			os.Exit(1)
		}
		return
	}
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	figures := []struct {
		name string
		do   func(context.Context, options) error
	}{
		{"chain-same-headers", chainSameHeaders}, {"chain-no-headers", chainNoHeaders}, {"gateway", gatewayFigure},
		{"decision", decisionFigure}, {"token-check", tokenFigure}, {"audit-record", auditFigure}, {"start", startFigure},
		{"run-first-line", runStart}, {"score-nginx", scoreNginx}, {"score-python", scorePython},
		{"tokens-dex", tokensDex}, {"tokens-direct-dex", tokensDirectDex}, {"tokens-floor-dex", tokensFloorDex}, {"sign-ins", signIns},
	}
	if o.rounds < 1 || o.each <= 0 {
		return errors.New("there has to be a round, and it has to last")
	}
	only := strings.FieldsFunc(o.only, func(r rune) bool { return r == ',' })
	for _, f := range figures {
		if len(only) > 0 && !slices.Contains(only, f.name) {
			continue
		}
		if err := f.do(ctx, o); err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
	}
	return nil
}

// print writes one line.
func (o options) print(name string, value float64, unit string, ratio float64, beside string) {
	fmt.Fprintf(o.out, "figure %s %.4g %s ratio %.2f beside %s\n", name, value, unit, ratio, beside)
}

// paired alternates peer and ours, peer first and last, and gives the median of ours and of the ratios.
func (o options) paired(ctx context.Context, ours, peer func(context.Context) (float64, error)) (value, ratio float64, err error) {
	if _, err := ours(ctx); err != nil { // warm
		return 0, 0, err
	}
	before, err := peer(ctx)
	if err != nil {
		return 0, 0, err
	}
	values, ratios := make([]float64, 0, o.rounds), make([]float64, 0, o.rounds)
	for range o.rounds {
		v, err := ours(ctx)
		if err != nil {
			return 0, 0, err
		}
		after, err := peer(ctx)
		if err != nil {
			return 0, 0, err
		}
		values, ratios = append(values, v), append(ratios, 2*v/(before+after))
		before = after
	}
	fmt.Fprintf(o.log, "  rounds: %.4g ratios: %.2f\n", values, ratios)
	return median(values), median(ratios), ctx.Err()
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	n := len(v)
	if n%2 == 1 {
		return v[n/2]
	}
	return (v[n/2-1] + v[n/2]) / 2
}
