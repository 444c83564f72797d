package identity

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/identity/internal/federation"
	"github.com/redoubt-ml/redoubt/services/identity/internal/login"
	"github.com/redoubt-ml/redoubt/services/identity/internal/provider"
	"github.com/redoubt-ml/redoubt/services/identity/internal/store"
)

// homes are the issuers whose people may sign in now.
func (s *Service) homes(ctx context.Context) ([]store.Issuer, error) {
	all, err := s.store.Issuers(ctx, s.cfg.DB.Reader())
	return slices.DeleteFunc(all, func(i store.Issuer) bool { return i.Disabled || !s.admits(i.Class) }), err
}

// guestID is the id of a new guest: random, since whatever he is called elsewhere is his own word.
func guestID(class identityv1.HomeClass) string {
	var bits [10]byte
	_, _ = rand.Read(bits[:]) // never fails
	return homeClasses[class] + "-" + strings.ToLower(base32.StdEncoding.EncodeToString(bits[:]))
}

// homeProof stands where a user of ours has his stored password: what a sign-in that waits for a factor was begun with. ok is false where nobody
// signs in that way any more.
func (s *Service) homeProof(ctx context.Context, q sqldb.DBTX, h store.Home) (proof string, ok bool, err error) {
	i, ok, err := s.store.FindIssuer(ctx, q, h.IssuerID)
	if err != nil || !ok || i.URL != h.URL || i.Class != h.Class || i.Disabled || !s.admits(i.Class) {
		return "", false, err
	}
	return fmt.Sprintf("home %s %d", i.UID, i.Version), true, nil
}

// signsInElsewhere refuses what is about passwords for who has a home.
func signsInElsewhere(p store.Principal) error {
	if p.Home == nil {
		return nil
	}
	return fault.FailedPrecondition("%s signs in at %s and has no password here", p.Name(), p.Home.URL)
}

func homeOf(h *store.Home) *identityv1.Home {
	if h == nil {
		return nil
	}
	return &identityv1.Home{Issuer: "issuers/" + h.IssuerID, IssuerUrl: h.URL, Subject: h.Subject, Class: h.Class, Email: h.Email}
}

// arrive signs in a person whom his issuer has sent: it finds or makes the account, puts his groups right, and asks for a factor where one is
// needed. What the sign-in gives is made by finish.
func (s *Service) arrive(ctx context.Context, i store.Issuer, who federation.Person, finish login.Finish) (asked login.Asked, err error) {
	call, now := rpc.From(ctx), s.cfg.Now()
	call.Detail("home_iss", i.URL)
	call.Detail("home_sub", who.Subject)
	write := s.cfg.DB.Write
	if i.GroupsClaim != "" { // memberships may change
		write = s.secure
	}
	err = write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		asked = login.Asked{}
		// Between the look at the issuer and here it may have been disabled.
		if is, ok, err := s.store.Issuer(ctx, tx, i.UID); err != nil || !ok || is.Version != i.Version || is.Disabled || !s.admits(is.Class) {
			return orElse(err, fault.Aborted("the way you sign in was changed meanwhile; start again"))
		}
		user, err := s.account(ctx, tx, i, who, now)
		if err != nil {
			return err
		}
		call.Identify(user.UID, authn.User)
		if user.Disabled {
			return fault.New(codes.PermissionDenied, faultv1.Reason_ACCOUNT_DISABLED, "the account is disabled; ask an administrator to enable it")
		}
		if who.Session != "" {
			if err := s.store.PutHomeSession(ctx, tx, i.URL, who.Session, user.UID, now.Add(provider.BrowserLife)); err != nil {
				return err
			}
		}
		changed, err := s.mapGroups(ctx, tx, i, user, who.Groups)
		if err != nil {
			return err
		}
		if len(changed) > 0 {
			if err := s.store.Change(ctx, tx, now, nil, changed); err != nil {
				return err
			}
		}
		by := login.Proven{UID: user.UID, Name: user.Name(), At: now, AMR: []string{authn.ByHome}, ACR: authn.ACRHome}
		if !who.AuthTime.IsZero() && who.AuthTime.Before(now) {
			by.At = who.AuthTime
		}
		if i.TrustMFA && who.MFA && !who.AuthTime.IsZero() {
			by.AMR, by.ACR = append(by.AMR, authn.ByTwo), authn.ACRMFA
			return finish(ctx, tx, by)
		}
		proof, ok, err := s.homeProof(ctx, tx, *user.Home)
		if err != nil || !ok {
			return orElse(err, signInFailed())
		}
		var more bool
		if asked, more, err = s.challenge(ctx, tx, user, store.SignIn{Checked: fingerprint(proof), For: forPages}, now); err != nil || more {
			return err
		}
		return finish(ctx, tx, by)
	})
	if fault.Is(err, codes.AlreadyExists) { // his first sign-in, twice at once
		err = fault.Aborted("another sign-in of yours was first; try again")
	}
	if err != nil {
		return login.Asked{}, err
	}
	return asked, nil
}

// left ends the sessions of a person whom his issuer has signed out, all that he has here, and his sign-ins that are under way. When it returns nil,
// everybody honours that. Nobody who is known here is nothing to end.
func (s *Service) left(ctx context.Context, i store.Issuer, who federation.Leaver) error {
	call := rpc.From(ctx)
	call.Detail("home_iss", i.URL)
	call.Detail("home_sub", who.Subject)
	call.Detail("home_sid", who.Session)
	return s.secure(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		now := s.cfg.Now()
		first, err := s.store.UseAssertion(ctx, tx, "foreign-logout "+i.UID, who.TokenID, who.Until)
		if err != nil || !first {
			return orElse(err, fault.FailedPrecondition("the logout token was used"))
		}
		uid, ok, err := s.leaver(ctx, tx, i, who, now)
		if err != nil || !ok {
			return err
		}
		call.Identify(uid, authn.User)
		ended, err := s.endHomeOf(ctx, tx, []string{uid}, now)
		if err != nil {
			return err
		}
		return call.Audit(ctx, tx, "sessions_ended", strconv.Itoa(ended))
	})
}

// leaver finds whom a logout token is about. A session alone is one that an ID token of this issuer named here.
func (s *Service) leaver(ctx context.Context, tx *sqldb.Tx, i store.Issuer, who federation.Leaver, now time.Time) (uid string, ok bool, err error) {
	if who.Subject == "" {
		return s.store.FindHomeSession(ctx, tx, i.URL, who.Session, now)
	}
	user, ok, err := s.store.FindHome(ctx, tx, i.URL, who.Subject)
	return user.UID, ok, err
}

// account finds the user of a home, by issuer and subject alone, and makes him at his first sign-in.
func (s *Service) account(ctx context.Context, tx *sqldb.Tx, i store.Issuer, who federation.Person, now time.Time) (store.Principal, error) {
	h := store.Home{IssuerID: i.ID, URL: i.URL, Subject: who.Subject, Class: i.Class, Email: who.Email}
	name := who.DisplayName
	if name == "" {
		name = homeClasses[i.Class]
	}
	name += " · " + i.DisplayName // he chose what stands before it
	user, ok, err := s.store.FindHome(ctx, tx, i.URL, who.Subject)
	if err != nil {
		return user, err
	}
	if ok {
		if user.Home == nil || user.Home.URL != h.URL || user.Home.Subject != h.Subject {
			return user, fault.Internal(nil, "identity: the home of %s is another's", user.UID)
		}
		if *user.Home != h || user.DisplayName != name {
			user.Home, user.DisplayName = &h, name
			err = s.store.SetPrincipalRecord(ctx, tx, user)
		}
		return user, err
	}
	user = store.Principal{UID: resource.NewUID("usr"), Kind: store.User, ID: guestID(i.Class), DisplayName: name, Version: 1, CreateTime: now, Home: &h}
	if err := s.store.InsertPrincipal(ctx, tx, user); err != nil {
		return user, err
	}
	rpc.From(ctx).Detail("created", user.Name())
	return user, s.store.InsertHome(ctx, tx, user, now)
}

// mapGroups puts a user into the groups that his values map to, and takes him out of those that an earlier sign-in put him into. Memberships that
// somebody gave by hand stay. It gives the groups whose members are others now.
func (s *Service) mapGroups(ctx context.Context, tx *sqldb.Tx, i store.Issuer, user store.Principal, values []string) (changed []string, err error) {
	had, err := s.store.HomeGroups(ctx, tx, user.UID)
	if err != nil {
		return nil, err
	}
	var has []string
	for _, m := range i.Groups {
		if slices.Contains(values, m.Value) && !slices.Contains(has, m.GroupUID) {
			has = append(has, m.GroupUID)
		}
	}
	for _, g := range had {
		if slices.Contains(has, g) {
			continue
		}
		gone, err := s.store.RemoveMember(ctx, tx, g, user.UID)
		if err != nil {
			return nil, err
		}
		if err := s.store.SetHomeGroup(ctx, tx, user.UID, g, false); err != nil {
			return nil, err
		}
		if gone {
			changed = append(changed, g)
		}
	}
	for _, g := range has {
		if slices.Contains(had, g) {
			continue
		}
		if p, ok, err := s.store.Principal(ctx, tx, g); err != nil {
			return nil, err
		} else if !ok || p.Kind != store.Group { // deleted
			continue
		}
		added, err := s.store.AddMember(ctx, tx, g, user)
		if err != nil {
			return nil, err
		}
		if !added { // by hand, before
			continue
		}
		if err := s.store.SetHomeGroup(ctx, tx, user.UID, g, true); err != nil {
			return nil, err
		}
		changed = append(changed, g)
	}
	if len(changed) > 0 {
		rpc.From(ctx).Detail("groups_changed", strings.Join(changed, " "))
	}
	return changed, nil
}
