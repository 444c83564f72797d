package authn

import "slices"

// ErrTooManyActors says that a token went through too many hands to be exchanged once more.
const ErrTooManyActors = cause("too many act for the subject already")

// Descendant is what a token says that is exchanged for this one (RFC 8693): it speaks for the same subject, in the same sign-in and run, for another
// audience, with one more actor, and it knows all the tokens that it descends from. It ends when this one does at the latest. It counts as issued
// when this one was: what revokes all of a subject's tokens up to a moment takes both.
//
// The key that this token is bound to is not the descendant's: who exchanges says which key that is bound to, if any.
//
// Nothing is cut off: a token that does not know all of its ancestors would outlive their revocation. Where there is no room it is ErrTooManyActors.
func (c *Claims) Descendant(audience string, by Actor) (Claims, error) {
	by.Actor = c.Actor
	d := Claims{
		IssuedAt: c.IssuedAt, Expiry: c.Expiry, Audience: []string{audience}, Subject: c.Subject, PrincipalType: c.PrincipalType, ClientID: c.ClientID,
		SessionID: c.SessionID, Scope: c.Scope, AuthTime: c.AuthTime, AMR: c.AMR, ACR: c.ACR, Run: c.Run, Workspace: c.Workspace, Actions: c.Actions,
		HomeIssuer: c.HomeIssuer, HomeSubject: c.HomeSubject, HomeClass: c.HomeClass,
		Actor: &by, Ancestors: append(slices.Clone(c.Ancestors), c.ID),
	}
	if d.Actor.Depth() > MaxActorDepth || len(d.Ancestors) > MaxAncestors {
		return Claims{}, ErrTooManyActors
	}
	return d, nil
}
