package console

import (
	"net/http"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
)

const usersPath = Prefix + "users/"

// userActions are what the room of users has buttons for.
var userActions = []string{"identity/users/write", "identity/users/delete", "identity/users/setPassword", "identity/users/resetFactors"}

func userName(v *visit) string { return "users/" + v.r.PathValue("id") }

func (c *Console) userRoutes(mux *http.ServeMux) {
	all := func(*visit) string { return usersPath }
	one := func(v *visit) string { return usersPath + v.r.PathValue("id") }
	mux.HandleFunc("GET "+usersPath+"{$}", c.page("users.html", c.userList))
	mux.HandleFunc("GET "+usersPath+"{id}", c.page("user.html", c.user))
	mux.HandleFunc("POST "+usersPath+"{$}", c.act(all, func(v *visit, f form) (outcome, error) {
		u, err := c.directory.CreateUser(v.ctx, &identityv1.CreateUserRequest{UserId: f["id"], DisplayName: f["display_name"]})
		return outcome{to: usersPath + last(u.GetName()), note: "made"}, err
	}))
	// A code is for somebody who has no password yet, or has lost it; he sets one himself.
	mux.HandleFunc("POST "+usersPath+"{id}/code", c.act(one, func(v *visit, _ form) (outcome, error) {
		code, err := c.directory.CreateUserCode(v.ctx, &identityv1.CreateUserCodeRequest{Name: userName(v)})
		return outcome{page: "user-code.html", view: view{Title: "A code for " + userName(v), Room: "users", Body: struct {
			Code *identityv1.UserCode
			Back string
			At   string
		}{code, one(v), c.cfg.PublicURL + Prefix + "set-password"}}}, err
	}))
	mux.HandleFunc("POST "+usersPath+"{id}/disable", c.act(one, func(v *visit, _ form) (outcome, error) {
		_, err := c.directory.SetUserDisabled(v.ctx, &identityv1.SetUserDisabledRequest{Name: userName(v), Disabled: true})
		return outcome{to: one(v), note: "disabled"}, err
	}))
	mux.HandleFunc("POST "+usersPath+"{id}/enable", c.act(one, func(v *visit, _ form) (outcome, error) {
		_, err := c.directory.SetUserDisabled(v.ctx, &identityv1.SetUserDisabledRequest{Name: userName(v)})
		return outcome{to: one(v), note: "enabled"}, err
	}))
	mux.HandleFunc("POST "+usersPath+"{id}/reset-factors", c.act(one, func(v *visit, _ form) (outcome, error) {
		_, err := c.factors.ResetFactors(v.ctx, &identityv1.ResetFactorsRequest{Name: userName(v)})
		return outcome{to: one(v), note: "reset"}, err
	}))
	mux.HandleFunc("POST "+usersPath+"{id}/delete", c.act(one, func(v *visit, _ form) (outcome, error) {
		_, err := c.directory.DeleteUser(v.ctx, &identityv1.DeleteUserRequest{Name: userName(v)})
		return outcome{to: usersPath, note: "deleted"}, err
	}))
}

func (c *Console) userList(v *visit) (view, error) {
	users, err := c.directory.ListUsers(v.ctx, &identityv1.ListUsersRequest{PageSize: pageSize, PageToken: token(v)})
	if err != nil {
		return view{}, err
	}
	may, err := c.may(v, userActions[0])
	return view{Title: "Users", Room: "users", May: may, Body: users}, err
}

func (c *Console) user(v *visit) (view, error) {
	about, err := c.accounts.DescribeUser(v.ctx, &identityv1.DescribeUserRequest{Name: userName(v)})
	if err != nil {
		return view{}, err
	}
	may, err := c.may(v, userActions...)
	return view{Title: about.GetUser().GetName(), Room: "users", May: may, Body: struct {
		About *identityv1.UserDescription
		Here  string
	}{about, usersPath + last(about.GetUser().GetName())}}, err
}
