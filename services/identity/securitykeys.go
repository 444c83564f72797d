package identity

import (
	"context"
	"encoding/json"
	"strconv"
	"time"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/identity/internal/factor"
	"github.com/redoubt-ml/redoubt/services/identity/internal/login"
	"github.com/redoubt-ml/redoubt/services/identity/internal/store"
)

// wrongKey is the one answer for whatever a security key's answer fails by.
func wrongKey() error {
	return fault.New(codes.Unauthenticated, faultv1.Reason_SIGN_IN_FAILED, "the security key's answer does not count; try again")
}

// keysOf are a user's security keys, in the order of the factors that they are.
func keysOf(user store.Principal, factors []store.Factor) (of factor.KeyUser, keys []store.Factor, err error) {
	of = factor.KeyUser{UID: user.UID, Name: user.ID}
	keys = ofKind(factors, kindWebAuthn)
	for _, f := range keys {
		var k factor.Key
		if err := json.Unmarshal(f.Secret.Reveal(), &k); err != nil {
			return of, nil, fault.Wrap(err, codes.DataLoss, faultv1.Reason_DATA_DAMAGED, "a stored security key is damaged")
		}
		k.Count = uint32(f.LastUsed)
		of.Keys = append(of.Keys, k)
	}
	return of, keys, nil
}

// askKey asks a security key anew in the sign-in of a state, in place of what it was asked before: one that he has, or, where one is enrolled, a new one.
// "" says that none can be asked.
func (s *Service) askKey(ctx context.Context, state string) (options string, err error) {
	if s.webauthn == nil {
		return "", nil
	}
	secret, now := redact.FromString(state), s.cfg.Now()
	defer secret.Wipe()
	err = s.cfg.DB.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		in, user, _, err := s.openState(ctx, tx, secret, forPages, now)
		if err != nil {
			return err
		}
		factors, err := s.store.Factors(ctx, tx, user.UID)
		if err != nil {
			return err
		}
		of, keys, err := keysOf(user, factors)
		switch {
		case err != nil:
			return err
		case in.Enrol:
			options, in.Asked, err = s.webauthn.Create(of)
		case len(keys) == 0:
			return nil
		default:
			options, in.Asked, err = s.webauthn.Ask(of)
		}
		if err != nil {
			return err
		}
		return s.store.ChangeSignIn(ctx, tx, secret, in, now)
	})
	if err != nil {
		return "", err
	}
	return options, nil
}

// useKey takes the answer of a security key. A count that does not rise is refused, and stands in the record of the call: there may be two of that key.
func (s *Service) useKey(ctx context.Context, tx *sqldb.Tx, user store.Principal, asked []byte, answer string, now time.Time) (by []string, err error) {
	if s.webauthn == nil {
		return nil, wrongKey()
	}
	factors, err := s.store.Factors(ctx, tx, user.UID)
	if err != nil {
		return nil, err
	}
	of, keys, err := keysOf(user, factors)
	if err != nil {
		return nil, err
	}
	got, ok := s.webauthn.Asserted(of, asked, answer)
	if !ok {
		return nil, wrongKey()
	}
	f, key, call := keys[got.Key], of.Keys[got.Key], rpc.From(ctx)
	call.Detail("factor", f.ID)
	if key.Verifies && !got.Verified { // it may be in other hands
		return nil, wrongKey()
	}
	// Between the look and here another sign-in may have raised the count.
	rose := !got.Back
	if rose {
		if rose, err = s.store.UseFactor(ctx, tx, user.UID, f.ID, int64(got.Count), now); err != nil {
			return nil, err
		}
	}
	if !rose {
		call.Detail("key_count", "not above the last")
		call.Detail("counts", strconv.FormatUint(uint64(got.Count), 10)+" after "+strconv.FormatUint(uint64(key.Count), 10))
		return nil, wrongKey()
	}
	return provedBy(key), nil
}

// provedBy says how a key proves its user.
func provedBy(k factor.Key) []string {
	if k.Synced {
		return []string{authn.BySoftware, authn.ByPresence}
	}
	return []string{authn.ByHardware, authn.ByPresence}
}

// addKey makes a factor of the key that answered, in place of whatever the user had enrolled and not proved.
func (s *Service) addKey(ctx context.Context, tx *sqldb.Tx, user store.Principal, asked []byte, name, answer string, now time.Time) (by []string, err error) {
	if s.webauthn == nil {
		return nil, wrongKey()
	}
	factors, err := s.store.Factors(ctx, tx, user.UID)
	if err != nil {
		return nil, err
	}
	of, keys, err := keysOf(user, factors)
	if err != nil {
		return nil, err
	}
	if len(keys) >= maxKeys {
		return nil, fault.FailedPrecondition("a user has at most %d security keys; remove one first", maxKeys)
	}
	key, ok := s.webauthn.Created(of, asked, answer)
	if !ok {
		return nil, wrongKey()
	}
	record, err := json.Marshal(key)
	if err != nil {
		return nil, fault.Internal(err, "a security key could not be encoded")
	}
	f := store.Factor{ID: resource.NewUID("fac"), UID: user.UID, Kind: kindWebAuthn, Secret: redact.New(record), Name: name, Created: now}
	if err := s.store.DropUnproved(ctx, tx, user.UID); err != nil {
		return nil, err
	}
	if ok, err := s.store.InsertKey(ctx, tx, f, key.ID, key.Count, now); err != nil || !ok {
		return nil, orElse(err, fault.New(codes.Unauthenticated, faultv1.Reason_SIGN_IN_FAILED, "this security key is registered already"))
	}
	rpc.From(ctx).Detail("factor", f.ID)
	return provedBy(key), nil
}

// ofBrowser is who is signed in at a browser, if that was long enough ago for nothing: his factors are changed by a sign-in of the last minutes, by a factor
// where he has one.
func (s *Service) ofBrowser(ctx context.Context, tx *sqldb.Tx, sid string, now time.Time) (user store.Principal, factors []store.Factor, ok bool, err error) {
	b, ok, err := s.store.Browser(ctx, tx, sid, now)
	if err != nil || !ok || now.Sub(b.AuthTime) > freshFor {
		return user, nil, false, err
	}
	if user, ok, err = s.store.Principal(ctx, tx, b.UID); err != nil || !ok || user.Disabled {
		return user, nil, false, err
	}
	if factors, err = s.store.Factors(ctx, tx, user.UID); err != nil {
		return user, nil, false, err
	}
	return user, factors, len(proved(factors)) == 0 || b.ACR == authn.ACRMFA, nil
}

// beginKey gives a state in which a further key of a browser's user can be registered, what the key is asked, "" where none can be, and the factors that
// he has. ok is false where he has to sign in first.
func (s *Service) beginKey(ctx context.Context, sid string) (state, options string, factors []store.Factor, ok bool, err error) {
	now := s.cfg.Now()
	err = s.cfg.DB.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		var user store.Principal
		if user, factors, ok, err = s.ofBrowser(ctx, tx, sid, now); err != nil || !ok {
			return err
		}
		rpc.From(ctx).Identify(user.UID, authn.User)
		var stored string
		if user.Home != nil {
			stored, ok, err = s.homeProof(ctx, tx, *user.Home)
		} else {
			stored, ok, err = s.store.Password(ctx, tx, user.UID)
		}
		if err != nil || !ok {
			return err
		}
		of, keys, err := keysOf(user, factors)
		if err != nil || s.webauthn == nil || len(keys) >= maxKeys {
			return err
		}
		in := store.SignIn{UID: user.UID, Checked: fingerprint(stored), For: forKeys}
		if options, in.Asked, err = s.webauthn.Create(of); err != nil {
			return err
		}
		secret := newSecret(statePrefix)
		state = secret.RevealString()
		return s.store.InsertSignIn(ctx, tx, secret, in, now, now.Add(stateLife))
	})
	if err != nil {
		return "", "", nil, false, err
	}
	return state, options, proved(factors), ok, nil
}

// addKeyOfBrowser registers the key that answered in a state of beginKey's. With a user's first factor all his sessions end, that of the browser too:
// finish makes another, and recovery are his codes.
func (s *Service) addKeyOfBrowser(ctx context.Context, sid, state, name, answer string, finish login.Finish) (recovery []string, err error) {
	secret, now := redact.FromString(state), s.cfg.Now()
	defer secret.Wipe()
	in, _, err := s.countTry(ctx, secret, forKeys, kindWebAuthn, now)
	if err != nil {
		return nil, err
	}
	err = s.secure(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		recovery = nil
		if _, _, _, err := s.openState(ctx, tx, secret, forKeys, now); err != nil {
			return err
		}
		user, factors, ok, err := s.ofBrowser(ctx, tx, sid, now)
		if err != nil || !ok || user.UID != in.UID {
			return orElse(err, stateOver())
		}
		by, err := s.addKey(ctx, tx, user, in.Asked, name, answer, now)
		if err != nil {
			return err
		}
		if ok, err := s.store.UseSignIn(ctx, tx, secret); err != nil || !ok {
			return orElse(err, stateOver())
		}
		if err := s.store.ForgetFactorTries(ctx, tx, user.UID); err != nil {
			return err
		}
		if len(proved(factors)) > 0 {
			return rpc.From(ctx).Audit(ctx, tx)
		}
		if recovery, err = s.firstFactor(ctx, tx, user.UID, now); err != nil {
			return err
		}
		amr := append(append([]string{firstBy(user)}, by...), authn.ByTwo)
		return finish(ctx, tx, login.Proven{UID: user.UID, Name: user.Name(), At: now, AMR: amr, ACR: authn.ACRMFA})
	})
	if err != nil {
		return nil, err
	}
	return recovery, nil
}
