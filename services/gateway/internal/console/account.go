package console

import (
	"net/http"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

const accountPath = Prefix + "account/"

func (c *Console) accountRoutes(mux *http.ServeMux) {
	at := func(*visit) string { return accountPath }
	mux.HandleFunc("GET "+accountPath+"{$}", c.page("account.html", c.account))
	mux.HandleFunc("POST "+accountPath+"end-session", c.act(at, func(v *visit, f form) (outcome, error) {
		_, err := c.accounts.RevokeSession(v.ctx, &identityv1.RevokeSessionRequest{SessionId: f["session"]})
		return outcome{to: accountPath, note: "ended"}, err
	}))
	mux.HandleFunc("POST "+accountPath+"end-others", c.act(at, func(v *visit, f form) (outcome, error) {
		_, err := c.accounts.RevokeOtherSessions(v.ctx, &identityv1.RevokeOtherSessionsRequest{SessionId: f["session"]})
		return outcome{to: accountPath, note: "others"}, err
	}))
	mux.HandleFunc("POST "+accountPath+"password", c.act(at, func(v *visit, f form) (outcome, error) {
		if f["password"] != f["again"] {
			return outcome{}, fault.InvalidArgument("the two new passwords are not the same").Field("again", "not the same")
		}
		_, err := c.accounts.ChangePassword(v.ctx, &identityv1.ChangePasswordRequest{CurrentPassword: f["current"], NewPassword: f["password"]})
		return outcome{to: accountPath, note: "password"}, err
	}))
	mux.HandleFunc("POST "+accountPath+"remove-factor", c.act(at, func(v *visit, f form) (outcome, error) {
		_, err := c.factors.DeleteFactor(v.ctx, &identityv1.DeleteFactorRequest{FactorId: f["factor"]})
		return outcome{to: accountPath, note: "removed"}, err
	}))
	mux.HandleFunc("POST "+accountPath+"recovery-codes", c.act(at, func(v *visit, _ form) (outcome, error) {
		made, err := c.factors.RegenerateRecoveryCodes(v.ctx, &identityv1.RegenerateRecoveryCodesRequest{})
		return outcome{page: "recovery.html", view: view{Title: "Recovery codes", Room: "account", Body: recovery{Codes: made.GetRecoveryCodes()}}}, err
	}))
	mux.HandleFunc("POST "+accountPath+"add-factor", c.act(at, func(v *visit, f form) (outcome, error) {
		made, err := c.factors.EnrolFactor(v.ctx, &identityv1.EnrolFactorRequest{DisplayName: f["name"]})
		return outcome{page: "add-factor.html", view: view{Title: "Add an authenticator app", Room: "account", Body: enrolment{
			Factor: made.GetFactor().GetFactorId(), Secret: made.GetSecret(),
		}}}, err
	}))
	mux.HandleFunc("POST "+accountPath+"prove-factor", c.act(at, c.proveFactor))
}

// recovery is a page of codes that are shown this once.
type recovery struct {
	Codes []string
	// Anew says that all sessions are ended, this one too.
	Anew bool
}

type enrolment struct{ Factor, Secret string }

// proveFactor ends an enrolment. With somebody's first factor all his sessions are over: he signs in again, with it.
func (c *Console) proveFactor(v *visit, f form) (outcome, error) {
	made, err := c.factors.ProveFactor(v.ctx, &identityv1.ProveFactorRequest{FactorId: f["factor"], Code: f["code"]})
	if err != nil || made.GetSession() == nil {
		return outcome{to: accountPath, note: "added"}, err
	}
	// The session that came in their place is not wanted: it is bound to nothing.
	if _, err := c.signIn.SignOut(c.with(v.r, session{token: made.GetSession().GetAccessToken()}), &identityv1.SignOutRequest{}); err != nil {
		c.cfg.Logger.Debug("a session that nobody has goes on until it is over", "error", err)
	}
	return outcome{over: true, page: "recovery.html", view: view{Title: "Recovery codes", Body: recovery{Codes: made.GetRecoveryCodes(), Anew: true}}}, nil
}

// accountPage is what somebody's own account has open.
type accountPage struct {
	Sessions []*identityv1.AccountSession
	Next     string
	// Own is the session that the page is loaded with.
	Own      string
	Factors  []*identityv1.Factor
	Recovery int32
}

func (c *Console) account(v *visit) (view, error) {
	sessions, err := c.accounts.ListSessions(v.ctx, &identityv1.ListSessionsRequest{PageSize: pageSize, PageToken: token(v)})
	if err != nil {
		return view{}, err
	}
	factors, err := c.factors.ListFactors(v.ctx, &identityv1.ListFactorsRequest{})
	if err != nil {
		return view{}, err
	}
	body := accountPage{Sessions: sessions.GetSessions(), Next: sessions.GetNextPageToken(), Own: sessions.GetSessionId(), Recovery: factors.GetRecoveryCodes()}
	for _, f := range factors.GetFactors() {
		if f.GetProved() {
			body.Factors = append(body.Factors, f)
		}
	}
	return view{Title: "My account", Room: "account", Body: body}, nil
}
