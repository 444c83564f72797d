package identity

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/identity/internal/factor"
	"github.com/redoubt-ml/redoubt/services/identity/internal/login"
	"github.com/redoubt-ml/redoubt/services/identity/internal/provider"
	"github.com/redoubt-ml/redoubt/services/identity/internal/store"
)

const (
	// freshFor is how long after a sign-in its session changes the user's factors, and how long one that was enrolled can be proved.
	freshFor = 10 * time.Minute
	// maxFactors of a user's are apps: each gives a guesser three more codes that fit. maxKeys are security keys.
	maxFactors = 3
	maxKeys    = 10
)

// ownSession gives the call of a user who came himself, with a session of Redoubt's own clients: never an application's, a service's in his
// name, or a run's. fresh wants a sign-in of the last minutes.
func (s *Service) ownSession(ctx context.Context, fresh bool) (*rpc.Call, error) {
	call := rpc.From(ctx)
	c := call.Claims
	if c == nil || c.SessionID == "" || c.Actor != nil || c.Run != "" || c.PrincipalType != authn.User || c.ClientID != firstParty && !provider.Own(c.ClientID) {
		return nil, fault.FailedPrecondition("only a user's own session has to do with his factors; sign in with `redoubt login`")
	}
	if fresh && s.cfg.Now().Sub(c.AuthTime) > freshFor {
		return nil, stale(fmt.Sprintf("this needs a sign-in of the last %v", freshFor))
	}
	return call, nil
}

// stale asks for a fresh proof (RFC 9470), for what.
func stale(what string) error {
	return fault.New(codes.Unauthenticated, faultv1.Reason_STEP_UP_REQUIRED, "%s: sign in again with `redoubt login` and repeat it", what).With("max_age", strconv.Itoa(int(freshFor/time.Second)))
}

// live reads, in a transaction, the user whose session the call came with, if that is not over meanwhile.
func (s *Service) live(ctx context.Context, tx *sqldb.Tx, call *rpc.Call) (store.Principal, []store.Factor, error) {
	none := store.Principal{}
	over := fault.FailedPrecondition("this session is over; sign in with `redoubt login`")
	if session, ok, err := s.store.FindSession(ctx, tx, call.Claims.SessionID, s.cfg.Now()); err != nil || !ok || session.UID != call.Principal {
		return none, nil, orElse(err, over)
	}
	user, ok, err := s.store.Principal(ctx, tx, call.Principal)
	if err != nil || !ok || user.Disabled {
		return none, nil, orElse(err, over)
	}
	factors, err := s.store.Factors(ctx, tx, user.UID)
	return user, factors, err
}

// enrol makes a factor that is not proved, in place of earlier such ones.
func (s *Service) enrol(ctx context.Context, tx *sqldb.Tx, uid, name string, now time.Time) (store.Factor, error) {
	f := store.Factor{ID: resource.NewUID("fac"), UID: uid, Kind: kindTOTP, Secret: factor.NewTOTP(), Name: name, Created: now}
	if err := s.store.DropUnproved(ctx, tx, uid); err != nil {
		return f, err
	}
	return f, s.store.InsertFactor(ctx, tx, f, now)
}

func (s *Service) factorURI(f store.Factor, user store.Principal) string {
	host := s.cfg.TrustDomain
	if u, err := url.Parse(s.cfg.Issuer); err == nil {
		host = u.Host
	}
	return factor.URI(f.Secret, host, user.ID)
}

func factorOf(f store.Factor) *identityv1.Factor {
	return &identityv1.Factor{FactorId: f.ID, Kind: f.Kind, DisplayName: f.Name, Proved: f.Proved, CreateTime: timestamppb.New(f.Created), UseTime: stamp(f.Using)}
}

func findFactor(factors []store.Factor, id string) (store.Factor, error) {
	i := slices.IndexFunc(factors, func(f store.Factor) bool { return f.ID == id })
	if i < 0 {
		return store.Factor{}, fault.NotFound("you have no factor of this id; `redoubt factor list` shows those that there are").Field("factor_id", "not one of yours")
	}
	return factors[i], nil
}

// EnrolFactor implements FactorService.
func (s *Service) EnrolFactor(ctx context.Context, req *identityv1.EnrolFactorRequest) (*identityv1.EnrolFactorResponse, error) {
	call, err := s.ownSession(ctx, true)
	if err != nil {
		return nil, err
	}
	now := s.cfg.Now()
	var out *identityv1.EnrolFactorResponse
	err = s.cfg.DB.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		user, factors, err := s.live(ctx, tx, call)
		if err != nil {
			return err
		}
		if len(ofKind(factors, kindTOTP)) >= maxFactors {
			return fault.FailedPrecondition("a user has at most %d authenticator apps; remove one first", maxFactors)
		}
		f, err := s.enrol(ctx, tx, user.UID, req.GetDisplayName(), now)
		if err != nil {
			return err
		}
		out = &identityv1.EnrolFactorResponse{Factor: factorOf(f), Secret: factor.Text(f.Secret), Uri: s.factorURI(f, user)}
		return call.Audit(ctx, tx, "factor", f.ID)
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// ProveFactor implements FactorService. After a user's first factor no token is left that was made by his password alone.
func (s *Service) ProveFactor(ctx context.Context, req *identityv1.ProveFactorRequest) (*identityv1.ProveFactorResponse, error) {
	call, err := s.ownSession(ctx, false) // that was asked when it was enrolled
	if err != nil {
		return nil, err
	}
	now := s.cfg.Now()
	var out *identityv1.ProveFactorResponse
	err = s.secure(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		user, factors, err := s.live(ctx, tx, call)
		if err != nil {
			return err
		}
		f, err := findFactor(factors, req.GetFactorId())
		if err != nil {
			return err
		}
		if f.Proved || f.Kind != kindTOTP || now.Sub(f.Created) > freshFor {
			return fault.FailedPrecondition("this factor was proved already, or was enrolled too long ago; `redoubt factor add` enrols another")
		}
		step, ok, err := factor.Match(f.Secret, req.GetCode(), now, 0)
		if err != nil {
			return err
		}
		if !ok {
			return fault.InvalidArgument("the code is not the one that the app shows now; check the clock of the phone, and type the next one").Field("code", "wrong or over")
		}
		if ok, err := s.store.ProveFactor(ctx, tx, user.UID, f.ID, step, now); err != nil || !ok {
			return orElse(err, fault.Aborted("the factor was changed meanwhile; repeat it"))
		}
		f.Proved, f.LastUsed, f.Using = true, step, now
		out = &identityv1.ProveFactorResponse{Factor: factorOf(f)}
		if len(proved(factors)) > 0 {
			return call.Audit(ctx, tx, "factor", f.ID)
		}
		call.Detail("factor", f.ID)
		if out.RecoveryCodes, err = s.firstFactor(ctx, tx, user.UID, now); err != nil {
			return err
		}
		by := login.Proven{UID: user.UID, Name: user.Name(), At: now, AMR: []string{firstBy(user), authn.ByTOTP, authn.ByTwo}, ACR: authn.ACRMFA}
		return s.session(&out.Session)(ctx, tx, by)
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// ListFactors implements FactorService.
func (s *Service) ListFactors(ctx context.Context, _ *identityv1.ListFactorsRequest) (*identityv1.ListFactorsResponse, error) {
	call, err := s.ownSession(ctx, false)
	if err != nil {
		return nil, err
	}
	out := new(identityv1.ListFactorsResponse)
	err = s.cfg.DB.Read(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		_, factors, err := s.live(ctx, tx, call)
		if err != nil {
			return err
		}
		for _, f := range factors {
			out.Factors = append(out.Factors, factorOf(f))
		}
		left, err := s.store.RecoveryCodes(ctx, tx, call.Principal)
		out.RecoveryCodes = int32(left)
		return err
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// DeleteFactor implements FactorService.
func (s *Service) DeleteFactor(ctx context.Context, req *identityv1.DeleteFactorRequest) (*emptypb.Empty, error) {
	call, err := s.ownSession(ctx, true)
	if err != nil {
		return nil, err
	}
	err = s.cfg.DB.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		user, factors, err := s.live(ctx, tx, call)
		if err != nil {
			return err
		}
		f, err := findFactor(factors, req.GetFactorId())
		if err != nil {
			return err
		}
		if f.Proved && len(proved(factors)) == 1 {
			required, err := s.store.RequireMFA(ctx, tx)
			if err != nil {
				return err
			}
			if required {
				return fault.FailedPrecondition("the installation requires a factor, and this is your last; add another first")
			}
			if err := s.store.SetRecoveryCodes(ctx, tx, user.UID, nil); err != nil {
				return err
			}
			if err := s.store.DropSignIns(ctx, tx, user.UID); err != nil {
				return err
			}
		}
		if ok, err := s.store.DeleteFactor(ctx, tx, user.UID, f.ID); err != nil || !ok {
			return orElse(err, fault.Aborted("the factor was changed meanwhile; repeat it"))
		}
		return call.Audit(ctx, tx, "factor", f.ID)
	})
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, nil
}

// RegenerateRecoveryCodes implements FactorService.
func (s *Service) RegenerateRecoveryCodes(ctx context.Context, _ *identityv1.RegenerateRecoveryCodesRequest) (*identityv1.RegenerateRecoveryCodesResponse, error) {
	call, err := s.ownSession(ctx, true)
	if err != nil {
		return nil, err
	}
	out := new(identityv1.RegenerateRecoveryCodesResponse)
	err = s.cfg.DB.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		user, factors, err := s.live(ctx, tx, call)
		if err != nil {
			return err
		}
		if len(proved(factors)) == 0 {
			return fault.FailedPrecondition("recovery codes stand in for a factor, and you have none; add one with `redoubt factor add`")
		}
		if out.RecoveryCodes, err = s.newRecoveryCodes(ctx, tx, user.UID); err != nil {
			return err
		}
		return call.Audit(ctx, tx)
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// ResetFactors implements FactorService.
func (s *Service) ResetFactors(ctx context.Context, req *identityv1.ResetFactorsRequest) (*identityv1.ResetFactorsResponse, error) {
	call := rpc.From(ctx)
	now := s.cfg.Now()
	out := new(identityv1.ResetFactorsResponse)
	err := s.secure(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		p, err := s.find(ctx, tx, req.GetName(), resource.KindUser)
		if err != nil {
			return err
		}
		if p.UID == call.Principal { // it would do without the sign-in that DeleteFactor wants
			return fault.FailedPrecondition("your own factors are removed with `redoubt factor remove`; another administrator can reset them")
		}
		removed, ended, err := s.dropFactors(ctx, tx, p.UID, now)
		if err != nil {
			return err
		}
		out.Removed = int32(removed)
		return call.Audit(ctx, tx, "name", p.Name(), "uid", p.UID, "removed", strconv.Itoa(removed), "sessions_ended", strconv.Itoa(ended))
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// GetSignInPolicy implements FactorService.
func (s *Service) GetSignInPolicy(ctx context.Context, _ *identityv1.GetSignInPolicyRequest) (*identityv1.SignInPolicy, error) {
	on, err := s.store.RequireMFA(ctx, s.cfg.DB.Reader())
	if err != nil {
		return nil, err
	}
	return &identityv1.SignInPolicy{RequireMfa: on}, nil
}

// UpdateSignInPolicy implements FactorService.
func (s *Service) UpdateSignInPolicy(ctx context.Context, req *identityv1.UpdateSignInPolicyRequest) (*identityv1.UpdateSignInPolicyResponse, error) {
	call := rpc.From(ctx)
	now, on := s.cfg.Now(), req.GetRequireMfa()
	var ended []string
	err := s.secure(ctx, func(ctx context.Context, tx *sqldb.Tx) (err error) {
		if err := s.store.SetRequireMFA(ctx, tx, on); err != nil {
			return err
		}
		ended = nil
		if on {
			if ended, err = s.store.EndSessionsBelow(ctx, tx, authn.ACRMFA, now); err != nil {
				return err
			}
			if err := s.revokeSessions(ctx, tx, ended, now); err != nil {
				return err
			}
		}
		return call.Audit(ctx, tx, "require_mfa", strconv.FormatBool(on), "sessions_ended", strconv.Itoa(len(ended)))
	})
	if err != nil {
		return nil, err
	}
	return &identityv1.UpdateSignInPolicyResponse{Policy: &identityv1.SignInPolicy{RequireMfa: on}, SessionsEnded: int32(len(ended))}, nil
}

// newRecoveryCodes puts ten new codes in the place of a user's, and gives them as they are shown.
func (s *Service) newRecoveryCodes(ctx context.Context, tx *sqldb.Tx, uid string) (shown []string, err error) {
	made := factor.NewRecoveryCodes()
	for _, c := range made {
		shown = append(shown, factor.Show(c))
	}
	return shown, s.store.SetRecoveryCodes(ctx, tx, uid, made)
}
