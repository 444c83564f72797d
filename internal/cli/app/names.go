package app

import (
	"context"
	"strings"

	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/internal/cli/show"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
)

// FirstGroup is the resource group that every installation begins with.
const FirstGroup = "subscriptions/default/resourceGroups/default"

// GroupName is the resource group that is meant: by flag, by context, or the first one.
func (a *App) GroupName(c *client.Client) (string, error) {
	g := a.Group
	if g == "" {
		g = c.Context().ResourceGroup
	}
	if g == "" {
		return FirstGroup, nil
	}
	if s, id, ok := strings.Cut(g, "/"); ok && !strings.Contains(id, "/") {
		g = "subscriptions/" + s + "/resourceGroups/" + id
	}
	n, err := resource.Parse(g)
	if err != nil || n.Kind() != resource.KindResourceGroup {
		return "", Usagef("a resource group is written SUBSCRIPTION/GROUP, or by its full name, and not %q", g)
	}
	return g, nil
}

// WorkspaceName is the workspace that is meant. A bare id is looked for in the resource group that was given, else among all that the
// caller may see.
func (a *App) WorkspaceName(ctx context.Context, c *client.Client) (string, error) {
	w := a.Workspace
	if w == "" {
		w = c.Context().Workspace
	}
	if w == "" {
		return "", Usagef("no workspace is chosen: give one with -w, or choose one for good with `redoubt workspace use NAME`")
	}
	return a.FullWorkspace(ctx, c, w)
}

// FullWorkspace is the workspace that is meant by a bare id or a full name.
func (a *App) FullWorkspace(ctx context.Context, c *client.Client, w string) (string, error) {
	if strings.Contains(w, "/") {
		n, err := resource.Parse(w)
		if err != nil || n.Kind() != resource.KindWorkspace {
			return "", Usagef("%q is not the name of a workspace; `redoubt workspace list` shows them", w)
		}
		return w, nil
	}
	if err := resource.ValidID(w); err != nil {
		return "", err
	}
	if a.Group != "" || c.Context().ResourceGroup != "" {
		g, err := a.GroupName(c)
		return g + "/workspaces/" + w, err
	}
	var found []string
	_, err := Pages(0, func(token string, size int32) ([]*workspacev1.Workspace, string, error) {
		r, err := c.Resources().ListWorkspaces(ctx, &workspacev1.ListWorkspacesRequest{PageSize: size, PageToken: token})
		return r.GetWorkspaces(), r.GetNextPageToken(), err
	}, func(x *workspacev1.Workspace) {
		if show.Last(x.GetName()) == w {
			found = append(found, x.GetName())
		}
	})
	switch {
	case err != nil:
		return "", err
	case len(found) == 0:
		return "", fault.NotFound("there is no workspace %q that you may see; `redoubt workspace list` shows them", w)
	case len(found) > 1:
		return "", Usagef("there are %d workspaces %q: say with -g in which resource group, or give the full name", len(found), w)
	}
	return found[0], nil
}

// Named is a resource of the chosen workspace: a bare id, or a full name.
func (a *App) Named(ctx context.Context, c *client.Client, collection, id string) (string, error) {
	if strings.Contains(id, "/") {
		n, err := resource.Parse(id)
		if err != nil {
			return "", err
		}
		if n.Kind().Collection() != collection {
			return "", Usagef("%q is no name of one of %s", id, collection)
		}
		return id, nil
	}
	w, err := a.WorkspaceName(ctx, c)
	if err != nil {
		return "", err
	}
	n, err := resource.Parse(w)
	if err != nil {
		return "", err
	}
	child, err := n.Child(collection, id)
	return child.String(), err
}

// ModelVersion is a version of a model: MODEL, MODEL:VERSION with a number or an alias, or its full name; without a version the latest.
func (a *App) ModelVersion(ctx context.Context, c *client.Client, text string) (string, error) {
	if strings.Contains(text, "/") {
		n, err := resource.Parse(text)
		if err != nil {
			return "", err
		}
		if n.Kind() != resource.KindModelVersion {
			return "", Usagef("%q is no version of a model: write MODEL:VERSION, with a number or an alias", text)
		}
		return text, nil
	}
	model, version, ok := strings.Cut(text, ":")
	if !ok {
		version = "latest"
	}
	name, err := a.Named(ctx, c, "models", model)
	if err != nil {
		return "", err
	}
	n, err := resource.Parse(name)
	if err != nil {
		return "", err
	}
	child, err := n.Child("versions", version)
	return child.String(), err
}

// Deployment is a deployment: ENDPOINT/DEPLOYMENT, or its full name.
func (a *App) Deployment(ctx context.Context, c *client.Client, text string) (string, error) {
	endpoint, id, ok := strings.Cut(text, "/")
	if !ok {
		return "", Usagef("a deployment is written ENDPOINT/DEPLOYMENT, and not %q", text)
	}
	if strings.Contains(id, "/") {
		n, err := resource.Parse(text)
		if err != nil {
			return "", err
		}
		if n.Kind() != resource.KindDeployment {
			return "", Usagef("%q is not the name of a deployment; write ENDPOINT/DEPLOYMENT", text)
		}
		return text, nil
	}
	name, err := a.Named(ctx, c, "endpoints", endpoint)
	if err != nil {
		return "", err
	}
	n, err := resource.Parse(name)
	if err != nil {
		return "", err
	}
	child, err := n.Child("deployments", id)
	return child.String(), err
}

// Scope is what a role or the activity log is asked about: --scope, else the workspace, else the installation.
func (a *App) Scope(ctx context.Context, c *client.Client, flag string) (string, error) {
	switch {
	case flag != "":
		_, err := resource.Parse(flag)
		return flag, err
	case a.Workspace != "" || c.Context().Workspace != "":
		return a.WorkspaceName(ctx, c)
	case a.Group != "":
		return a.GroupName(c)
	}
	return resource.Root, nil
}

// Principal is how a person writes one: users/ada, or just ada.
func Principal(p string) string {
	if strings.Contains(p, "/") || resource.IsUID(p) {
		return p
	}
	return "users/" + p
}

// pageSize is what is asked for at a time.
const pageSize = 200

// Pages reads pages until there are no more, or limit items were taken; 0 is no limit. It returns the token of what is left.
func Pages[T any](limit int, fetch func(token string, size int32) ([]T, string, error), take func(T)) (string, error) {
	token := ""
	for n := 0; ; {
		size := pageSize
		if limit > 0 {
			size = min(size, limit-n)
		}
		items, next, err := fetch(token, int32(size))
		if err != nil {
			return "", err
		}
		for _, x := range items {
			take(x)
		}
		n += len(items)
		if token = next; token == "" || limit > 0 && n >= limit {
			return token, nil
		}
	}
}
