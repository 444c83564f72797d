package tenancy

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/internal/cli/app"
	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/internal/cli/show"
)

func (a verbs) roles() *cobra.Command {
	list := &cobra.Command{Use: "list", Short: "The roles that can be given", Args: app.Exactly(0), RunE: a.With(func(ctx context.Context, c *client.Client, _ []string) error {
		r, err := c.Access().ListRoleDefinitions(ctx, &workspacev1.ListRoleDefinitionsRequest{})
		if err != nil || a.Structured() {
			return a.Answer(r, err)
		}
		var rows [][]string
		for _, d := range r.GetRoleDefinitions() {
			rows = append(rows, []string{show.Last(d.GetName()), d.GetDescription(), strings.Join(d.GetActions(), " "), strings.Join(d.GetDataActions(), " ")})
		}
		return a.Table([]string{"role", "what it is", "actions", "data actions"}, rows, "")
	})}

	var explainScope string
	var data bool
	explain := &cobra.Command{
		Use: "explain ACTION", Short: "Whether you may do something, and which assignment lets you", Args: app.Exactly(1),
		RunE: a.With(func(ctx context.Context, c *client.Client, args []string) error {
			scope, err := a.Scope(ctx, c, explainScope)
			if err != nil {
				return err
			}
			r, err := c.Access().Explain(ctx, &workspacev1.ExplainRequest{Scope: scope, Action: args[0], Data: data})
			if err != nil || a.Structured() {
				return a.Answer(r, err)
			}
			verdict := "no"
			if r.GetAllowed() {
				verdict = "yes"
			}
			if err := show.Pairs(a.Out, "allowed", verdict, "why", r.GetExplanation(), "scope", scope, "action", args[0]); err != nil {
				return err
			}
			if len(r.GetAssignments()) == 0 {
				return nil
			}
			return a.assignments(r.GetAssignments())
		}),
	}
	explain.Flags().StringVar(&explainScope, "scope", "", "the resource; without it the workspace, else the installation")
	explain.Flags().BoolVar(&data, "data", false, "the action is a data action")
	return app.Noun("role", "Who may do what", list, explain, a.roleAssignments())
}

func (a verbs) roleAssignments() *cobra.Command {
	var scope, role, who string
	create := &cobra.Command{Use: "create --role ROLE --principal NAME", Short: "Give a principal a role at a scope and below", Args: app.Exactly(0), RunE: a.With(func(ctx context.Context, c *client.Client, _ []string) error {
		if role == "" || who == "" {
			return app.Usagef("--role and --principal say what is given to whom")
		}
		at, err := a.Scope(ctx, c, scope)
		if err != nil {
			return err
		}
		if !strings.Contains(role, "/") {
			role = "roleDefinitions/" + strings.ToLower(role)
		}
		r, err := c.Access().CreateRoleAssignment(ctx, &workspacev1.CreateRoleAssignmentRequest{Scope: at, Role: role, Principal: app.Principal(who)})
		if err != nil || a.Structured() {
			return a.Answer(r, err)
		}
		return a.assignments([]*workspacev1.RoleAssignment{r})
	})}
	create.Flags().StringVar(&role, "role", "", "owner, contributor, reader or another of `redoubt role list`")
	create.Flags().StringVar(&who, "principal", "", "a user's name, groups/NAME, servicePrincipals/NAME or a uid")
	create.Flags().StringVar(&scope, "scope", "", "the resource; without it the workspace, else the installation")

	var listScope string
	var inherited bool
	list := &cobra.Command{Use: "list", Short: "What is given at a scope", Args: app.Exactly(0), RunE: a.With(func(ctx context.Context, c *client.Client, _ []string) error {
		at, err := a.Scope(ctx, c, listScope)
		if err != nil {
			return err
		}
		out := &workspacev1.ListRoleAssignmentsResponse{}
		_, err = app.Pages(0, func(token string, size int32) ([]*workspacev1.RoleAssignment, string, error) {
			r, err := c.Access().ListRoleAssignments(ctx, &workspacev1.ListRoleAssignmentsRequest{Scope: at, Inherited: inherited, PageSize: size, PageToken: token})
			return r.GetRoleAssignments(), r.GetNextPageToken(), err
		}, func(x *workspacev1.RoleAssignment) { out.RoleAssignments = append(out.RoleAssignments, x) })
		if err != nil || a.Structured() {
			return a.Answer(out, err)
		}
		return a.assignments(out.GetRoleAssignments())
	})}
	list.Flags().StringVar(&listScope, "scope", "", "the resource; without it the workspace, else the installation")
	list.Flags().BoolVar(&inherited, "inherited", false, "what reaches it from above as well")

	var deleteScope string
	remove := &cobra.Command{Use: "delete UID", Short: "Take a role away", Args: app.Exactly(1), RunE: a.With(func(ctx context.Context, c *client.Client, args []string) error {
		at, err := a.Scope(ctx, c, deleteScope)
		if err != nil {
			return err
		}
		r, err := c.Access().DeleteRoleAssignment(ctx, &workspacev1.DeleteRoleAssignmentRequest{Scope: at, Uid: args[0]})
		return a.Done(r, err, "taken away: %s at %s", args[0], at)
	})}
	remove.Flags().StringVar(&deleteScope, "scope", "", "the resource that it stands at; without it the workspace, else the installation")
	return app.Noun("assignment", "Roles that were given", create, list, remove)
}

func (a verbs) assignments(list []*workspacev1.RoleAssignment) error {
	rows := make([][]string, 0, len(list))
	for _, x := range list {
		who := x.GetPrincipalName()
		if who == "" {
			who = x.GetPrincipal()
		}
		rows = append(rows, []string{show.Last(x.GetRole()), who, x.GetScope(), show.Ago(a.Now(), x.GetCreateTime()), x.GetUid()})
	}
	return a.Table([]string{"role", "principal", "scope", "given", "uid"}, rows, "")
}
