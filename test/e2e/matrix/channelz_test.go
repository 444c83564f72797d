package matrix

import (
	"context"
	"strings"
	"testing"
	"time"

	channelzpb "google.golang.org/grpc/channelz/grpc_channelz_v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoregistry"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/internal/node"
	"github.com/redoubt-ml/redoubt/pkg/authz"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
)

// channelz asks every service for the state of its connections, as those who may, who have no right to, and who are nobody. It is a contract
// of others, and no caller comes to it but with a certificate of the mesh.
func (f *fixture) channelz(t *testing.T, cells *[]cell, all *score) {
	table, err := node.Rules()
	must(t, err)
	requests := map[string]proto.Message{
		"GetTopChannels": &channelzpb.GetTopChannelsRequest{}, "GetServers": &channelzpb.GetServersRequest{}, "GetServer": &channelzpb.GetServerRequest{ServerId: 1},
		"GetServerSockets": &channelzpb.GetServerSocketsRequest{ServerId: 1}, "GetChannel": &channelzpb.GetChannelRequest{ChannelId: 1},
		"GetSubchannel": &channelzpb.GetSubchannelRequest{SubchannelId: 1}, "GetSocket": &channelzpb.GetSocketRequest{SocketId: 1},
	}
	methods := channelzpb.File_grpc_channelz_v1_channelz_proto.Services().ByName("Channelz").Methods()
	if methods.Len() != len(requests) {
		t.Fatalf("channelz has %d methods, and %d are asked", methods.Len(), len(requests))
	}
	for i := range methods.Len() {
		d := methods.Get(i)
		r, known := table.Lookup("/grpc.channelz.v1.Channelz/" + string(d.Name()))
		if !known {
			t.Fatalf("%s has no rule", d.Name())
		}
		output, err := protoregistry.GlobalTypes.FindMessageByName(d.Output().FullName())
		must(t, err)
		for _, service := range node.Services {
			m := method{Method: r, service: service, short: "channelz/" + string(d.Name()), output: output}
			t.Run(service+"/"+string(d.Name()), func(t *testing.T) { row{f, m, spec{}, cells, all}.channelz(t, one(requests[string(d.Name())])) })
		}
	}
	t.Run("seen", f.connectionsAreSeen)
}

// channelz asks one service one method.
func (r row) channelz(t *testing.T, req request) {
	f, action := r.f, r.m.Rule.GetAction()
	operator := func(uid string, auth func(*testing.T, string) []string) caller {
		return f.peer(t, "operator", f.owner.uid, f.operator, uid, auth)
	}
	r.unknown(t, "owner through the gateway", req, f.owner)
	own := operator(f.owner.uid, bearer(mesh.Admin(t)))
	if r.m.service == rpc.Gateway { // it knows nobody's rights
		r.unknown(t, "operator", req, own)
		return
	}
	x, y, _ := r.others()
	r.ask(t, "operator without a token", req, operator("", nothing), refused(codes.Unauthenticated, faultv1.Reason_TOKEN_MISSING))
	r.ask(t, "operator with another one's token", req, operator("", f.reader.auth), refused(codes.Unauthenticated, faultv1.Reason_PEER_MAY_NOT_FORWARD))
	r.ask(t, "service without a token", req, f.service(t, x, nothing), refused(codes.Unauthenticated, faultv1.Reason_TOKEN_MISSING))
	r.ask(t, "service with the owner's token", req, f.service(t, x, bearer(mesh.Admin(t))), refused(codes.Unauthenticated, faultv1.Reason_TOKEN_AUDIENCE))
	r.ask(t, "service with another one's token", req, f.service(t, x, bearer(f.exchanged(t, y, r.m.service))), refused(codes.Unauthenticated, faultv1.Reason_PEER_MAY_NOT_FORWARD))
	// What the gateway would carry, if it did.
	gateway := func(c caller) caller {
		g := f.service(t, rpc.Gateway, c.auth)
		g.uid = c.uid
		return g
	}
	for name, c := range map[string]struct {
		caller caller
		want   want
	}{"contributor": {f.contributor, r.byRole(authz.Contributor)}, "reader": {f.reader, r.byRole(authz.Reader)}, "stranger": {f.stranger, missing(action)}} {
		if c.want.code == codes.OK {
			t.Errorf("a %s of the installation may look at its connections", name)
		}
		r.ask(t, name, req, gateway(c.caller), c.want)
	}
	if strings.HasPrefix(r.m.short, "channelz/GetTop") || r.m.short == "channelz/GetServers" { // the others want an id that there is
		r.ask(t, "operator", req, own, ok)
	}
}

// connectionsAreSeen goes from a server to a socket, and from a channel to a subchannel, as an operator does.
func (f *fixture) connectionsAreSeen(t *testing.T) {
	for _, service := range node.Services {
		if service == rpc.Gateway {
			continue
		}
		op := f.peer(t, "operator", f.owner.uid, f.operator, f.owner.uid, bearer(mesh.Admin(t)))
		client := channelzpb.NewChannelzClient(op.conn(t, service))
		ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(), op.auth(t, "")...), 20*time.Second)
		defer cancel()
		var sockets, subchannels int
		var calls int64
		must(t, patient(ctx, func() error {
			sockets, subchannels, calls = 0, 0, 0
			servers, err := client.GetServers(ctx, &channelzpb.GetServersRequest{})
			if err != nil {
				return err
			}
			for _, s := range servers.GetServer() {
				list, err := client.GetServerSockets(ctx, &channelzpb.GetServerSocketsRequest{ServerId: s.GetRef().GetServerId()})
				if err != nil {
					return err
				}
				calls += s.GetData().GetCallsStarted()
				for _, ref := range list.GetSocketRef()[:min(1, len(list.GetSocketRef()))] {
					socket, err := client.GetSocket(ctx, &channelzpb.GetSocketRequest{SocketId: ref.GetSocketId()})
					if err == nil && socket.GetSocket().GetRemote().GetTcpipAddress() != nil {
						sockets++
					}
				}
			}
			channels, err := client.GetTopChannels(ctx, &channelzpb.GetTopChannelsRequest{MaxResults: 5})
			if err != nil {
				return err
			}
			for _, c := range channels.GetChannel() {
				for _, ref := range c.GetSubchannelRef() {
					if _, err := client.GetSubchannel(ctx, &channelzpb.GetSubchannelRequest{SubchannelId: ref.GetSubchannelId()}); err == nil {
						subchannels++
					}
				}
			}
			return nil
		}))
		if sockets == 0 || subchannels == 0 || calls == 0 {
			t.Errorf("%s shows %d sockets, %d subchannels, %d calls", service, sockets, subchannels, calls)
		}
	}
}
