package models

import (
	"context"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	"github.com/redoubt-ml/redoubt/internal/cli/app"
	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/internal/cli/show"
)

func (a verbs) register() *cobra.Command {
	var run, from, description string
	var tags map[string]string
	cmd := &cobra.Command{Use: "register MODEL --run ID [--path PATH]", Short: "Make outputs of a run the next version of a model", Args: app.Exactly(1), ValidArgsFunction: a.SuggestFirst("models")}
	cmd.Flags().StringVar(&run, "run", "", "the run that made it")
	cmd.Flags().StringVar(&from, "path", "", "a file or a folder among its outputs; without it all of them")
	cmd.Flags().StringVar(&description, "description", "", "what this version is")
	cmd.Flags().StringToStringVar(&tags, "tag", nil, "a tag, KEY=VALUE; can be repeated")
	a.SuggestFlag(cmd, "run", "runs")
	cmd.RunE = a.With(func(ctx context.Context, c *client.Client, args []string) error {
		if run == "" {
			return app.Usagef("--run says which run made it; what is on this machine is registered by `redoubt model upload`")
		}
		model, err := a.Named(ctx, c, "models", args[0])
		if err != nil {
			return err
		}
		source, err := a.Named(ctx, c, "runs", run)
		if err != nil {
			return err
		}
		v, err := c.Models().CreateModelVersion(ctx, &inferencev1.CreateModelVersionRequest{
			Parent: model, SourceRun: source, SourcePath: from, Description: description, Tags: tags, CreateModel: true, RequestId: uuid.NewString(),
		})
		return a.version(v, err)
	})
	return cmd
}

func (a verbs) upload() *cobra.Command {
	var description string
	var tags map[string]string
	cmd := &cobra.Command{
		Use: "upload MODEL FOLDER|FILE", Short: "Make a folder or a file of this machine the next version of a model", Args: app.Exactly(2),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveDefault
			}
			return a.Suggest("models")(cmd, args, word)
		},
	}
	cmd.Flags().StringVar(&description, "description", "", "what this version is")
	cmd.Flags().StringToStringVar(&tags, "tag", nil, "a tag, KEY=VALUE; can be repeated")
	cmd.RunE = a.With(func(ctx context.Context, c *client.Client, args []string) error {
		model, err := a.Named(ctx, c, "models", args[0])
		if err != nil {
			return err
		}
		bar := a.Bar(args[0])
		defer bar.End()
		v, err := c.UploadModel(ctx, &inferencev1.UploadModelVersionRequest{Parent: model, Description: description, Tags: tags, CreateModel: true}, args[1], bar.Set)
		bar.End()
		return a.version(v, err)
	})
	return cmd
}

func (a verbs) list() *cobra.Command {
	limit := 0
	cmd := &cobra.Command{Use: "list", Short: "The models of the workspace, newest first", Args: app.Exactly(0), RunE: a.With(func(ctx context.Context, c *client.Client, _ []string) error {
		w, err := a.WorkspaceName(ctx, c)
		if err != nil {
			return err
		}
		out := &inferencev1.ListModelsResponse{}
		out.NextPageToken, err = app.Pages(limit, func(token string, size int32) ([]*inferencev1.Model, string, error) {
			r, err := c.Models().ListModels(ctx, &inferencev1.ListModelsRequest{Parent: w, PageSize: size, PageToken: token})
			return r.GetModels(), r.GetNextPageToken(), err
		}, func(m *inferencev1.Model) { out.Models = append(out.Models, m) })
		if err != nil || a.Structured() {
			return a.Answer(out, err)
		}
		rows := make([][]string, 0, len(out.GetModels()))
		for _, m := range out.GetModels() {
			rows = append(rows, []string{show.Last(m.GetName()), number(m.GetLatestVersion()), aliases(m), m.GetDescription(), show.Ago(a.Now(), m.GetCreateTime())})
		}
		return a.Table([]string{"model", "latest", "aliases", "description", "created"}, rows, out.GetNextPageToken())
	})}
	cmd.Flags().IntVar(&limit, "limit", 100, "how many at most; 0 for all")
	return cmd
}

func (a verbs) show() *cobra.Command {
	return &cobra.Command{
		Use: "show MODEL[:VERSION]", Short: "One model, or one version with its files and where it came from", Args: app.Exactly(1), ValidArgsFunction: a.SuggestFirst("models"),
		RunE: a.With(func(ctx context.Context, c *client.Client, args []string) error {
			if isVersion(args[0]) {
				name, err := a.ModelVersion(ctx, c, args[0])
				if err != nil {
					return err
				}
				v, err := c.Models().GetModelVersion(ctx, &inferencev1.GetModelVersionRequest{Name: name})
				if err = a.version(v, err); err != nil || a.Structured() {
					return err
				}
				rows := make([][]string, 0, len(v.GetFiles()))
				for _, f := range v.GetFiles() {
					rows = append(rows, []string{f.GetPath(), show.Bytes(f.GetSize()), fmt.Sprintf("%.16s", fmt.Sprintf("%x", f.GetDigest()))})
				}
				_, _ = fmt.Fprintln(a.Out)
				return a.Table([]string{"file", "size", "sha-256"}, rows, "")
			}
			name, err := a.Named(ctx, c, "models", args[0])
			if err != nil {
				return err
			}
			return a.model(c.Models().GetModel(ctx, &inferencev1.GetModelRequest{Name: name}))
		}),
	}
}

func (a verbs) versions() *cobra.Command {
	limit := 0
	cmd := a.onModel("versions MODEL", "The versions of a model, the last first", app.Exactly(1), func(ctx context.Context, c *client.Client, model string, _ []string) error {
		out := &inferencev1.ListModelVersionsResponse{}
		var err error
		out.NextPageToken, err = app.Pages(limit, func(token string, size int32) ([]*inferencev1.ModelVersion, string, error) {
			r, err := c.Models().ListModelVersions(ctx, &inferencev1.ListModelVersionsRequest{Parent: model, PageSize: size, PageToken: token})
			return r.GetModelVersions(), r.GetNextPageToken(), err
		}, func(v *inferencev1.ModelVersion) { out.ModelVersions = append(out.ModelVersions, v) })
		if err != nil || a.Structured() {
			return a.Answer(out, err)
		}
		rows := make([][]string, 0, len(out.GetModelVersions()))
		for _, v := range out.GetModelVersions() {
			rows = append(rows, []string{number(v.GetVersion()), strings.Join(v.GetAliases(), " "), show.Bytes(v.GetTotalBytes()), show.Last(v.GetSourceRun()), deployed(v), show.Ago(a.Now(), v.GetCreateTime())})
		}
		return a.Table([]string{"version", "aliases", "size", "run", "deployments", "created"}, rows, out.GetNextPageToken())
	})
	cmd.Flags().IntVar(&limit, "limit", 100, "how many at most; 0 for all")
	return cmd
}

func (a verbs) alias() *cobra.Command {
	var remove bool
	cmd := a.onModel("alias MODEL ALIAS [VERSION]", "Make an alias name a version; with --remove it names none", cobra.RangeArgs(2, 3), func(ctx context.Context, c *client.Client, model string, rest []string) error {
		if remove != (len(rest) == 1) {
			return app.Usagef("give the version that the alias is to name, or --remove")
		}
		if remove {
			return a.model(c.Models().DeleteModelAlias(ctx, &inferencev1.DeleteModelAliasRequest{Name: model, Alias: rest[0]}))
		}
		v, err := strconv.ParseInt(rest[1], 10, 64)
		if err != nil || v < 1 {
			return app.Usagef("a version is a number from 1 on, and not %q; `redoubt model versions` lists them", rest[1])
		}
		return a.model(c.Models().SetModelAlias(ctx, &inferencev1.SetModelAliasRequest{Name: model, Alias: rest[0], Version: v}))
	})
	cmd.Flags().BoolVar(&remove, "remove", false, "take the alias away")
	return cmd
}

// tag changes single tags: it reads them, and writes them with the etag of what it read.
func (a verbs) tag() *cobra.Command {
	var remove []string
	cmd := &cobra.Command{
		Use: "tag MODEL[:VERSION] KEY=VALUE…", Short: "Set and remove tags of a model or of a version", Args: cobra.MinimumNArgs(1), ValidArgsFunction: a.SuggestFirst("models"),
		RunE: a.With(func(ctx context.Context, c *client.Client, args []string) error {
			set := make(map[string]string)
			for _, t := range args[1:] {
				k, v, ok := strings.Cut(t, "=")
				if !ok || k == "" {
					return app.Usagef("a tag is written KEY=VALUE, and not %q", t)
				}
				set[k] = v
			}
			if len(set)+len(remove) == 0 {
				return app.Usagef("give tags as KEY=VALUE, or keys with --remove")
			}
			change := func(tags map[string]string) map[string]string {
				out := maps.Clone(tags)
				if out == nil {
					out = make(map[string]string)
				}
				for _, k := range remove {
					delete(out, k)
				}
				maps.Copy(out, set)
				return out
			}
			mask := &fieldmaskpb.FieldMask{Paths: []string{"tags"}}
			if isVersion(args[0]) {
				name, err := a.ModelVersion(ctx, c, args[0])
				if err != nil {
					return err
				}
				v, err := c.Models().GetModelVersion(ctx, &inferencev1.GetModelVersionRequest{Name: name})
				if err != nil {
					return err
				}
				return a.version(c.Models().UpdateModelVersion(ctx, &inferencev1.UpdateModelVersionRequest{
					ModelVersion: &inferencev1.ModelVersionUpdate{Name: v.GetName(), Tags: change(v.GetTags()), Etag: v.GetEtag()}, UpdateMask: mask,
				}))
			}
			name, err := a.Named(ctx, c, "models", args[0])
			if err != nil {
				return err
			}
			m, err := c.Models().GetModel(ctx, &inferencev1.GetModelRequest{Name: name})
			if err != nil {
				return err
			}
			return a.model(c.Models().UpdateModel(ctx, &inferencev1.UpdateModelRequest{
				Model: &inferencev1.ModelUpdate{Name: name, Tags: change(m.GetTags()), Etag: m.GetEtag()}, UpdateMask: mask,
			}))
		}),
	}
	cmd.Flags().StringSliceVar(&remove, "remove", nil, "a key to remove; can be repeated")
	return cmd
}

func (a verbs) describe() *cobra.Command {
	return &cobra.Command{
		Use: "describe MODEL[:VERSION] TEXT", Short: "Say what a model or a version is", Args: app.Exactly(2), ValidArgsFunction: a.SuggestFirst("models"),
		RunE: a.With(func(ctx context.Context, c *client.Client, args []string) error {
			mask := &fieldmaskpb.FieldMask{Paths: []string{"description"}}
			if isVersion(args[0]) {
				name, err := a.ModelVersion(ctx, c, args[0])
				if err != nil {
					return err
				}
				return a.version(c.Models().UpdateModelVersion(ctx, &inferencev1.UpdateModelVersionRequest{
					ModelVersion: &inferencev1.ModelVersionUpdate{Name: name, Description: args[1]}, UpdateMask: mask,
				}))
			}
			name, err := a.Named(ctx, c, "models", args[0])
			if err != nil {
				return err
			}
			return a.model(c.Models().UpdateModel(ctx, &inferencev1.UpdateModelRequest{Model: &inferencev1.ModelUpdate{Name: name, Description: args[1]}, UpdateMask: mask}))
		}),
	}
}

func (a verbs) rename() *cobra.Command {
	return a.onModel("rename MODEL ID", "Give a model another id; one that is deployed keeps its own", app.Exactly(2), func(ctx context.Context, c *client.Client, model string, rest []string) error {
		return a.model(c.Models().RenameModel(ctx, &inferencev1.RenameModelRequest{Name: model, NewModelId: rest[0]}))
	})
}

func (a verbs) download() *cobra.Command {
	dir := ""
	cmd := &cobra.Command{
		Use: "download MODEL[:VERSION] [FILE]", Short: "Fetch the files of a version, or one of them", Args: cobra.RangeArgs(1, 2), ValidArgsFunction: a.SuggestFirst("models"),
		RunE: a.With(func(ctx context.Context, c *client.Client, args []string) error {
			name, err := a.ModelVersion(ctx, c, args[0])
			if err != nil {
				return err
			}
			to, only := dir, ""
			if to == "" {
				to = path.Base(path.Dir(path.Dir(name)))
			}
			if len(args) == 2 {
				only = args[1]
			}
			bar := a.Bar(args[0])
			defer bar.End()
			return c.DownloadModel(ctx, name, to, only, a.Receiving(bar, to))
		}),
	}
	cmd.Flags().StringVarP(&dir, "dir", "d", "", "the folder to write below; without it one named as the model")
	return cmd
}

func (a verbs) remove() *cobra.Command {
	return &cobra.Command{
		Use: "delete MODEL[:VERSION]", Short: "Remove a model with all its versions, or one version; not while it is deployed", Args: app.Exactly(1), ValidArgsFunction: a.SuggestFirst("models"),
		RunE: a.With(func(ctx context.Context, c *client.Client, args []string) error {
			if isVersion(args[0]) {
				name, err := a.ModelVersion(ctx, c, args[0])
				if err != nil {
					return err
				}
				if err := a.Sure("deleting " + args[0]); err != nil {
					return err
				}
				r, err := c.Models().DeleteModelVersion(ctx, &inferencev1.DeleteModelVersionRequest{Name: name})
				return a.Done(r, err, "deleted %s", name)
			}
			name, err := a.Named(ctx, c, "models", args[0])
			if err != nil {
				return err
			}
			if err := a.Sure("deleting the model " + args[0] + " with all its versions"); err != nil {
				return err
			}
			r, err := c.Models().DeleteModel(ctx, &inferencev1.DeleteModelRequest{Name: name})
			return a.Done(r, err, "deleted %s", name)
		}),
	}
}

// onModel is a command about one model.
func (a verbs) onModel(use, short string, args cobra.PositionalArgs, f func(ctx context.Context, c *client.Client, model string, rest []string) error) *cobra.Command {
	return &cobra.Command{Use: use, Short: short, Args: args, ValidArgsFunction: a.SuggestFirst("models"), RunE: a.With(func(ctx context.Context, c *client.Client, args []string) error {
		model, err := a.Named(ctx, c, "models", args[0])
		if err != nil {
			return err
		}
		return f(ctx, c, model, args[1:])
	})}
}

// isVersion reports whether an argument names a version, and not a model.
func isVersion(text string) bool {
	return strings.Contains(text, ":") || strings.Contains(text, "/versions/")
}

func (a verbs) model(m *inferencev1.Model, err error) error {
	if err != nil || a.Structured() {
		return a.Answer(m, err)
	}
	return show.Pairs(a.Out, "name", m.GetName(), "uid", m.GetUid(), "description", m.GetDescription(), "latest version", number(m.GetLatestVersion()), "aliases", aliases(m),
		"tags", show.Map(m.GetTags()), "created", show.Clock(m.GetCreateTime()), "by", m.GetCreatedBy())
}

func (a verbs) version(v *inferencev1.ModelVersion, err error) error {
	if err != nil || a.Structured() {
		return a.Answer(v, err)
	}
	return show.Pairs(a.Out, "name", v.GetName(), "uid", v.GetUid(), "description", v.GetDescription(), "aliases", strings.Join(v.GetAliases(), " "), "size", show.Bytes(v.GetTotalBytes()),
		"digest", fmt.Sprintf("%x", v.GetDigest()), "run", v.GetSourceRun(), "outputs", v.GetSourcePath(), "snapshot", v.GetSourceSnapshot(), "deployments", deployed(v),
		"tags", show.Map(v.GetTags()), "created", show.Clock(v.GetCreateTime()), "by", v.GetCreatedBy())
}

func number(n int64) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatInt(n, 10)
}

// aliases are written champion:3.
func aliases(m *inferencev1.Model) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(m.GetAliases())) {
		out = append(out, k+":"+number(m.GetAliases()[k]))
	}
	return strings.Join(out, " ")
}

// deployed are the deployments that use a version, as people write them.
func deployed(v *inferencev1.ModelVersion) string {
	var out []string
	for _, d := range v.GetDeployments() {
		if _, short, ok := strings.Cut(d, "/endpoints/"); ok {
			d = strings.Replace(short, "/deployments/", "/", 1)
		}
		out = append(out, d)
	}
	return strings.Join(out, " ")
}
