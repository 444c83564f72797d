package console

import (
	"context"
	"net/http"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// enterPage asks before it uses the code: programs that look at links ahead of people must not use it up.
func (c *Console) enterPage(w http.ResponseWriter, r *http.Request) {
	c.show(w, http.StatusOK, "enter.html", view{Title: "Sign in", Body: r.URL.Query().Get("code")})
}

// enter turns a code of the command line into a session.
func (c *Console) enter(w http.ResponseWriter, r *http.Request) {
	f, err := formOf(w, r)
	if err != nil {
		c.refused(w, r, "", err)
		return
	}
	ctx, cancel := context.WithTimeout(c.cfg.Context(r), callTime)
	defer cancel()
	joined, err := c.signIn.RedeemSignInCode(ctx, &identityv1.RedeemSignInCodeRequest{Code: f["code"]})
	if err != nil {
		c.refused(w, r, "", err)
		return
	}
	http.SetCookie(w, &http.Cookie{
		Name: cookieName, Value: joined.GetAccessToken(), Path: "/", Secure: true, HttpOnly: true, SameSite: http.SameSiteStrictMode,
		Expires: joined.GetExpireTime().AsTime(),
	})
	http.Redirect(w, r, Prefix, http.StatusSeeOther)
}

// setPasswordPage is where somebody who was given a code sets his password. The code is typed, so that it stands in no URL.
func (c *Console) setPasswordPage(w http.ResponseWriter, _ *http.Request) {
	c.show(w, http.StatusOK, "set-password.html", view{Title: "Set your password"})
}

func (c *Console) setPassword(w http.ResponseWriter, r *http.Request) {
	const at = Prefix + "set-password"
	f, err := formOf(w, r)
	if err == nil && f["password"] != f["again"] {
		err = fault.InvalidArgument("the two passwords are not the same; nothing was changed")
	}
	if err != nil {
		c.refusal(w, r, "", at, err)
		return
	}
	ctx, cancel := context.WithTimeout(c.cfg.Context(r), callTime)
	defer cancel()
	done, err := c.directory.RedeemUserCode(ctx, &identityv1.RedeemUserCodeRequest{Code: f["code"], NewPassword: f["password"]})
	if err != nil {
		c.refusal(w, r, "", at, err)
		return
	}
	c.show(w, http.StatusOK, "password-set.html", view{Title: "Your password is set", Body: last(done.GetPrincipal()), Next: ""})
}
