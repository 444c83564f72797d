package declare

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/redoubt-ml/redoubt/internal/cli/app"
	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
)

// kind is what can be declared.
type kind interface {
	title() string
	// named reports whether resources of the kind have names.
	named() bool
	// rank is when it is applied: what is needed comes first.
	rank() int
	// fixed are the fields that no method changes.
	fixed() []string
	// blank is a pointer to an empty spec.
	blank() any
	// full is the name of a resource, and the spec with what it refers to by full names.
	full(ctx context.Context, s *session, name string, spec any) (string, error)
	// read gives what is there, whole, and what a change has to carry; a fault NotFound where nothing is.
	read(ctx context.Context, s *session, name string, want any) (spec any, etag string, err error)
	create(ctx context.Context, s *session, name string, spec any) error
	// change makes the differences go away; those of a second turn (later) are left for it.
	change(ctx context.Context, s *session, name, etag string, spec any, diffs []difference) error
	// list gives all that there are in the workspace, or where the kind stands.
	list(ctx context.Context, s *session, each func(name string, spec any) error) error
}

// session is one command's way to the installation.
type session struct {
	*app.App
	c *client.Client
	// workspace is the chosen one, once it was asked for.
	workspace string
	// made are the deployments that this command has made.
	made map[string]bool
}

func kinds() map[string]kind {
	out := make(map[string]kind)
	for _, k := range []kind{workspaces{}, computes{}, models{}, endpoints{}, deployments{}, assignments{}} {
		out[k.title()] = k
	}
	return out
}

func kindNames() []string { return slices.Sorted(maps.Keys(kinds())) }

// kindOf finds a kind by what people type: its name in any case, in the plural too.
func kindOf(text string) (kind, error) {
	for _, k := range kinds() {
		if t := strings.ToLower(text); t == strings.ToLower(k.title()) || t == strings.ToLower(k.title())+"s" {
			return k, nil
		}
	}
	return nil, app.Usagef("there is no kind %q; there are %s", text, strings.Join(kindNames(), ", "))
}

// here is the chosen workspace.
func (s *session) here(ctx context.Context) (string, error) {
	if s.workspace == "" {
		w, err := s.WorkspaceName(ctx, s.c)
		if err != nil {
			return "", err
		}
		s.workspace = w
	}
	return s.workspace, nil
}

// inWorkspace makes a name full: a full one, one from the workspace on (endpoints/a/deployments/b), or where the kind stands directly in
// a workspace just the id.
func (s *session) inWorkspace(ctx context.Context, name string, of resource.Kind) (string, error) {
	full := name
	if !strings.HasPrefix(name, "subscriptions/") {
		w, err := s.here(ctx)
		if err != nil {
			return "", err
		}
		if full = w + "/" + name; !strings.Contains(name, "/") {
			full = w + "/" + of.Collection() + "/" + name
		}
	}
	return checked(full, of)
}

// below is inWorkspace for what a document refers to: what is not a full name stands in the document's own workspace.
func below(owner, name string, of resource.Kind) (string, error) {
	if strings.HasPrefix(name, "subscriptions/") {
		return checked(name, of)
	}
	n, err := resource.Parse(owner)
	if err != nil {
		return "", err
	}
	w, ok := n.Ancestor(resource.KindWorkspace)
	if !ok {
		return "", app.Usagef("%q stands in no workspace", owner)
	}
	if strings.Contains(name, "/") {
		return checked(w.String()+"/"+name, of)
	}
	return checked(w.String()+"/"+of.Collection()+"/"+name, of)
}

func checked(full string, of resource.Kind) (string, error) {
	n, err := resource.Parse(full)
	if err != nil {
		return "", err
	}
	if n.Kind() != of {
		return "", app.Usagef("%q is not the name of a %s", full, of)
	}
	return full, nil
}

// split is a name's parent and id.
func split(name string) (parent, id string) {
	parts := strings.Split(name, "/")
	return strings.Join(parts[:len(parts)-2], "/"), parts[len(parts)-1]
}

// fixed refuses a difference that no method makes go away.
func fixed(d document, diffs []difference) error {
	for _, x := range diffs {
		if slices.Contains(d.kind.fixed(), x.Field) {
			return fault.FailedPrecondition("the %s of a %s stays what it was made with, %s, and cannot become %s: delete %s and apply again, or correct the document",
				x.Field, d.kind.title(), x.From, x.To, d.name)
		}
	}
	return nil
}

func ptr[T any](v T) *T { return &v }

// val is what a pointer points to, or nothing.
func val[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

// duration is a length of time as 30s; 1m30s is read too.
type duration time.Duration

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil || v <= 0 {
		return app.Usagef("%q is no length of time as 30s", b)
	}
	*d = duration(v)
	return nil
}

// MarshalText implements encoding.TextMarshaler.
func (d duration) MarshalText() ([]byte, error) {
	text := time.Duration(d).String()
	// 1h0m0s is 1h, and 1m0s is 1m.
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return []byte(text), nil
}

func (d *duration) proto() *durationpb.Duration {
	if d == nil {
		return nil
	}
	return durationpb.New(time.Duration(*d))
}

func durationOf(d *durationpb.Duration) *duration {
	if d == nil {
		return nil
	}
	return ptr(duration(d.AsDuration()))
}

// word checks one of a few words, which may be absent.
func word(field string, v *string, of ...string) error {
	if v == nil || slices.Contains(of, *v) {
		return nil
	}
	return app.Usagef("%s is one of %s, and not %q", field, strings.Join(of, ", "), *v)
}
