package console

import (
	"net/http"
	"strings"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

const groupsPath = Prefix + "groups/"

var groupActions = []string{"identity/groups/write", "identity/groups/delete"}

func groupName(v *visit) string { return "groups/" + v.r.PathValue("id") }

func (c *Console) groupRoutes(mux *http.ServeMux) {
	all := func(*visit) string { return groupsPath }
	one := func(v *visit) string { return groupsPath + v.r.PathValue("id") }
	mux.HandleFunc("GET "+groupsPath+"{$}", c.page("groups.html", c.groupList))
	mux.HandleFunc("GET "+groupsPath+"{id}", c.page("group.html", c.group))
	mux.HandleFunc("POST "+groupsPath+"{$}", c.act(all, func(v *visit, f form) (outcome, error) {
		g, err := c.directory.CreateGroup(v.ctx, &identityv1.CreateGroupRequest{GroupId: f["id"], DisplayName: f["display_name"]})
		return outcome{to: groupsPath + last(g.GetName()), note: "made"}, err
	}))
	mux.HandleFunc("POST "+groupsPath+"{id}/add", c.act(one, func(v *visit, f form) (outcome, error) {
		uid, err := c.uidOf(v, f["member"])
		if err != nil {
			return outcome{}, err
		}
		_, err = c.directory.AddGroupMember(v.ctx, &identityv1.AddGroupMemberRequest{Name: groupName(v), Member: uid})
		return outcome{to: one(v), note: "added"}, err
	}))
	mux.HandleFunc("POST "+groupsPath+"{id}/remove", c.act(one, func(v *visit, f form) (outcome, error) {
		_, err := c.directory.RemoveGroupMember(v.ctx, &identityv1.RemoveGroupMemberRequest{Name: groupName(v), Member: f["member"]})
		return outcome{to: one(v), note: "removed"}, err
	}))
	mux.HandleFunc("POST "+groupsPath+"{id}/delete", c.act(one, func(v *visit, _ form) (outcome, error) {
		_, err := c.directory.DeleteGroup(v.ctx, &identityv1.DeleteGroupRequest{Name: groupName(v)})
		return outcome{to: groupsPath, note: "deleted"}, err
	}))
}

// uidOf finds whom somebody means who types a name. One without a kind is a user's.
func (c *Console) uidOf(v *visit, typed string) (string, error) {
	name := strings.TrimSpace(typed)
	kind, _, ok := strings.Cut(name, "/")
	switch {
	case name == "":
		return "", fault.InvalidArgument("whom? Type the name of a user, groups/… or servicePrincipals/…").Field("member", "is missing")
	case !ok:
		name, kind = "users/"+name, "users"
	}
	switch kind {
	case "users":
		u, err := c.directory.GetUser(v.ctx, &identityv1.GetUserRequest{Name: name})
		return u.GetUid(), err
	case "groups":
		g, err := c.directory.GetGroup(v.ctx, &identityv1.GetGroupRequest{Name: name})
		return g.GetUid(), err
	case "servicePrincipals":
		p, err := c.directory.GetServicePrincipal(v.ctx, &identityv1.GetServicePrincipalRequest{Name: name})
		return p.GetUid(), err
	}
	return "", fault.InvalidArgument("a member is users/…, groups/… or servicePrincipals/…").Field("member", "is of no kind that can be one")
}

func (c *Console) groupList(v *visit) (view, error) {
	groups, err := c.directory.ListGroups(v.ctx, &identityv1.ListGroupsRequest{PageSize: pageSize, PageToken: token(v)})
	if err != nil {
		return view{}, err
	}
	may, err := c.may(v, groupActions[0])
	return view{Title: "Groups", Room: "groups", May: may, Body: groups}, err
}

// linked is a member with the page that tells more of it, if there is one.
type linked struct {
	*identityv1.GroupMember
	Link string
}

func (c *Console) group(v *visit) (view, error) {
	g, err := c.directory.GetGroup(v.ctx, &identityv1.GetGroupRequest{Name: groupName(v)})
	if err != nil {
		return view{}, err
	}
	members, err := c.accounts.ListGroupMembers(v.ctx, &identityv1.ListGroupMembersRequest{Name: groupName(v), PageSize: pageSize, PageToken: token(v)})
	if err != nil {
		return view{}, err
	}
	may, err := c.may(v, groupActions...)
	body := struct {
		Group   *identityv1.Group
		Members []linked
		Here    string
		Next    string
	}{Group: g, Here: groupsPath + last(g.GetName()), Next: members.GetNextPageToken()}
	for _, m := range members.GetMembers() {
		l := linked{GroupMember: m}
		switch m.GetType() {
		case identityv1.PrincipalType_PRINCIPAL_TYPE_USER:
			l.Link = usersPath + last(m.GetName())
		case identityv1.PrincipalType_PRINCIPAL_TYPE_GROUP:
			l.Link = groupsPath + last(m.GetName())
		case identityv1.PrincipalType_PRINCIPAL_TYPE_SERVICE_PRINCIPAL:
			l.Link = programsPath + last(m.GetName())
		}
		body.Members = append(body.Members, l)
	}
	return view{Title: g.GetName(), Room: "groups", May: may, Body: body}, err
}
