package declare

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"
	"google.golang.org/grpc/codes"

	"github.com/redoubt-ml/redoubt/internal/cli/app"
	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/internal/cli/show"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// verbs are the commands of this package, for one invocation.
type verbs struct{ *app.App }

// Commands are those about files that say what is to be.
func Commands(of *app.App) []*cobra.Command {
	a := verbs{of}
	return []*cobra.Command{a.apply(), a.get()}
}

func (a verbs) get() *cobra.Command {
	cmd := &cobra.Command{
		Use: "get KIND [NAME]", Short: "What is there; with -o yaml as documents that apply takes", Args: cobra.RangeArgs(1, 2),
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return kindNames(), cobra.ShellCompDirectiveNoFileComp
		},
	}
	cmd.RunE = a.With(func(ctx context.Context, c *client.Client, args []string) error {
		k, err := kindOf(args[0])
		if err != nil {
			return err
		}
		s := &session{App: a.App, c: c}
		var docs []found
		take := func(name string, spec any) error {
			docs = append(docs, found{k, name, spec})
			return nil
		}
		switch {
		case len(args) == 1:
			err = k.list(ctx, s, take)
		case !k.named():
			return app.Usagef("a %s has no name; leave it out, and say with -w or -g where", k.title())
		default:
			name, err := k.full(ctx, s, args[1], k.blank())
			if err != nil {
				return err
			}
			spec, _, err := k.read(ctx, s, name, nil)
			if err != nil {
				return err
			}
			_ = take(name, spec)
		}
		if err != nil {
			return err
		}
		return a.print(docs)
	})
	return cmd
}

// found is a resource as a document has it.
type found struct {
	kind kind
	name string
	spec any
}

func (a verbs) print(docs []found) error {
	if !a.Structured() {
		rows := make([][]string, 0, len(docs))
		for _, d := range docs {
			about := d.name
			if about == "" {
				about = strings.Join(lines(compare(nil, d.spec)), ", ")
			}
			rows = append(rows, []string{d.kind.title(), about})
		}
		return a.Table([]string{"kind", "name"}, rows, "")
	}
	var out bytes.Buffer
	list := make([]any, 0, len(docs))
	for _, d := range docs {
		begin := out.Len()
		if err := write(&out, d.kind, d.name, d.spec); err != nil {
			return err
		}
		var plain any
		if err := yaml.Unmarshal(out.Bytes()[begin:], &plain); err != nil {
			return err
		}
		list = append(list, plain)
	}
	if a.Output == "yaml" {
		_, err := out.WriteTo(a.Out)
		return err
	}
	return a.answer(list)
}

// answer writes a value for programs.
func (a verbs) answer(v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return a.AnswerJSON(append(b, '\n'))
}

// What became of a document; of a dry run, what would.
const (
	created   = "created"
	changed   = "changed"
	unchanged = "unchanged"
)

// outcome is what became of one document.
type outcome struct {
	Kind    string       `json:"kind"`
	Name    string       `json:"name"`
	Action  string       `json:"action"`
	Changes []difference `json:"changes,omitempty"`
}

func (a verbs) apply() *cobra.Command {
	var files []string
	var dry bool
	cmd := &cobra.Command{Use: "apply -f FILE|-", Short: "Make the installation what documents say; nothing is deleted", Args: app.Exactly(0)}
	cmd.Flags().StringArrayVarP(&files, "file", "f", nil, "a file of documents, - for standard input; can be repeated")
	cmd.Flags().BoolVar(&dry, "dry-run", false, "change nothing, and show what would change; exits 0 whether something would or not")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		docs, err := a.documents(files)
		if err != nil {
			return err
		}
		return a.With(func(ctx context.Context, c *client.Client, _ []string) error {
			return a.carryOut(ctx, &session{App: a.App, c: c, made: make(map[string]bool)}, docs, dry)
		})(cmd, args)
	}
	return cmd
}

// documents reads all files before the installation is asked anything.
func (a verbs) documents(files []string) ([]document, error) {
	if len(files) == 0 {
		return nil, app.Usagef("-f says where the documents are; - is standard input")
	}
	var out []document
	for _, name := range files {
		src, shown := a.In, "standard input"
		if name != "-" {
			f, err := os.Open(name)
			if err != nil {
				return nil, app.Usagef("the documents cannot be read: %v", err)
			}
			defer func() { _ = f.Close() }()
			src, shown = f, name
		}
		docs, err := parse(shown, src)
		if err != nil {
			return nil, err
		}
		out = append(out, docs...)
	}
	return out, nil
}

// carryOut applies documents in the order in which they need each other.
func (a verbs) carryOut(ctx context.Context, s *session, docs []document, dry bool) error {
	slices.SortStableFunc(docs, func(x, y document) int { return cmp.Compare(x.kind.rank(), y.kind.rank()) })
	if err := resolve(ctx, s, docs); err != nil {
		return err
	}
	out := make([]outcome, 0, len(docs))
	err := turns(ctx, s, docs, dry, func(o outcome) {
		out = append(out, o)
		if !a.Structured() {
			a.tell(o)
		}
	})
	if !a.Structured() {
		return err
	}
	// What ends in the middle has done what stands here.
	return errors.Join(err, a.answer(map[string]any{"dryRun": dry, "outcomes": out}))
}

// resolve makes every name full, before anything is changed.
func resolve(ctx context.Context, s *session, docs []document) error {
	seen := make(map[string]string)
	for i := range docs {
		d := &docs[i]
		name, err := d.kind.full(ctx, s, d.name, d.spec)
		if err != nil {
			return fmt.Errorf("%s: %w", d.where, err)
		}
		d.name = name
		id := d.kind.title() + " " + name
		if other := seen[id]; other != "" {
			return app.Usagef("%s and %s are about the same %s", other, d.where, id)
		}
		seen[id] = d.where
	}
	return nil
}

// turns goes through the documents: what stands by itself, then the traffic between deployments, then who may do what.
func turns(ctx context.Context, s *session, docs []document, dry bool, tell func(outcome)) error {
	open := make(map[string]outcome) // endpoints whose traffic comes later
	for _, roles := range []bool{false, true} {
		for _, d := range docs {
			if _, is := d.kind.(assignments); is != roles {
				continue
			}
			o, err := settle(ctx, s, d, dry)
			if err != nil {
				return fmt.Errorf("%s: %w", d.where, err)
			}
			if e, ok := d.spec.(*endpointSpec); ok && !dry && (e.Traffic != nil || e.Mirror != nil) {
				open[d.name] = o
				continue
			}
			tell(o)
		}
		if roles {
			break
		}
		for _, d := range docs {
			o, ok := open[d.name]
			if e, is := d.spec.(*endpointSpec); ok && is {
				diffs, err := endpoints{}.route(ctx, s, d.name, e)
				if err != nil {
					if o.Action != unchanged {
						tell(o)
					}
					return fmt.Errorf("%s: %w", d.where, err)
				}
				if o.Action != created && len(diffs) > 0 {
					o.Action, o.Changes = changed, append(o.Changes, diffs...)
				}
				tell(o)
			}
		}
	}
	return nil
}

// settle makes one document true, or says what that would take.
func settle(ctx context.Context, s *session, d document, dry bool) (outcome, error) {
	o := outcome{Kind: d.kind.title(), Name: d.name, Action: unchanged}
	is, etag, err := d.kind.read(ctx, s, d.name, d.spec)
	if fault.Code(err) == codes.NotFound {
		if o.Action, o.Changes = created, compare(nil, d.spec); dry {
			return o, nil
		}
		return o, d.kind.create(ctx, s, d.name, d.spec)
	}
	if err != nil {
		return o, err
	}
	diffs := compare(is, d.spec)
	if err := fixed(d, diffs); err != nil {
		return o, err
	}
	if !dry && len(diffs) > 0 {
		if err := d.kind.change(ctx, s, d.name, etag, d.spec, diffs); err != nil {
			return o, err
		}
		// The traffic of an endpoint is another turn's.
		if _, ok := d.kind.(endpoints); ok {
			diffs = slices.DeleteFunc(diffs, func(x difference) bool { return routes(x.Field) })
		}
	}
	if len(diffs) > 0 {
		o.Action, o.Changes = changed, diffs
	}
	return o, nil
}

// tell writes what became of a document, or would.
func (a verbs) tell(o outcome) {
	_, _ = fmt.Fprintf(a.Out, "%-9s  %s %s\n", o.Action, o.Kind, show.Text(o.Name))
	for _, l := range lines(o.Changes) {
		_, _ = fmt.Fprintf(a.Out, "    %s\n", l)
	}
}

func lines(list []difference) []string {
	out := make([]string, 0, len(list))
	for _, d := range list {
		out = append(out, d.String())
	}
	return out
}
