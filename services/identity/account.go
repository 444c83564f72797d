package identity

import (
	"context"
	"encoding/binary"
	"strconv"
	"time"

	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/identity/internal/store"
)

// ListSessions implements AccountService.
func (s *Service) ListSessions(ctx context.Context, req *identityv1.ListSessionsRequest) (*identityv1.ListSessionsResponse, error) {
	call, err := s.ownSession(ctx, false)
	if err != nil {
		return nil, err
	}
	n, err := resource.PageSize(req.GetPageSize(), defaultPage, largestPage)
	if err != nil {
		return nil, err
	}
	query := "sessions of " + call.Principal
	var before store.Cursor
	if t := req.GetPageToken(); t != "" {
		raw, err := s.box.openPage(ctx, query, t)
		if err != nil {
			return nil, err
		}
		if len(raw) <= 8 {
			return nil, badPage(nil)
		}
		before = store.Cursor{CreateTime: time.UnixMicro(int64(binary.BigEndian.Uint64(raw))), UID: string(raw[8:])}
	}
	out := &identityv1.ListSessionsResponse{SessionId: call.Claims.SessionID}
	err = s.cfg.DB.Read(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		open, err := s.store.OpenSessions(ctx, tx, call.Principal, s.cfg.Now(), before, n+1)
		if err != nil {
			return err
		}
		if len(open) > n {
			open = open[:n]
			last := open[n-1]
			if out.NextPageToken, err = s.box.sealPage(ctx, query, append(binary.BigEndian.AppendUint64(nil, uint64(last.Created.UnixMicro())), last.SID...)); err != nil {
				return err
			}
		}
		mine, err := s.kept(ctx, tx, call)
		if err != nil {
			return err
		}
		for _, o := range open {
			a, err := s.accountSession(ctx, tx, o)
			if err != nil {
				return err
			}
			a.Current = mine[o.SID]
			out.Sessions = append(out.Sessions, a)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// kept are the session that a call came with, and the browser that it was given in.
func (s *Service) kept(ctx context.Context, tx *sqldb.Tx, call *rpc.Call) (map[string]bool, error) {
	sid := call.Claims.SessionID
	out := map[string]bool{sid: true}
	g, ok, err := s.store.Grant(ctx, tx, sid, s.cfg.Now())
	if ok {
		out[g.BrowserSID] = true
	}
	return out, err
}

func (s *Service) accountSession(ctx context.Context, tx *sqldb.Tx, o store.Open) (*identityv1.AccountSession, error) {
	out := &identityv1.AccountSession{
		SessionId: o.SID, Kind: identityv1.AccountSession_KIND_DIRECT, CreateTime: timestamppb.New(o.Created), RefreshTime: stamp(o.Refreshed),
		ExpireTime: timestamppb.New(o.Expire), AuthTime: stamp(o.AuthTime), Amr: o.AMR,
	}
	switch {
	case o.Browser:
		out.Kind = identityv1.AccountSession_KIND_BROWSER
	case o.Grant != nil:
		name, err := s.provider.ClientName(ctx, tx, o.Grant.ClientID)
		if err != nil {
			return nil, err
		}
		out.Kind = identityv1.AccountSession_KIND_GRANT
		out.ClientId, out.ClientName, out.Scope = o.Grant.ClientID, name, o.Grant.Scope
		out.KeyBound, out.BrowserSessionId = o.Grant.JKT != "", o.Grant.BrowserSID
	}
	return out, nil
}

// RevokeSession implements AccountService. One that is over, and one of somebody else's, are the same: there is none.
func (s *Service) RevokeSession(ctx context.Context, req *identityv1.RevokeSessionRequest) (*emptypb.Empty, error) {
	call, err := s.ownSession(ctx, false)
	if err != nil {
		return nil, err
	}
	err = s.secure(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		now := s.cfg.Now()
		session, ok, err := s.store.FindSession(ctx, tx, req.GetSessionId(), now)
		if err != nil || !ok || session.UID != call.Principal {
			return orElse(err, fault.NotFound("you have no session of this id that is not over").Field("session_id", "not one of yours"))
		}
		sids, err := s.store.EndBrowser(ctx, tx, req.GetSessionId()) // of what is no browser, itself alone
		if err != nil {
			return err
		}
		if err := s.revokeSessions(ctx, tx, sids, now); err != nil {
			return err
		}
		return call.Audit(ctx, tx, "session", req.GetSessionId(), "sessions_ended", strconv.Itoa(len(sids)))
	})
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, nil
}

// RevokeOtherSessions implements AccountService.
func (s *Service) RevokeOtherSessions(ctx context.Context, req *identityv1.RevokeOtherSessionsRequest) (*identityv1.RevokeOtherSessionsResponse, error) {
	call, err := s.ownSession(ctx, false)
	if err != nil {
		return nil, err
	}
	if req.GetSessionId() != call.Claims.SessionID {
		return nil, fault.FailedPrecondition("the session that stays is not the one that this is called with; list them again").Field("session_id", "is not this session")
	}
	var sids []string
	err = s.secure(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		// Who was thrown out himself meanwhile throws nobody out.
		if _, _, err := s.live(ctx, tx, call); err != nil {
			return err
		}
		mine, err := s.kept(ctx, tx, call)
		if err != nil {
			return err
		}
		var kept []string
		for sid := range mine {
			kept = append(kept, sid)
		}
		now := s.cfg.Now()
		if sids, err = s.store.EndSessionsBut(ctx, tx, call.Principal, kept, now); err != nil {
			return err
		}
		if err := s.revokeSessions(ctx, tx, sids, now); err != nil {
			return err
		}
		return call.Audit(ctx, tx, "session", call.Claims.SessionID, "sessions_ended", strconv.Itoa(len(sids)))
	})
	if err != nil {
		return nil, err
	}
	return &identityv1.RevokeOtherSessionsResponse{Ended: int32(len(sids))}, nil
}

// DescribeUser implements AccountService.
func (s *Service) DescribeUser(ctx context.Context, req *identityv1.DescribeUserRequest) (*identityv1.UserDescription, error) {
	var out *identityv1.UserDescription
	err := s.cfg.DB.Read(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		p, err := s.find(ctx, tx, req.GetName(), resource.KindUser)
		if err != nil {
			return err
		}
		out = &identityv1.UserDescription{User: user(p)}
		groups, err := s.store.GroupsWith(ctx, tx, p.UID)
		if err != nil {
			return err
		}
		for _, uid := range groups {
			g, ok, err := s.store.Principal(ctx, tx, uid)
			if err != nil {
				return err
			}
			if ok {
				out.Groups = append(out.Groups, group(g, nil))
			}
		}
		factors, err := s.store.Factors(ctx, tx, p.UID)
		if err != nil {
			return err
		}
		for _, f := range proved(factors) {
			out.Factors = append(out.Factors, factorOf(f))
		}
		codes, err := s.store.RecoveryCodes(ctx, tx, p.UID)
		if err != nil {
			return err
		}
		sessions, err := s.store.CountSessions(ctx, tx, p.UID, s.cfg.Now())
		if err != nil {
			return err
		}
		out.RecoveryCodes, out.Sessions = int32(codes), int32(sessions)
		_, out.HasPassword, err = s.store.Password(ctx, tx, p.UID)
		return err
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// ListGroupMembers implements AccountService.
func (s *Service) ListGroupMembers(ctx context.Context, req *identityv1.ListGroupMembersRequest) (*identityv1.ListGroupMembersResponse, error) {
	n, err := resource.PageSize(req.GetPageSize(), defaultPage, largestPage)
	if err != nil {
		return nil, err
	}
	out := new(identityv1.ListGroupMembersResponse)
	err = s.cfg.DB.Read(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		g, err := s.find(ctx, tx, req.GetName(), resource.KindGroup)
		if err != nil {
			return err
		}
		query, after := "members of "+g.UID, ""
		if t := req.GetPageToken(); t != "" {
			raw, err := s.box.openPage(ctx, query, t)
			if err != nil {
				return err
			}
			after = string(raw)
		}
		uids, err := s.store.MembersAfter(ctx, tx, g.UID, after, n+1)
		if err != nil {
			return err
		}
		if len(uids) > n {
			uids = uids[:n]
			if out.NextPageToken, err = s.box.sealPage(ctx, query, []byte(uids[n-1])); err != nil {
				return err
			}
		}
		for _, uid := range uids {
			p, ok, err := s.store.Principal(ctx, tx, uid)
			if err != nil {
				return err
			}
			if ok {
				out.Members = append(out.Members, &identityv1.GroupMember{Uid: p.UID, Name: p.Name(), Type: p.Kind, DisplayName: p.DisplayName, Disabled: p.Disabled})
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}
