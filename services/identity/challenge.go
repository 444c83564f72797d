package identity

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/identity/internal/factor"
	"github.com/redoubt-ml/redoubt/services/identity/internal/login"
	"github.com/redoubt-ml/redoubt/services/identity/internal/provider"
	"github.com/redoubt-ml/redoubt/services/identity/internal/store"
)

const (
	statePrefix = "rds_"
	stateLife   = 5 * time.Minute
	stateTries  = 5

	// After so many wrong factors of a user, whatever sign-ins they are of, each further try waits twice as long as the one before.
	freeTries   = 5
	firstWait   = time.Second
	longestWait = 15 * time.Minute
)

// What a sign-in is to give. A state of one does not give the other.
const (
	forSession = "session"
	forPages   = "pages"
	forKeys    = "keys" // a further security key, of who is signed in
)

// The kinds of factor, as the contract names them.
const (
	kindTOTP     = store.TOTP
	kindWebAuthn = store.WebAuthn
	kindRecovery = "recovery_code"
)

// signInOver is the metadata key of a refusal after which a sign-in begins anew.
const signInOver = provider.SignInOver

// stateOver is the one answer for a state that never was, was used up or is over, and for a user who is another one since.
func stateOver() error {
	return fault.New(codes.Unauthenticated, faultv1.Reason_SIGN_IN_FAILED, "this sign-in is not known or is over; start again").With(signInOver, "true")
}

func wrongFactor() error {
	return fault.New(codes.Unauthenticated, faultv1.Reason_SIGN_IN_FAILED, "the code is wrong, or was used already; an authenticator app shows another within 30 s")
}

// fingerprint names a stored password hash.
func fingerprint(phc string) []byte {
	sum := sha256.Sum256([]byte(phc))
	return sum[:]
}

func proved(factors []store.Factor) (out []store.Factor) {
	for _, f := range factors {
		if f.Proved {
			out = append(out, f)
		}
	}
	return out
}

// ofKind are the factors of a kind that count.
func ofKind(factors []store.Factor, kind string) []store.Factor {
	return slices.DeleteFunc(proved(factors), func(f store.Factor) bool { return f.Kind != kind })
}

// challenge asks for a factor in the transaction of a sign-in whose password was right. more is false where nothing more is needed. Who has
// none and signs in on a page enrols one there and then.
func (s *Service) challenge(ctx context.Context, tx *sqldb.Tx, user store.Principal, in store.SignIn, now time.Time) (asked login.Asked, more bool, err error) {
	in.UID = user.UID
	factors, err := s.store.Factors(ctx, tx, in.UID)
	if err != nil {
		return asked, false, err
	}
	required, err := s.store.RequireMFA(ctx, tx)
	if err != nil {
		return asked, false, err
	}
	c := new(identityv1.Challenge)
	switch {
	case len(proved(factors)) > 0:
		for _, kind := range []string{kindWebAuthn, kindTOTP} {
			if len(ofKind(factors, kind)) > 0 {
				c.Factors = append(c.Factors, kind)
			}
		}
		left, err := s.store.RecoveryCodes(ctx, tx, in.UID)
		if err != nil {
			return asked, false, err
		}
		if left > 0 {
			c.Factors = append(c.Factors, kindRecovery)
		}
	case required:
		c.Enrol, in.Enrol = true, true
		if in.For == forPages {
			f, err := s.enrol(ctx, tx, user.UID, "", now)
			if err != nil {
				return asked, false, err
			}
			in.Factor, c.Factors = f.ID, []string{f.Kind}
			if s.webauthn != nil {
				c.Factors = append(c.Factors, kindWebAuthn)
			}
			asked.Secret, asked.URI = factor.Text(f.Secret), s.factorURI(f, user)
		}
	default:
		return asked, false, nil
	}
	state, expire := newSecret(statePrefix), now.Add(stateLife)
	if err := s.store.InsertSignIn(ctx, tx, state, in, now, expire); err != nil {
		return asked, false, err
	}
	c.State, c.ExpireTime = state.RevealString(), timestamppb.New(expire)
	asks := strings.Join(c.GetFactors(), " ")
	if c.GetEnrol() {
		asks = "enrolment"
	}
	asked.Challenge = c
	return asked, true, rpc.From(ctx).Audit(ctx, tx, "asked_for", asks)
}

// openState finds the sign-in of a state, if it may still be continued: the user is enabled, and his password the one that was checked.
func (s *Service) openState(ctx context.Context, tx *sqldb.Tx, state redact.Secret, purpose string, now time.Time) (in store.SignIn, user store.Principal, tries int, err error) {
	in, tries, ok, err := s.store.FindSignIn(ctx, tx, state, now)
	if err != nil || !ok || in.For != purpose {
		return in, user, 0, orElse(err, stateOver())
	}
	user, ok, err = s.store.Principal(ctx, tx, in.UID)
	if err != nil || !ok || user.Disabled {
		return in, user, 0, orElse(err, stateOver())
	}
	var stored string
	if user.Home != nil {
		stored, ok, err = s.homeProof(ctx, tx, *user.Home)
	} else {
		stored, ok, err = s.store.Password(ctx, tx, in.UID)
	}
	if err != nil || !ok || subtle.ConstantTimeCompare(fingerprint(stored), in.Checked) != 1 {
		return in, user, 0, orElse(err, stateOver())
	}
	return in, user, tries, nil
}

// countTry counts a try at a state and at its user before it is made, so that no restart, no other instance and no new sign-in gives more
// of them. What it refuses is not counted. last says that the state has no further one. What a security key was asked is taken out: it is answered
// once, well or badly.
func (s *Service) countTry(ctx context.Context, state redact.Secret, purpose, kind string, now time.Time) (in store.SignIn, last bool, err error) {
	call := rpc.From(ctx)
	err = s.cfg.DB.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		var tries int
		if in, _, tries, err = s.openState(ctx, tx, state, purpose, now); err != nil {
			return err
		}
		call.Identify(in.UID, authn.User)
		if err := s.countUserTry(ctx, tx, in.UID, now); err != nil { // the transaction fails, and with it the count
			return err
		}
		last = tries+1 >= stateTries
		if ok, err := s.store.TrySignIn(ctx, tx, state, stateTries, now); err != nil || !ok {
			return orElse(err, stateOver())
		}
		if kind != kindWebAuthn || len(in.Asked) == 0 {
			return nil
		}
		rest := in
		rest.Asked = nil
		return s.store.ChangeSignIn(ctx, tx, state, rest, now)
	})
	return in, last, err
}

// countUserTry counts a try of a user's, and refuses it while he has to wait for earlier ones.
func (s *Service) countUserTry(ctx context.Context, tx *sqldb.Tx, uid string, now time.Time) error {
	failed, until, err := s.store.CountFactorTry(ctx, tx, uid)
	if err != nil {
		return err
	}
	if wait := until.Sub(now); wait > 0 {
		return fault.New(codes.ResourceExhausted, faultv1.Reason_RATE_LIMITED, "too many wrong codes; wait %v and try again", max(wait.Round(time.Second), time.Second)).Retry(wait)
	}
	over := failed - freeTries
	if over < 0 {
		return nil
	}
	wait := longestWait
	if over < 20 {
		wait = min(wait, firstWait<<over)
	}
	return s.store.SetFactorWait(ctx, tx, uid, now.Add(wait))
}

// ContinueSignIn implements SignInService.
func (s *Service) ContinueSignIn(ctx context.Context, req *identityv1.ContinueSignInRequest) (*identityv1.SignInResponse, error) {
	var session *identityv1.Session
	recovery, err := s.continueSignIn(ctx, req, forSession, s.session(&session))
	out, err := signInResponse(session, nil, err)
	if out != nil {
		out.RecoveryCodes = recovery
	}
	return out, err
}

// continueSignIn answers a challenge of signIn, with the same finish. recovery are the codes of a user whose first factor this was.
func (s *Service) continueSignIn(ctx context.Context, req *identityv1.ContinueSignInRequest, purpose string, finish login.Finish) (recovery []string, err error) {
	state, now := redact.FromString(req.GetState()), s.cfg.Now()
	defer state.Wipe()
	in, last, err := s.countTry(ctx, state, purpose, req.GetFactor(), now)
	if err != nil {
		return nil, err
	}
	write := s.cfg.DB.Write
	if in.Enrol { // it ends what there was by a password alone
		write = s.secure
	}
	err = write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		recovery = nil
		// Between the count and here all of it may have changed.
		again, user, _, err := s.openState(ctx, tx, state, purpose, now)
		if err != nil {
			return err
		}
		again.Asked = in.Asked
		var by []string
		if in.Enrol {
			by, err = s.proveEnrolled(ctx, tx, again, user, req, now)
		} else {
			by, err = s.useFactor(ctx, tx, user, req.GetFactor(), req.GetResponse(), again.Asked, now)
		}
		if err != nil {
			return err
		}
		if ok, err := s.store.UseSignIn(ctx, tx, state); err != nil || !ok {
			return orElse(err, stateOver())
		}
		if err := s.store.ForgetFactorTries(ctx, tx, in.UID); err != nil {
			return err
		}
		if in.Enrol {
			if recovery, err = s.firstFactor(ctx, tx, in.UID, now); err != nil {
				return err
			}
		}
		return finish(ctx, tx, login.Proven{UID: user.UID, Name: user.Name(), At: now, AMR: slices.Concat([]string{firstBy(user)}, by, []string{authn.ByTwo}), ACR: authn.ACRMFA})
	})
	if last && fault.ReasonOf(err) == faultv1.Reason_SIGN_IN_FAILED {
		return nil, fault.New(codes.Unauthenticated, faultv1.Reason_SIGN_IN_FAILED, "the code is wrong, for the %dth time; start again with the password", stateTries).With(signInOver, "true")
	}
	return recovery, err
}

// firstBy is what a user proves himself with before a factor.
func firstBy(user store.Principal) string {
	if user.Home != nil {
		return authn.ByHome
	}
	return authn.ByPassword
}

// useFactor uses up what a user proves himself with, and says how he did (RFC 8176). asked is what a security key was asked, if one was.
func (s *Service) useFactor(ctx context.Context, tx *sqldb.Tx, user store.Principal, kind, response string, asked []byte, now time.Time) (by []string, err error) {
	call, uid := rpc.From(ctx), user.UID
	switch kind {
	case kindTOTP:
		factors, err := s.store.Factors(ctx, tx, uid)
		if err != nil {
			return nil, err
		}
		for _, f := range ofKind(factors, kindTOTP) {
			step, ok, err := factor.Match(f.Secret, response, now, f.LastUsed)
			if err != nil {
				return nil, err
			}
			if !ok {
				continue
			}
			if first, err := s.store.UseFactor(ctx, tx, uid, f.ID, step, now); err != nil || !first {
				return nil, orElse(err, wrongFactor())
			}
			call.Detail("factor", f.ID)
			return []string{authn.ByTOTP}, nil
		}
	case kindWebAuthn:
		return s.useKey(ctx, tx, user, asked, response, now)
	case kindRecovery:
		code, ok := factor.Recovery(response)
		if !ok {
			break
		}
		defer code.Wipe()
		// It has 100 random bits and is found by its digest, so the time of the look-up tells nothing of it.
		if ok, err = s.store.UseRecoveryCode(ctx, tx, uid, code); err != nil || !ok {
			return nil, orElse(err, wrongFactor())
		}
		left, err := s.store.RecoveryCodes(ctx, tx, uid)
		call.Detail("recovery_codes_left", strconv.Itoa(left))
		return []string{authn.ByRecovery}, err
	}
	return nil, wrongFactor()
}

// proveEnrolled proves the factor that was enrolled in a sign-in, or makes one of the security key that answered.
func (s *Service) proveEnrolled(ctx context.Context, tx *sqldb.Tx, in store.SignIn, user store.Principal, req *identityv1.ContinueSignInRequest, now time.Time) ([]string, error) {
	factors, err := s.store.Factors(ctx, tx, in.UID)
	if err != nil {
		return nil, err
	}
	if len(proved(factors)) > 0 { // another sign-in was first
		return nil, stateOver()
	}
	if req.GetFactor() == kindWebAuthn {
		return s.addKey(ctx, tx, user, in.Asked, "", req.GetResponse(), now)
	}
	for _, f := range factors {
		if in.Factor == "" || f.ID != in.Factor || req.GetFactor() != f.Kind {
			continue
		}
		step, ok, err := factor.Match(f.Secret, req.GetResponse(), now, 0)
		if err != nil || !ok {
			return nil, orElse(err, wrongFactor())
		}
		rpc.From(ctx).Detail("factor", f.ID)
		if ok, err := s.store.ProveFactor(ctx, tx, in.UID, f.ID, step, now); err != nil || !ok {
			return nil, orElse(err, wrongFactor())
		}
		return []string{authn.ByTOTP}, nil
	}
	return nil, fault.New(codes.Unauthenticated, faultv1.Reason_FACTOR_REQUIRED, "this installation wants a second factor, and you have none yet: EnrolSignInFactor makes one; `redoubt login` leads through it")
}

// firstFactor is what comes with a user's first factor: recovery codes, and the end of whatever he had by a password alone.
func (s *Service) firstFactor(ctx context.Context, tx *sqldb.Tx, uid string, now time.Time) ([]string, error) {
	shown, err := s.newRecoveryCodes(ctx, tx, uid)
	if err != nil {
		return nil, err
	}
	if err := s.store.DropSignIns(ctx, tx, uid); err != nil {
		return nil, err
	}
	ended, err := s.endSessions(ctx, tx, uid, nil, now)
	rpc.From(ctx).Detail("sessions_ended", strconv.Itoa(ended))
	return shown, err
}

// EnrolSignInFactor implements SignInService.
func (s *Service) EnrolSignInFactor(ctx context.Context, req *identityv1.EnrolSignInFactorRequest) (*identityv1.EnrolSignInFactorResponse, error) {
	call := rpc.From(ctx)
	state, now := redact.FromString(req.GetState()), s.cfg.Now()
	defer state.Wipe()
	var out *identityv1.EnrolSignInFactorResponse
	err := s.cfg.DB.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		in, user, _, err := s.openState(ctx, tx, state, forSession, now)
		if err != nil {
			return err
		}
		call.Identify(user.UID, authn.User)
		factors, err := s.store.Factors(ctx, tx, user.UID)
		if err != nil {
			return err
		}
		if !in.Enrol || len(proved(factors)) > 0 {
			return fault.FailedPrecondition("this sign-in asks for a factor that you have; sign in with it, and add another after that")
		}
		f, err := s.enrol(ctx, tx, user.UID, "", now)
		if err != nil {
			return err
		}
		in.Factor = f.ID
		if err := s.store.ChangeSignIn(ctx, tx, state, in, now); err != nil {
			return err
		}
		out = &identityv1.EnrolSignInFactorResponse{Kind: f.Kind, Secret: factor.Text(f.Secret), Uri: s.factorURI(f, user)}
		return call.Audit(ctx, tx, "factor", f.ID)
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}
