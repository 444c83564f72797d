package flow

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"strings"
	"time"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
)

// State is an Endpoint with what is worked out once. It is not changed.
type State struct {
	*Endpoint
	own, others credentialIndex
	total       int // of the percentages of Traffic
}

func newState(e *Endpoint) *State {
	x := &State{Endpoint: e, own: index(e.Credentials), others: index(e.Others)}
	for _, share := range e.Traffic {
		x.total += max(share.Percent, 0)
	}
	return x
}

// credentialIndex finds by the first bytes of the hash, so that an endpoint with thousands of tokens answers as fast as one with two keys. What
// decides is the comparison of the whole, in constant time.
type credentialIndex map[uint64][]*Credential

func index(list []Credential) credentialIndex {
	m := make(credentialIndex, len(list))
	for i := range list {
		k := binary.LittleEndian.Uint64(list[i].Hash[:])
		m[k] = append(m[k], &list[i])
	}
	return m
}

func (m credentialIndex) find(hash *[32]byte) *Credential {
	var found *Credential
	for _, c := range m[binary.LittleEndian.Uint64(hash[:])] {
		if subtle.ConstantTimeCompare(c.Hash[:], hash[:]) == 1 {
			found = c
		}
	}
	return found
}

// maxCredential is longer than any credential of ours. What is longer still is wrong without being looked at.
const maxCredential = 512

// Presented is the credential that a request came with.
type Presented struct {
	hash [32]byte
	any  bool
}

// Present reads the Authorization headers of a request.
func Present(headers []string) (Presented, *Refusal) {
	if len(headers) > 1 {
		return Presented{}, BadRequest("Authorization was sent %d times; send it once", len(headers))
	}
	if len(headers) == 0 {
		return Presented{}, nil
	}
	scheme, credential, ok := strings.Cut(headers[0], " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") || credential == "" || len(credential) > maxCredential {
		return Presented{}, nil
	}
	return Presented{hash: sha256.Sum256([]byte(credential)), any: true}, nil
}

// Caller is who a credential stands for.
type Caller struct{ Label, Principal string }

// Admit decides whether p opens the endpoint. e is nil where there is none: then all the same is done, and refused.
func Admit(e *State, p *Presented, now time.Time) (Caller, *Refusal) {
	if e == nil {
		e = &State{Endpoint: &Endpoint{Auth: inferencev1.Endpoint_AUTH_KEY}}
	}
	switch e.Auth {
	case inferencev1.Endpoint_AUTH_NONE:
		return Caller{Label: "none"}, nil
	case inferencev1.Endpoint_AUTH_KEY, inferencev1.Endpoint_AUTH_TOKEN:
	default:
		return Caller{}, unknownCredential()
	}
	own, other := e.own.find(&p.hash), e.others.find(&p.hash)
	switch {
	case !p.any:
		return Caller{}, unknownCredential()
	case own != nil && (own.Expires.IsZero() || now.Before(own.Expires)):
		return Caller{Label: own.Label, Principal: own.Principal}, nil
	case own != nil:
		return Caller{}, Refuse(401, codes.Unauthenticated, faultv1.Reason_TOKEN_EXPIRED, "the token's time is over: have a new one issued")
	case other != nil && e.Auth == inferencev1.Endpoint_AUTH_KEY:
		return Caller{}, Refuse(401, codes.Unauthenticated, faultv1.Reason_ENDPOINT_CREDENTIAL_INVALID, "this endpoint takes a key at present, and no tokens")
	case other != nil:
		return Caller{}, Refuse(401, codes.Unauthenticated, faultv1.Reason_ENDPOINT_CREDENTIAL_INVALID, "this endpoint takes a token at present, and no keys")
	}
	return Caller{}, unknownCredential()
}

// unknownCredential is the one answer to whoever has no right credential, whether the endpoint exists or not.
func unknownCredential() *Refusal {
	return Refuse(401, codes.Unauthenticated, faultv1.Reason_ENDPOINT_CREDENTIAL_INVALID,
		"there is no such endpoint, or this is no credential of it: send \"Authorization: Bearer\" with a key or a token of the endpoint")
}
