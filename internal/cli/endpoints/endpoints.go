package endpoints

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	"github.com/redoubt-ml/redoubt/internal/cli/app"
	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/internal/cli/show"
)

func (a verbs) create() *cobra.Command {
	var kind, auth, description string
	var tags map[string]string
	var ttl time.Duration
	cmd := a.onEndpoint("create ID", "Make an endpoint; deployments are put behind it", app.Exactly(1), func(ctx context.Context, c *client.Client, name string, _ []string) error {
		e := &inferencev1.NewEndpoint{Description: description, Tags: tags}
		var err error
		if e.Kind, err = kindFlag(kind); err != nil {
			return err
		}
		if e.Auth, err = authFlag(auth); err != nil {
			return err
		}
		if ttl != 0 {
			e.TokenTtl = durationpb.New(ttl)
		}
		id := show.Last(name)
		r, err := c.Endpoints().CreateEndpoint(ctx, &inferencev1.CreateEndpointRequest{Parent: strings.TrimSuffix(name, "/endpoints/"+id), EndpointId: id, Endpoint: e})
		if err == nil && !a.Structured() {
			a.Say("next: redoubt deployment create %s/NAME --model MODEL --code FOLDER --compute ID", id)
		}
		return a.endpoint(r, err)
	})
	cmd.ValidArgsFunction = cobra.NoFileCompletions
	f := cmd.Flags()
	f.StringVar(&kind, "kind", "", "local or container-instance; without it local")
	f.StringVar(&auth, "auth", "", "key, token or none; without it what the kind has: key of local, none of container-instance")
	f.StringVar(&description, "description", "", "what it is for")
	f.StringToStringVar(&tags, "tag", nil, "a tag, KEY=VALUE; can be repeated")
	f.DurationVar(&ttl, "token-ttl", 0, "how long its tokens live, 5m to 24h; without it 1h")
	return cmd
}

func kindFlag(text string) (inferencev1.Endpoint_Kind, error) {
	switch text {
	case "":
		return inferencev1.Endpoint_KIND_UNSPECIFIED, nil
	case "local":
		return inferencev1.Endpoint_KIND_LOCAL, nil
	case "container-instance":
		return inferencev1.Endpoint_KIND_CONTAINER_INSTANCE, nil
	}
	return 0, app.Usagef("--kind is local or container-instance, and not %q", text)
}

func authFlag(text string) (inferencev1.Endpoint_Auth, error) {
	switch text {
	case "":
		return inferencev1.Endpoint_AUTH_UNSPECIFIED, nil
	case "key":
		return inferencev1.Endpoint_AUTH_KEY, nil
	case "token":
		return inferencev1.Endpoint_AUTH_TOKEN, nil
	case "none":
		return inferencev1.Endpoint_AUTH_NONE, nil
	}
	return 0, app.Usagef("--auth is key, token or none, and not %q", text)
}

func (a verbs) list() *cobra.Command {
	return &cobra.Command{Use: "list", Short: "The endpoints of the workspace", Args: app.Exactly(0), RunE: a.With(func(ctx context.Context, c *client.Client, _ []string) error {
		w, err := a.WorkspaceName(ctx, c)
		if err != nil {
			return err
		}
		out := &inferencev1.ListEndpointsResponse{}
		_, err = app.Pages(0, func(token string, size int32) ([]*inferencev1.Endpoint, string, error) {
			r, err := c.Endpoints().ListEndpoints(ctx, &inferencev1.ListEndpointsRequest{Parent: w, PageSize: size, PageToken: token})
			return r.GetEndpoints(), r.GetNextPageToken(), err
		}, func(e *inferencev1.Endpoint) { out.Endpoints = append(out.Endpoints, e) })
		if err != nil || a.Structured() {
			return a.Answer(out, err)
		}
		rows := make([][]string, 0, len(out.GetEndpoints()))
		for _, e := range out.GetEndpoints() {
			rows = append(rows, []string{show.Last(e.GetName()), kindText(e.GetKind()), show.Enum(e.GetAuth().String(), "AUTH_"), shares(e.GetTraffic()), show.Ago(a.Now(), e.GetCreateTime()), e.GetScoringUri()})
		}
		return a.Table([]string{"endpoint", "kind", "auth", "traffic", "created", "scoring uri"}, rows, "")
	})}
}

func (a verbs) show() *cobra.Command {
	return a.onEndpoint("show ID", "One endpoint, with the address that is scored", app.Exactly(1), func(ctx context.Context, c *client.Client, name string, _ []string) error {
		return a.endpoint(get(ctx, c, name))
	})
}

func (a verbs) update() *cobra.Command {
	var auth, description string
	var tags map[string]string
	var ttl time.Duration
	var cmd *cobra.Command
	cmd = a.onEndpoint("update ID", "Change how callers are authenticated, the description, the tags, how long tokens live", app.Exactly(1), func(ctx context.Context, c *client.Client, name string, _ []string) error {
		u := &inferencev1.EndpointUpdate{Name: name, Description: description, Tags: tags}
		mask := &fieldmaskpb.FieldMask{}
		for flag, field := range map[string]string{"auth": "auth", "description": "description", "tag": "tags", "token-ttl": "token_ttl"} {
			if cmd.Flags().Changed(flag) {
				mask.Paths = append(mask.Paths, field)
			}
		}
		if len(mask.GetPaths()) == 0 {
			return app.Usagef("say what is to change; traffic is changed by `redoubt endpoint traffic`")
		}
		slices.Sort(mask.Paths)
		var err error
		if u.Auth, err = authFlag(auth); err != nil {
			return err
		}
		if ttl != 0 {
			u.TokenTtl = durationpb.New(ttl)
		}
		return a.endpoint(c.Endpoints().UpdateEndpoint(ctx, &inferencev1.UpdateEndpointRequest{Endpoint: u, UpdateMask: mask}))
	})
	f := cmd.Flags()
	f.StringVar(&auth, "auth", "", "key, token or none; what opened it before opens nothing from then on")
	f.StringVar(&description, "description", "", "what it is for")
	f.StringToStringVar(&tags, "tag", nil, "a tag, KEY=VALUE; can be repeated; those that are not given are removed")
	f.DurationVar(&ttl, "token-ttl", 0, "how long its tokens live, 5m to 24h")
	return cmd
}

func (a verbs) remove() *cobra.Command {
	return a.onEndpoint("delete ID", "Remove an endpoint with its deployments", app.Exactly(1), func(ctx context.Context, c *client.Client, name string, _ []string) error {
		if err := a.Sure("deleting the endpoint " + show.Last(name) + " with its deployments"); err != nil {
			return err
		}
		r, err := c.Endpoints().DeleteEndpoint(ctx, &inferencev1.DeleteEndpointRequest{Name: name})
		return a.Done(r, err, "deleted %s", name)
	})
}

func (a verbs) traffic() *cobra.Command {
	var mirror string
	var cmd *cobra.Command
	cmd = a.onEndpoint("traffic ID [DEPLOYMENT=PERCENT…]", "Show or set which deployment gets how much of the traffic", cobra.MinimumNArgs(1), func(ctx context.Context, c *client.Client, name string, rest []string) error {
		u := &inferencev1.EndpointUpdate{Name: name}
		mask := &fieldmaskpb.FieldMask{}
		var err error
		if len(rest) > 0 {
			mask.Paths = append(mask.Paths, "traffic")
			if u.Traffic, err = percents(rest); err != nil {
				return err
			}
		}
		if cmd.Flags().Changed("mirror") {
			mask.Paths = append(mask.Paths, "mirror")
			if mirror != "" {
				if u.Mirror, err = percents([]string{mirror}); err != nil {
					return err
				}
			}
		}
		var e *inferencev1.Endpoint
		if len(mask.GetPaths()) == 0 {
			e, err = get(ctx, c, name)
		} else {
			e, err = c.Endpoints().UpdateEndpoint(ctx, &inferencev1.UpdateEndpointRequest{Endpoint: u, UpdateMask: mask})
		}
		if err != nil || a.Structured() {
			return a.Answer(e, err)
		}
		var rows [][]string
		for _, d := range slices.Sorted(maps.Keys(e.GetTraffic())) {
			rows = append(rows, []string{d, strconv.Itoa(int(e.GetTraffic()[d])), "traffic"})
		}
		for _, d := range slices.Sorted(maps.Keys(e.GetMirror())) {
			rows = append(rows, []string{d, strconv.Itoa(int(e.GetMirror()[d])), "mirror"})
		}
		return a.Table([]string{"deployment", "percent", "of"}, rows, "")
	})
	cmd.Flags().StringVar(&mirror, "mirror", "", "a deployment that gets a copy of so much of the traffic, DEPLOYMENT=PERCENT; empty for none")
	return cmd
}

// percents reads blue=90 green=10.
func percents(args []string) (map[string]int32, error) {
	out := make(map[string]int32, len(args))
	for _, arg := range args {
		id, text, ok := strings.Cut(arg, "=")
		n, err := strconv.ParseInt(strings.TrimSuffix(text, "%"), 10, 32)
		if _, twice := out[id]; !ok || id == "" || err != nil || n < 0 || n > 100 || twice {
			return nil, app.Usagef("a share is written DEPLOYMENT=PERCENT, each deployment once, and not %q", arg)
		}
		out[id] = int32(n)
	}
	return out, nil
}

func (a verbs) endpoint(e *inferencev1.Endpoint, err error) error {
	if err != nil || a.Structured() {
		return a.Answer(e, err)
	}
	ttl := ""
	if e.GetTokenTtl() != nil && e.GetAuth() == inferencev1.Endpoint_AUTH_TOKEN {
		ttl = e.GetTokenTtl().AsDuration().String()
	}
	return show.Pairs(a.Out, "name", e.GetName(), "uid", e.GetUid(), "kind", kindText(e.GetKind()), "auth", show.Enum(e.GetAuth().String(), "AUTH_"), "tokens live", ttl,
		"scoring uri", e.GetScoringUri(), "traffic", shares(e.GetTraffic()), "mirror", shares(e.GetMirror()), "description", e.GetDescription(), "tags", show.Map(e.GetTags()),
		"created", show.Clock(e.GetCreateTime()), "by", e.GetCreatedBy())
}

// kindText is a kind as the flags take it.
func kindText(k inferencev1.Endpoint_Kind) string {
	return strings.ReplaceAll(show.Enum(k.String(), "KIND_"), " ", "-")
}

// shares are written blue=90 green=10.
func shares(m map[string]int32) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, fmt.Sprintf("%s=%d", k, m[k]))
	}
	return strings.Join(out, " ")
}
