package forged

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	keyvaultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/keyvault/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/internal/testmesh"
	"github.com/redoubt-ml/redoubt/pkg/authn/forge"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

const lab = "subscriptions/forged/resourceGroups/group/workspaces/lab"

// answer is what a place said to a token: in tells that it was taken for who it says it is.
type answer struct {
	in   bool
	says string
}

// place is where tokens are taken. Its send gives ok false for a token that cannot be sent there as it is.
type place struct {
	name, audience string
	extra          map[string]any // claims of its good token besides
	send           func(t *testing.T, token string) (a answer, ok bool)
	// between services a run's token counts without its key: the service that was given it exchanged it. Then this one is no forgery.
	between bool
	// aside are the places behind which the same chain stands as behind others: without ATTACK_FULL they are sent one of eight.
	aside bool
	// opaque places take no token of identity's at all: the good one of here is refused, and this one is let in.
	opaque string
}

// calls ask each service something that an administrator may, and that is cheap.
var calls = map[string]func(context.Context, *grpc.ClientConn) error{
	"identity": func(ctx context.Context, c *grpc.ClientConn) error {
		_, err := identityv1.NewDirectoryServiceClient(c).ListUsers(ctx, &identityv1.ListUsersRequest{})
		return err
	},
	"workspace": func(ctx context.Context, c *grpc.ClientConn) error {
		_, err := workspacev1.NewResourceServiceClient(c).GetWorkspace(ctx, &workspacev1.GetWorkspaceRequest{Name: lab})
		return err
	},
	"keyvault": func(ctx context.Context, c *grpc.ClientConn) error {
		_, err := keyvaultv1.NewSecretServiceClient(c).ListSecrets(ctx, &keyvaultv1.ListSecretsRequest{Parent: lab})
		return err
	},
	"compute": func(ctx context.Context, c *grpc.ClientConn) error {
		_, err := computev1.NewRunServiceClient(c).ListRuns(ctx, &computev1.ListRunsRequest{Parent: lab})
		return err
	},
	"inference": func(ctx context.Context, c *grpc.ClientConn) error {
		_, err := inferencev1.NewModelServiceClient(c).ListModels(ctx, &inferencev1.ListModelsRequest{Parent: lab})
		return err
	},
	"telemetry": func(ctx context.Context, c *grpc.ClientConn) error {
		_, err := telemetryv1.NewActivityServiceClient(c).ListActivity(ctx, &telemetryv1.ListActivityRequest{Scope: lab})
		return err
	},
}

// over asks a service on a connection. Whatever is no refusal of the token is one that was let in.
func over(conn *grpc.ClientConn, call func(context.Context, *grpc.ClientConn) error) func(*testing.T, string) (answer, bool) {
	return func(t *testing.T, token string) (answer, bool) {
		ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+token), 20*time.Second)
		defer cancel()
		err := fault.FromStatus(call(ctx, conn))
		code, long := fault.Code(err), len(token) > 16<<10 // that long it is the transport that refuses
		carried := !strings.ContainsFunc(token, func(r rune) bool { return r < 0x20 || r > 0x7e })
		if err != nil && !carried && code == codes.Internal {
			return answer{}, false // gRPC's client does not send it
		}
		return answer{err == nil || code != codes.Unauthenticated && !long, fmt.Sprint(err)}, true
	}
}

// web asks by HTTP/1.1.
func web(c *http.Client, method, address, body string) func(*testing.T, string) (answer, bool) {
	return func(t *testing.T, token string) (answer, bool) {
		if strings.ContainsAny(token, "\r\n\x00") || strings.TrimRight(token, " ") != token { // what ends a header's value, or is no part of it
			return answer{}, false
		}
		req, err := http.NewRequestWithContext(t.Context(), method, address, strings.NewReader(body))
		must(t, err)
		req.Header.Set("Authorization", "Bearer "+token)
		req.Header.Set("Content-Type", "application/json")
		res, err := c.Do(req)
		if err != nil {
			return answer{len(token) <= 16<<10, err.Error()}, true
		}
		defer func() { _ = res.Body.Close() }()
		b, _ := io.ReadAll(io.LimitReader(res.Body, 300))
		in := true
		switch res.StatusCode { // nothing but the token is wrong with the request
		case http.StatusBadRequest, http.StatusUnauthorized, http.StatusRequestHeaderFieldsTooLarge:
			in = false
		}
		return answer{in, fmt.Sprintf("%d %s", res.StatusCode, b)}, true
	}
}

// A3: no forged token is taken anywhere.
func TestForgedEverywhere(t *testing.T) {
	kid, key := signingKey(t)
	admin := mesh.Dial(t, mesh.Admin(t))
	who, err := identityv1.NewSignInServiceClient(admin).WhoAmI(t.Context(), &identityv1.WhoAmIRequest{})
	must(t, err)
	res := workspacev1.NewResourceServiceClient(admin)
	_, err = res.CreateSubscription(t.Context(), &workspacev1.CreateSubscriptionRequest{SubscriptionId: "forged", Region: "here"})
	must(t, err)
	_, err = res.CreateResourceGroup(t.Context(), &workspacev1.CreateResourceGroupRequest{Parent: "subscriptions/forged", ResourceGroupId: "group"})
	must(t, err)
	_, err = res.CreateWorkspace(t.Context(), &workspacev1.CreateWorkspaceRequest{Parent: "subscriptions/forged/resourceGroups/group", WorkspaceId: "lab"})
	must(t, err)
	endpoints := inferencev1.NewEndpointServiceClient(admin)
	e, err := endpoints.CreateEndpoint(t.Context(), &inferencev1.CreateEndpointRequest{Parent: lab, EndpointId: "forged", Endpoint: &inferencev1.NewEndpoint{Auth: inferencev1.Endpoint_AUTH_TOKEN}})
	must(t, err)
	opaque, err := endpoints.IssueEndpointToken(t.Context(), &inferencev1.IssueEndpointTokenRequest{Name: e.GetName()})
	must(t, err)

	cfg := mesh.TLS()
	cfg.NextProtos = nil
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: cfg, MaxIdleConnsPerHost: 4}, Timeout: 20 * time.Second}
	defer client.CloseIdleConnections()
	public := mesh.Dial(t, "")
	var places []place
	for service, call := range calls {
		places = append(places, place{name: "gateway to " + service, audience: mesh.URL, send: over(public, call)})
		from := "compute"
		if service == from {
			from = "workspace"
		}
		places = append(places, place{
			name: from + " to " + service, audience: testmesh.Domain.IDString() + "/service/" + service, send: over(mesh.Peer(t, from, service), call), between: true, aside: true,
			extra: map[string]any{"act": map[string]any{"sub": testmesh.Domain.IDString() + "/service/" + from}, "anc": []string{"tok_parent"}},
		})
	}
	for service, path := range map[string]string{
		"identity": "/v1/users", "workspace": "/v1/" + lab, "keyvault": "/v1/" + lab + "/secrets", "compute": "/v1/" + lab + "/runs", "inference": "/v1/" + lab + "/models",
		"telemetry": "/v1/activity?scope=" + lab,
	} {
		places = append(places, place{name: "REST to " + service, audience: mesh.URL, send: web(client, http.MethodGet, mesh.URL+path, ""), aside: true})
	}
	places = append(places,
		place{name: "MLflow's API", audience: mesh.URL, send: web(client, http.MethodPost, mesh.URL+"/mlflow/forged.group.lab/api/2.0/mlflow/experiments/search", `{"max_results":1}`)},
		place{name: "userinfo", audience: mesh.URL + "/oauth2/userinfo", send: web(client, http.MethodGet, mesh.URL+"/oauth2/userinfo", ""), extra: map[string]any{"scope": "openid"}},
		place{name: "endpoints", audience: mesh.URL, send: web(client, http.MethodPost, e.GetScoringUri(), "{}"), opaque: opaque.GetAccessToken()},
	)

	tried, accepted := 0, 0
	for _, p := range places {
		t.Run(p.name, func(t *testing.T) {
			now := time.Now().Unix()
			good := forge.Good{Key: key, Header: map[string]any{"alg": "ES256", "typ": "at+jwt", "kid": kid}, Payload: map[string]any{
				"iss": mesh.URL, "aud": p.audience, "sub": who.GetUid(), "principal_type": "user", "client_id": "redoubt", "jti": "tok_forged", "iat": now, "exp": now + 300, "auth_time": now,
			}}
			for k, v := range p.extra {
				good.Payload[k] = v
			}
			list, err := forge.Tokens(good)
			must(t, err)
			right := forge.Sign(key, good.Header, good.Payload)
			if p.opaque != "" { // every token of identity's is a forged one
				list = append(list, forge.Token{Name: "a good one of identity's", Token: right}, forge.Token{Name: "the administrator's", Token: mesh.Admin(t)})
				list = append(list, changed(p.opaque)...)
				right = p.opaque
			}
			check := func() {
				if a, ok := p.send(t, right); !ok || !a.in {
					t.Fatalf("the token that the forgeries start from is not let in: %s", a.says)
				}
			}
			check()
			sent, in := 0, 0
			for i, f := range list {
				if p.between && f.Name == "run token as bearer" || os.Getenv("ATTACK_FULL") == "" && p.aside && i%8 != 0 {
					continue
				}
				begun := time.Now()
				a, ok := p.send(t, f.Token)
				if d := time.Since(begun); d > time.Second {
					t.Logf("%s took %v", f.Name, d.Round(time.Millisecond))
				}
				if !ok {
					continue
				}
				if sent++; a.in {
					in++
					t.Errorf("%s is let in: %s", f.Name, a.says)
				}
			}
			check()
			if sent < 60 && !p.aside {
				t.Errorf("only %d were sent", sent)
			}
			fmt.Printf("attack: %s: tried %d, accepted %d\n", t.Name(), sent, in)
			tried, accepted = tried+sent, accepted+in
		})
	}
	t.Logf("%d forged tokens at %d places, %d let in", tried, len(places), accepted)
}

// changed are opaque tokens that are almost a good one.
func changed(good string) []forge.Token {
	var out []forge.Token
	for i := 4; i < len(good); i += 7 {
		b := []byte(good)
		b[i] ^= 1
		out = append(out, forge.Token{Name: fmt.Sprintf("with another letter at %d", i), Token: string(b)})
	}
	return append(out,
		forge.Token{Name: "cut short", Token: good[:len(good)-1]}, forge.Token{Name: "with a letter more", Token: good + "A"}, forge.Token{Name: "in capitals", Token: strings.ToUpper(good)},
		forge.Token{Name: "without its prefix", Token: good[strings.IndexByte(good, '_')+1:]}, forge.Token{Name: "as a key", Token: strings.Replace(good, "rde_", "rdk_", 1)},
		forge.Token{Name: "zeros", Token: "rde_" + string(bytes.Repeat([]byte{'A'}, len(good)-4))},
	)
}
