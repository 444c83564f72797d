package main

const (
	answering = "services/identity/challenge.go"
	enrolling = "services/identity/factors.go"
	resetting = "services/identity/reset.go"
	totp      = "services/identity/internal/factor/totp.go"
	asking    = "services/identity/signin.go"
	stepping  = "pkg/rpc/links.go"

	ofFactors = "Factor|Recovery|State|Tries|Require|StepUp|Pages|FirstFactor"
)

// factors are the checks of second factors, of what stands between password and session, and of calls that want a fresh sign-in (A2).
var factors = []mutant{
	{"no factor is asked for", answering, "case len(proved(factors)) > 0:", "case len(proved(factors)) > 1:", ofFactors},
	{"a required factor is not asked for", answering, "case required:", "case required && now.IsZero():", ofFactors},
	{"a state opens another kind of sign-in", answering, "err != nil || !ok || in.For != purpose", "err != nil || !ok", ofFactors},
	{"a disabled user goes on with a sign-in", answering, "|| !ok || user.Disabled {", "|| !ok {", ofFactors},
	{"a state outlives the password", answering, "in.Checked) != 1 {", "in.Checked) > 1 {", ofFactors},
	{"nobody waits after wrong codes", answering, "if wait := until.Sub(now); wait > 0 {", "if wait := until.Sub(now); wait > 1<<60 {", ofFactors},
	{"a state has tries without end", answering, "state, stateTries, now)", "state, 1<<20, now)", ofFactors},
	{"a state is good twice", answering, "if ok, err := s.store.UseSignIn(ctx, tx, state); err != nil || !ok {", "if ok, err := true, error(nil); err != nil || !ok {", ofFactors},
	{"a right code leaves the count", answering, "if err := s.store.ForgetFactorTries(ctx, tx, in.UID); err != nil {", "if err := error(nil); err != nil {", ofFactors},
	{"sessions by a password outlive the first factor", answering, "ended, err := s.endSessions(ctx, tx, uid, nil, now)", "ended, err := 0, error(nil)", ofFactors},
	{"whoever enrols in a sign-in does it beside a factor", answering, "if !in.Enrol || len(proved(factors)) > 0 {", "if len(factors) > 1<<20 {", ofFactors},
	{"a sign-in proves another one's enrolment", answering, `in.Factor == "" || f.ID != in.Factor || req.GetFactor()`, "req.GetFactor()", ofFactors},
	{"a service changes factors in somebody's name", enrolling, "|| c.Actor != nil ||", "||", ofFactors},
	{"an old sign-in changes factors", enrolling, "if fresh && s.cfg.Now()", "if !fresh && s.cfg.Now()", ofFactors},
	{"factors without number", enrolling, "if len(ofKind(factors, kindTOTP)) >= maxFactors {", "if len(factors) >= 1<<20 {", ofFactors},
	{"a factor that was enrolled long ago is proved", enrolling, "if f.Proved || f.Kind != kindTOTP || now.Sub(f.Created) > freshFor {", "if f.Proved {", ofFactors},
	{"the last factor goes where one is required", enrolling, "			if required {", "			if required && f.Created.IsZero() {", ofFactors},
	{"recovery codes outlive the last factor", enrolling, "s.store.SetRecoveryCodes(ctx, tx, user.UID, nil)", "error(nil)", ofFactors},
	{"an administrator resets his own factors", enrolling, "if p.UID == call.Principal {", `if p.UID == "" {`, ofFactors},
	{"sessions outlive a reset", resetting, "ended, err = s.endSessions(ctx, tx, uid, nil, now)", "ended, err = now.Nanosecond(), error(nil)", ofFactors},
	{"sessions by a password outlive require_mfa", enrolling, "s.revokeSessions(ctx, tx, ended, now)", "error(nil)", ofFactors},
	{"a code works twice", totp, "if s <= used {", "if s < 0 {", "^Test"},
	{"a code of long ago works", totp, "s := here - drift;", "s := here - 2*drift;", "^Test"},
	{"a code that is to come works", totp, "s <= here+drift;", "s <= here+2*drift;", "^Test"},
	{"a password that was changed meanwhile signs in", asking, "err != nil || stored != checked", "err != nil || stored == \"\"", "SignIn|Password"},
	{"an old sign-in is fresh", stepping, "c.start.Sub(claims.AuthTime) > time.Duration(r.GetStepUp())*time.Second:", "c.start.IsZero():", "^TestStepUp"},
	{"a sign-in of no time is fresh", stepping, "case claims.AuthTime.IsZero() || claims.Run != \"\":", "case claims.Run != \"\":", "^TestStepUp"},
	{"any way to sign in is a second factor", stepping, "case claims.ACR != authn.ACRMFA ||", "case", "^TestStepUp"},
	{"programs destroy", stepping, "case claims.PrincipalType != authn.User && r.GetStepUpPrograms():", "case claims.PrincipalType != authn.User:", "^TestStepUp"},
	{"a role at a subscription asks nobody", stepping, "if r.GetStepUp() == 0 || len(r.GetStepUpAt()) > 0 &&", "if r.GetStepUp() == 0 || len(r.GetStepUpAt()) > 0 ||", "^TestStepUp"},
}
