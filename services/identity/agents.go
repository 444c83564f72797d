package identity

import (
	"context"
	"crypto/ecdsa"
	"crypto/subtle"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/pkg/svid"
	"github.com/redoubt-ml/redoubt/services/identity/internal/store"
)

const (
	agentJoinLife    = 10 * time.Minute // unless compute asks for another
	maxAgentJoinLife = time.Hour
	maxAction        = 512 // bytes, as in a token
)

// CreateAgentJoin implements AgentService.
func (s *Service) CreateAgentJoin(ctx context.Context, req *identityv1.CreateAgentJoinRequest) (*identityv1.AgentJoin, error) {
	call := rpc.From(ctx)
	life := agentJoinLife
	if d := req.GetTtl(); d != nil {
		if life = d.AsDuration(); !d.IsValid() || life <= 0 || life > maxAgentJoinLife {
			return nil, fault.InvalidArgument("a join token lives for at most %v", maxAgentJoinLife).Field("ttl", "out of bounds")
		}
	}
	for _, a := range req.GetActions() {
		if a == "" || len(a) > maxAction {
			return nil, fault.InvalidArgument("an action has 1 to %d bytes", maxAction).Field("actions", "empty or too long")
		}
	}
	now := s.cfg.Now()
	secret, expire := newSecret(joinSecretPrefix), now.Add(life)
	j := store.Join{
		Kind: store.JoinAgent, Agent: resource.NewUID("agt"), Run: req.GetRunUid(), Workspace: req.GetWorkspaceUid(),
		Submitter: req.GetSubmitter(), Actions: req.GetActions(),
	}
	err := s.cfg.DB.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		if _, err := s.runs(ctx, tx, j.Run, j.Submitter); err != nil {
			return err
		}
		// A run has one join token: whoever asks for another one has lost the answer with the one before.
		came, err := s.store.DropUnusedJoinsOf(ctx, tx, j.Run)
		if err != nil {
			return err
		}
		if came {
			return fault.AlreadyExists("an agent has come for the run already")
		}
		if err := s.store.InsertJoin(ctx, tx, secret, j, now, expire); err != nil {
			return err
		}
		return call.Audit(ctx, tx, "run_uid", j.Run, "workspace_uid", j.Workspace, "subject", j.Submitter, "agent_uid", j.Agent)
	})
	if err != nil {
		return nil, err
	}
	return &identityv1.AgentJoin{JoinToken: secret.RevealString(), ExpireTime: timestamppb.New(expire)}, nil
}

// runs says for whom a run acts, if it may still.
func (s *Service) runs(ctx context.Context, q sqldb.DBTX, run, submitter string) (store.Principal, error) {
	revoked, err := s.store.RunRevoked(ctx, q, run, s.cfg.Now())
	if err != nil {
		return store.Principal{}, err
	}
	if revoked {
		return store.Principal{}, fault.New(codes.FailedPrecondition, faultv1.Reason_RUN_ENDED, "the run has ended")
	}
	return s.acting(ctx, q, submitter)
}

// EnrolAgent implements AgentService (A4).
func (s *Service) EnrolAgent(ctx context.Context, req *identityv1.EnrolAgentRequest) (*identityv1.EnrolAgentResponse, error) {
	call := rpc.From(ctx)
	key, err := svid.CSRKey(req.GetCsr())
	if err != nil {
		return nil, err
	}
	thumbprint := authn.Thumbprint(key)
	secret := redact.FromString(req.GetJoinToken())
	defer secret.Wipe()
	var out *identityv1.EnrolAgentResponse
	err = s.cfg.DB.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		j, ok, err := s.store.UseJoin(ctx, tx, store.JoinAgent, secret, thumbprint, s.cfg.Now())
		if err != nil {
			return err
		}
		if !ok {
			return badJoin()
		}
		p, err := s.runs(ctx, tx, j.Run, j.Submitter)
		if err != nil {
			return err
		}
		// The session of a run token is the agent: its tokens are one family, whichever is the latest.
		token, claims, err := s.mint(ctx, tx, authn.Claims{
			Audience: []string{s.cfg.Issuer}, Subject: p.UID, PrincipalType: principalTypes[p.Kind], ClientID: firstParty,
			SessionID: j.Agent, Confirmation: thumbprint, Run: j.Run, Workspace: j.Workspace, Actions: j.Actions,
		}, s.cfg.RunTokenLife)
		if err != nil {
			return err
		}
		out = &identityv1.EnrolAgentResponse{RunToken: token, ExpireTime: timestamppb.New(claims.Expiry), AgentUid: j.Agent}
		if out.Svid, out.Roots, err = s.runSVID(ctx, tx, key, j.Workspace, j.Run); err != nil {
			return err
		}
		call.Identify(p.UID, principalTypes[p.Kind])
		return call.Audit(ctx, tx, "run_uid", j.Run, "workspace_uid", j.Workspace, "agent_uid", j.Agent, "token", claims.ID)
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

func badJoin() error {
	return fault.New(codes.Unauthenticated, faultv1.Reason_JOIN_TOKEN_INVALID, "the join token is not known, was used by another key, or is over; ask for a new one")
}

// runSVID certifies the key of a run's agent for as long as its token lives. All that it opens is inference's listener for replicas,
// while that expects the run.
func (s *Service) runSVID(ctx context.Context, q sqldb.DBTX, key *ecdsa.PublicKey, workspace, run string) (chain, roots [][]byte, err error) {
	id, err := svid.RunID(s.td, workspace, run)
	if err != nil {
		return nil, nil, err
	}
	a := s.authority.Load()
	// These are not written down: a root is kept for their life after it has signed, which this instance has to know of.
	signs, err := s.store.Signs(ctx, q, a.Pin())
	if err != nil {
		return nil, nil, err
	}
	if !signs {
		return nil, nil, fault.Unavailable("the root of the mesh changes; repeat the call")
	}
	chain, err = a.Sign(key, id, s.cfg.RunTokenLife, s.cfg.Now())
	return chain, bundle(a), err
}

// RenewRunToken implements AgentService. The chain has checked the token that it is called with, and the proof of its key.
func (s *Service) RenewRunToken(ctx context.Context, req *identityv1.RenewRunTokenRequest) (*identityv1.EnrolAgentResponse, error) {
	call := rpc.From(ctx)
	c := call.Claims
	if c == nil || c.Run == "" || c.Confirmation == "" || c.Actor != nil {
		return nil, fault.FailedPrecondition("only a run token is renewed, by the agent that holds its key; sign in again instead")
	}
	var key *ecdsa.PublicKey
	if len(req.GetCsr()) > 0 {
		var err error
		if key, err = svid.CSRKey(req.GetCsr()); err != nil {
			return nil, err
		}
		if subtle.ConstantTimeCompare([]byte(authn.Thumbprint(key)), []byte(c.Confirmation)) != 1 {
			return nil, fault.InvalidArgument("the certificate request is for another key than the token's").Field("csr", "is not of the key that the token is bound to")
		}
	}
	q := s.cfg.DB.Reader()
	if _, err := s.runs(ctx, q, c.Run, c.Subject); err != nil {
		return nil, err
	}
	token, claims, err := s.mint(ctx, q, authn.Claims{
		Audience: []string{s.cfg.Issuer}, Subject: c.Subject, PrincipalType: c.PrincipalType, ClientID: c.ClientID,
		SessionID: c.SessionID, Confirmation: c.Confirmation, Run: c.Run, Workspace: c.Workspace, Actions: c.Actions,
	}, s.cfg.RunTokenLife)
	if err != nil {
		return nil, err
	}
	out := &identityv1.EnrolAgentResponse{RunToken: token, ExpireTime: timestamppb.New(claims.Expiry), AgentUid: c.SessionID}
	if key == nil {
		out.Roots = bundle(s.authority.Load())
	} else if out.Svid, out.Roots, err = s.runSVID(ctx, q, key, c.Workspace, c.Run); err != nil {
		return nil, err
	}
	return out, nil
}
