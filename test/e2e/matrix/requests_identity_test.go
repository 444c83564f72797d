package matrix

import (
	"crypto/x509"
	"encoding/pem"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	keyvaultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/keyvault/v1"
	"github.com/redoubt-ml/redoubt/pkg/resource"
)

// newName makes a user whom nobody needs, and gives his name.
func (f *fixture) newName(t *testing.T) string {
	t.Helper()
	u, err := identityv1.NewDirectoryServiceClient(f.admin).CreateUser(t.Context(), &identityv1.CreateUserRequest{UserId: f.id("user"), Password: resource.NewUID("pw")})
	must(t, err)
	return u.GetName()
}

func (f *fixture) newRobot(t *testing.T) string {
	t.Helper()
	sp, err := identityv1.NewDirectoryServiceClient(f.admin).CreateServicePrincipal(t.Context(), &identityv1.CreateServicePrincipalRequest{ServicePrincipalId: f.id("robot")})
	must(t, err)
	return sp.GetName()
}

// join gives the join token of a run that was claimed.
func (f *fixture) join(t *testing.T) string {
	t.Helper()
	c := f.compute(t, f.ours.ws)
	f.submit(t, f.ours, c)
	r, err := computev1.NewComputeServiceClient(f.admin).ClaimRun(t.Context(), &computev1.ClaimRunRequest{Name: c, Wait: durationpb.New(5 * time.Second)})
	must(t, err)
	return r.GetBootstrap().GetJoinToken()
}

// publicKey is one that nobody has the private key of any more.
func publicKey(t *testing.T) string {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(newKey(t).Public())
	must(t, err)
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

func init() { //nolint:gochecknoinits // the registry of requests is filled from several files
	register(map[string]spec{
		identityv1.SignInService_SignIn_FullMethodName: {
			build: func(*testing.T, *fixture, *place) request {
				return one(&identityv1.SignInRequest{User: "admin", Password: mesh.Password()})
			},
			bad: map[string]badRequest{
				"wrong password": {
					func(*testing.T, *fixture) request {
						return one(&identityv1.SignInRequest{User: "admin", Password: "wrong password"})
					},
					refused(codes.Unauthenticated, faultv1.Reason_SIGN_IN_FAILED),
				},
				"unknown user": {
					func(*testing.T, *fixture) request {
						return one(&identityv1.SignInRequest{User: "nobody", Password: mesh.Password()})
					},
					refused(codes.Unauthenticated, faultv1.Reason_SIGN_IN_FAILED),
				},
			},
		},
		identityv1.SignInService_CreateSignInCode_FullMethodName: {
			build: func(*testing.T, *fixture, *place) request { return one(&identityv1.CreateSignInCodeRequest{}) },
		},
		identityv1.SignInService_RedeemSignInCode_FullMethodName: {
			build: func(t *testing.T, f *fixture, _ *place) request {
				c, err := identityv1.NewSignInServiceClient(f.admin).CreateSignInCode(t.Context(), &identityv1.CreateSignInCodeRequest{})
				must(t, err)
				return one(&identityv1.RedeemSignInCodeRequest{Code: c.GetCode()})
			},
			bad: map[string]badRequest{"unknown code": {
				func(*testing.T, *fixture) request {
					return one(&identityv1.RedeemSignInCodeRequest{Code: "rdl_nothing"})
				},
				refused(codes.Unauthenticated, faultv1.Reason_SIGN_IN_FAILED),
			}},
		},
		identityv1.SignInService_SignOut_FullMethodName: {
			fresh: true,
			build: func(*testing.T, *fixture, *place) request { return one(&identityv1.SignOutRequest{}) },
		},
		identityv1.SignInService_WhoAmI_FullMethodName: about(func(*fixture, *place) proto.Message { return &identityv1.WhoAmIRequest{} }),

		identityv1.DirectoryService_CreateUser_FullMethodName: about(func(f *fixture, _ *place) proto.Message {
			return &identityv1.CreateUserRequest{UserId: f.id("user"), Password: resource.NewUID("pw")}
		}),
		identityv1.DirectoryService_GetUser_FullMethodName:   about(func(*fixture, *place) proto.Message { return &identityv1.GetUserRequest{Name: "users/reader"} }),
		identityv1.DirectoryService_ListUsers_FullMethodName: about(func(*fixture, *place) proto.Message { return &identityv1.ListUsersRequest{} }),
		identityv1.DirectoryService_SetUserDisabled_FullMethodName: making(func(t *testing.T, f *fixture, _ *place) proto.Message {
			return &identityv1.SetUserDisabledRequest{Name: f.newName(t), Disabled: true}
		}),
		identityv1.DirectoryService_SetUserPassword_FullMethodName: making(func(t *testing.T, f *fixture, _ *place) proto.Message {
			return &identityv1.SetUserPasswordRequest{Name: f.newName(t), NewPassword: resource.NewUID("pw")}
		}),
		identityv1.DirectoryService_DeleteUser_FullMethodName: making(func(t *testing.T, f *fixture, _ *place) proto.Message {
			return &identityv1.DeleteUserRequest{Name: f.newName(t)}
		}),
		identityv1.DirectoryService_CreateUserCode_FullMethodName: making(func(t *testing.T, f *fixture, _ *place) proto.Message {
			return &identityv1.CreateUserCodeRequest{Name: f.newName(t)}
		}),
		identityv1.DirectoryService_RedeemUserCode_FullMethodName: {
			build: func(t *testing.T, f *fixture, _ *place) request {
				c, err := identityv1.NewDirectoryServiceClient(f.admin).CreateUserCode(t.Context(), &identityv1.CreateUserCodeRequest{Name: f.newName(t)})
				must(t, err)
				return one(&identityv1.RedeemUserCodeRequest{Code: c.GetCode(), NewPassword: resource.NewUID("pw")})
			},
			bad: map[string]badRequest{"unknown code": {
				func(*testing.T, *fixture) request {
					return one(&identityv1.RedeemUserCodeRequest{Code: "rdi_nothing", NewPassword: resource.NewUID("pw")})
				},
				refused(codes.Unauthenticated, faultv1.Reason_SIGN_IN_FAILED),
			}},
		},
		identityv1.DirectoryService_GetServicePrincipal_FullMethodName: making(func(t *testing.T, f *fixture, _ *place) proto.Message {
			return &identityv1.GetServicePrincipalRequest{Name: f.newRobot(t)}
		}),
		identityv1.DirectoryService_SetServicePrincipalDisabled_FullMethodName: making(func(t *testing.T, f *fixture, _ *place) proto.Message {
			return &identityv1.SetServicePrincipalDisabledRequest{Name: f.newRobot(t), Disabled: true}
		}),
		identityv1.DirectoryService_AddServicePrincipalKey_FullMethodName: making(func(t *testing.T, f *fixture, _ *place) proto.Message {
			return &identityv1.AddServicePrincipalKeyRequest{Name: f.newRobot(t), Pem: publicKey(t)}
		}),
		identityv1.DirectoryService_ListServicePrincipalCredentials_FullMethodName: making(func(t *testing.T, f *fixture, _ *place) proto.Message {
			return &identityv1.ListServicePrincipalCredentialsRequest{Name: f.newRobot(t)}
		}),
		identityv1.DirectoryService_DeleteServicePrincipalCredential_FullMethodName: making(func(t *testing.T, f *fixture, _ *place) proto.Message {
			name := f.newRobot(t)
			k, err := identityv1.NewDirectoryServiceClient(f.admin).AddServicePrincipalKey(t.Context(), &identityv1.AddServicePrincipalKeyRequest{Name: name, Pem: publicKey(t)})
			must(t, err)
			return &identityv1.DeleteServicePrincipalCredentialRequest{Name: name, CredentialId: k.GetCredentialId()}
		}),
		identityv1.DirectoryService_GetGroup_FullMethodName: making(func(t *testing.T, f *fixture, _ *place) proto.Message {
			return &identityv1.GetGroupRequest{Name: f.group(t).GetName()}
		}),
		identityv1.DirectoryService_DeleteGroup_FullMethodName: making(func(t *testing.T, f *fixture, _ *place) proto.Message {
			return &identityv1.DeleteGroupRequest{Name: f.group(t).GetName()}
		}),
		identityv1.DirectoryService_CreateServicePrincipal_FullMethodName: about(func(f *fixture, _ *place) proto.Message {
			return &identityv1.CreateServicePrincipalRequest{ServicePrincipalId: f.id("robot")}
		}),
		identityv1.DirectoryService_ListServicePrincipals_FullMethodName: about(func(*fixture, *place) proto.Message { return &identityv1.ListServicePrincipalsRequest{} }),
		identityv1.DirectoryService_AddServicePrincipalSecret_FullMethodName: making(func(t *testing.T, f *fixture, _ *place) proto.Message {
			return &identityv1.AddServicePrincipalSecretRequest{Name: f.newRobot(t)}
		}),
		identityv1.DirectoryService_DeleteServicePrincipal_FullMethodName: making(func(t *testing.T, f *fixture, _ *place) proto.Message {
			return &identityv1.DeleteServicePrincipalRequest{Name: f.newRobot(t)}
		}),
		identityv1.DirectoryService_CreateGroup_FullMethodName: about(func(f *fixture, _ *place) proto.Message {
			return &identityv1.CreateGroupRequest{GroupId: f.id("group")}
		}),
		identityv1.DirectoryService_ListGroups_FullMethodName: about(func(*fixture, *place) proto.Message { return &identityv1.ListGroupsRequest{} }),
		identityv1.DirectoryService_AddGroupMember_FullMethodName: making(func(t *testing.T, f *fixture, _ *place) proto.Message {
			return &identityv1.AddGroupMemberRequest{Name: f.group(t).GetName(), Member: f.stranger.uid}
		}),
		identityv1.DirectoryService_RemoveGroupMember_FullMethodName: making(func(t *testing.T, f *fixture, _ *place) proto.Message {
			g := f.group(t)
			_, err := identityv1.NewDirectoryServiceClient(f.admin).AddGroupMember(t.Context(), &identityv1.AddGroupMemberRequest{Name: g.GetName(), Member: f.stranger.uid})
			must(t, err)
			return &identityv1.RemoveGroupMemberRequest{Name: g.GetName(), Member: f.stranger.uid}
		}),

		identityv1.EnrolmentService_Issue_FullMethodName: {
			conn: func(t *testing.T, req request) *grpc.ClientConn { return req.from.conn(t, "identity") },
			build: func(t *testing.T, _ *fixture, _ *place) request {
				return issue(t, func(r *identityv1.IssueRequest) {})
			},
			bad: map[string]badRequest{
				"another join token": {
					func(t *testing.T, _ *fixture) request {
						return issue(t, func(r *identityv1.IssueRequest) { r.JoinToken = "wrong" })
					},
					refused(codes.Unauthenticated, faultv1.Reason_JOIN_TOKEN_INVALID),
				},
				"a join token for another service": {
					func(t *testing.T, _ *fixture) request {
						return issue(t, func(r *identityv1.IssueRequest) { r.Service = "keyvault" })
					},
					refused(codes.Unauthenticated, faultv1.Reason_JOIN_TOKEN_INVALID),
				},
				"another key than the connection's": {
					func(t *testing.T, _ *fixture) request {
						return issue(t, func(r *identityv1.IssueRequest) { r.Csr = csr(t, newKey(t)) })
					},
					refused(codes.Unauthenticated, faultv1.Reason_PEER_UNKNOWN),
				},
			},
		},
		identityv1.AgentService_CreateAgentJoin_FullMethodName: forPeers(func(_ *testing.T, f *fixture, _ string) proto.Message {
			return &identityv1.CreateAgentJoinRequest{RunUid: resource.NewUID("run"), WorkspaceUid: f.ours.wsUID, Submitter: f.owner.uid, Actions: []string{"compute/runs/execute runs/none"}}
		}),
		identityv1.AgentService_EnrolAgent_FullMethodName: {
			build: func(t *testing.T, f *fixture, _ *place) request {
				return one(&identityv1.EnrolAgentRequest{JoinToken: f.join(t), Csr: csr(t, newKey(t))})
			},
			bad: map[string]badRequest{
				"unknown join token": {
					func(t *testing.T, _ *fixture) request {
						return one(&identityv1.EnrolAgentRequest{JoinToken: "wrong", Csr: csr(t, newKey(t))})
					},
					refused(codes.Unauthenticated, faultv1.Reason_JOIN_TOKEN_INVALID),
				},
				"join token used by another key": {
					func(t *testing.T, f *fixture) request {
						join := f.join(t)
						_, err := identityv1.NewAgentServiceClient(gatewayConn()).EnrolAgent(t.Context(), &identityv1.EnrolAgentRequest{JoinToken: join, Csr: csr(t, newKey(t))})
						must(t, err)
						return one(&identityv1.EnrolAgentRequest{JoinToken: join, Csr: csr(t, newKey(t))})
					},
					refused(codes.Unauthenticated, faultv1.Reason_JOIN_TOKEN_INVALID),
				},
			},
		},
		identityv1.AgentService_RenewRunToken_FullMethodName: {
			run:   true,
			build: func(*testing.T, *fixture, *place) request { return one(&identityv1.RenewRunTokenRequest{}) },
			want:  onlyRuns("owner", "contributor", "reader", "stranger", "operator"),
		},
		identityv1.OperatorService_IssueOperatorCertificate_FullMethodName: making(func(t *testing.T, _ *fixture, _ *place) proto.Message {
			return &identityv1.IssueOperatorCertificateRequest{Csr: csr(t, newKey(t))}
		}),

		identityv1.KeyService_ListSigningKeys_FullMethodName:   about(func(*fixture, *place) proto.Message { return &identityv1.ListSigningKeysRequest{} }),
		identityv1.KeyService_RotateSigningKeys_FullMethodName: about(func(*fixture, *place) proto.Message { return &identityv1.RotateSigningKeysRequest{} }),
		identityv1.KeyService_ListAuthorities_FullMethodName:   about(func(*fixture, *place) proto.Message { return &identityv1.ListAuthoritiesRequest{} }),
		identityv1.KeyService_GetTrustBundle_FullMethodName:    about(func(*fixture, *place) proto.Message { return &identityv1.GetTrustBundleRequest{} }),
		identityv1.KeyService_PrepareAuthority_FullMethodName: aboutRoot(rootBeside, func(t *testing.T, f *fixture) proto.Message {
			f.oneRoot(t)
			return &identityv1.PrepareAuthorityRequest{}
		}),
		identityv1.KeyService_ActivateAuthority_FullMethodName: aboutRoot(ok, func(t *testing.T, f *fixture) proto.Message {
			f.oneRoot(t) // the one that signs: what this package plays knows no other
			return &identityv1.ActivateAuthorityRequest{Pin: firstRoot}
		}),
		identityv1.KeyService_TaintAuthority_FullMethodName: aboutRoot(ok, func(t *testing.T, f *fixture) proto.Message {
			return &identityv1.TaintAuthorityRequest{Pin: f.oldRoot(t)}
		}),
		identityv1.KeyService_UntaintAuthority_FullMethodName: aboutRoot(ok, func(t *testing.T, f *fixture) proto.Message {
			pin := f.oldRoot(t)
			_, err := identityv1.NewKeyServiceClient(f.admin).TaintAuthority(t.Context(), &identityv1.TaintAuthorityRequest{Pin: pin})
			must(t, err)
			return &identityv1.UntaintAuthorityRequest{Pin: pin}
		}),
		identityv1.KeyService_RevokeAuthority_FullMethodName: aboutRoot(ok, func(t *testing.T, f *fixture) proto.Message {
			return &identityv1.RevokeAuthorityRequest{Pin: f.preparedRoot(t), Force: true}
		}),
		identityv1.KeyService_WatchAuthorities_FullMethodName: forPeers(func(*testing.T, *fixture, string) proto.Message { return &identityv1.WatchAuthoritiesRequest{} }),

		identityv1.TokenService_IssueToken_FullMethodName: {
			build: func(_ *testing.T, f *fixture, _ *place) request {
				return one(&identityv1.IssueTokenRequest{GrantType: "client_credentials", ClientId: f.servicePrincipal, ClientSecret: f.servicePrincipalSecret})
			},
			bad: map[string]badRequest{"wrong secret": {
				func(_ *testing.T, f *fixture) request {
					return one(&identityv1.IssueTokenRequest{GrantType: "client_credentials", ClientId: f.servicePrincipal, ClientSecret: "wrong"})
				},
				refused(codes.Unauthenticated, faultv1.Reason_CREDENTIAL_INVALID),
			}},
		},
		identityv1.TokenService_GetDiscovery_FullMethodName: about(func(*fixture, *place) proto.Message { return &identityv1.GetDiscoveryRequest{} }),
		identityv1.WorkloadIdentityService_IssueJWTSVID_FullMethodName: forPeers(func(*testing.T, *fixture, string) proto.Message {
			return &identityv1.IssueJWTSVIDRequest{Audience: []string{"board"}}
		}),
		identityv1.WorkloadIdentityService_GetSPIFFEBundle_FullMethodName: about(func(*fixture, *place) proto.Message { return &identityv1.GetSPIFFEBundleRequest{} }),
		identityv1.TokenService_GetKeys_FullMethodName:                    about(func(*fixture, *place) proto.Message { return &identityv1.GetKeysRequest{} }),
		identityv1.TokenService_ExchangeToken_FullMethodName: forPeers(func(t *testing.T, _ *fixture, service string) proto.Message {
			audience := "telemetry"
			if service == audience {
				audience = "compute"
			}
			return &identityv1.ExchangeTokenRequest{SubjectToken: mesh.Admin(t), Audience: audience}
		}),
		identityv1.TokenService_ActAs_FullMethodName: forPeers(func(_ *testing.T, f *fixture, _ string) proto.Message {
			return &identityv1.ActAsRequest{Principal: f.owner.uid, Audience: "workspace", RunUid: f.ours.run.uid, WorkspaceUid: f.ours.wsUID}
		}),
		identityv1.TokenService_RevokeToken_FullMethodName: {
			build: func(t *testing.T, f *fixture, _ *place) request {
				return one(&identityv1.RevokeTokenRequest{Token: f.robot(t)})
			},
			want: map[string]want{ // another's token: his own he may always revoke
				"contributor": missing("identity/tokens/revoke"), "reader": missing("identity/tokens/revoke"), "stranger": missing("identity/tokens/revoke"),
			},
		},
		identityv1.TokenService_RevokeRun_FullMethodName: forPeers(func(_ *testing.T, f *fixture, _ string) proto.Message {
			return &identityv1.RevokeRunRequest{RunUid: resource.NewUID("run"), WorkspaceUid: f.ours.wsUID}
		}),
		identityv1.TokenService_WatchSecurity_FullMethodName: forPeers(func(*testing.T, *fixture, string) proto.Message { return &identityv1.WatchSecurityRequest{} }),

		identityv1.PrincipalService_CreateManagedIdentity_FullMethodName: forPeers(func(*testing.T, *fixture, string) proto.Message {
			return &identityv1.CreateManagedIdentityRequest{WorkspaceUid: resource.NewUID("ws"), DisplayName: "nobody"}
		}),
		identityv1.PrincipalService_DeleteManagedIdentity_FullMethodName: forPeers(func(t *testing.T, f *fixture, _ string) proto.Message {
			ws := resource.NewUID("ws")
			_, err := identityv1.NewPrincipalServiceClient(f.service(t, "workspace", nothing).conn(t, "identity")).CreateManagedIdentity(t.Context(), &identityv1.CreateManagedIdentityRequest{WorkspaceUid: ws})
			must(t, err)
			return &identityv1.DeleteManagedIdentityRequest{WorkspaceUid: ws}
		}),
		identityv1.PrincipalService_KeepAdministrator_FullMethodName: forPeers(func(_ *testing.T, f *fixture, _ string) proto.Message {
			return &identityv1.KeepAdministratorRequest{PrincipalUids: []string{f.owner.uid}}
		}),
		identityv1.PrincipalService_ResolvePrincipals_FullMethodName: forPeers(func(*testing.T, *fixture, string) proto.Message {
			return &identityv1.ResolvePrincipalsRequest{Names: []string{"users/admin"}}
		}),
	})
	registerKeyvault()
}

// onlyRuns says that plain users are told what the method is for, which is no denial.
func onlyRuns(cells ...string) map[string]want {
	out := map[string]want{}
	for _, c := range cells {
		out[c] = want{code: codes.FailedPrecondition, reason: faultv1.Reason_PRECONDITION_FAILED, silent: true}
	}
	return out
}

// issue is a request on a connection of its own to the enrolment listener.
func issue(t *testing.T, change func(*identityv1.IssueRequest)) request {
	key := newKey(t)
	conn, join := enrolment(t, "inference", key)
	r := &identityv1.IssueRequest{Service: "inference", Instance: "matrix", Csr: csr(t, key), JoinToken: join.Secret.RevealString()}
	change(r)
	return request{in: []proto.Message{r}, from: &caller{auth: nothing, conn: func(*testing.T, string) *grpc.ClientConn { return conn }}}
}

func registerKeyvault() {
	register(map[string]spec{
		keyvaultv1.SecretService_SetSecret_FullMethodName: about(func(f *fixture, p *place) proto.Message {
			return &keyvaultv1.SetSecretRequest{Parent: p.ws, SecretId: f.id("secret"), Value: []byte("value")}
		}),
		keyvaultv1.SecretService_AccessSecret_FullMethodName: about(func(_ *fixture, p *place) proto.Message { return &keyvaultv1.AccessSecretRequest{Name: p.secret} }),
		keyvaultv1.SecretService_ListSecrets_FullMethodName:  about(func(_ *fixture, p *place) proto.Message { return &keyvaultv1.ListSecretsRequest{Parent: p.ws} }),
		keyvaultv1.SecretService_SetSecretDisabled_FullMethodName: making(func(t *testing.T, f *fixture, p *place) proto.Message {
			return &keyvaultv1.SetSecretDisabledRequest{Name: f.secret(t, p.ws), Version: 1, Disabled: true}
		}),
		keyvaultv1.SecretService_DeleteSecret_FullMethodName: making(func(t *testing.T, f *fixture, p *place) proto.Message {
			return &keyvaultv1.DeleteSecretRequest{Name: f.secret(t, p.ws)}
		}),

		keyvaultv1.KeyService_CreateKey_FullMethodName: about(func(f *fixture, p *place) proto.Message {
			return &keyvaultv1.CreateKeyRequest{Parent: p.ws, KeyId: f.id("key")}
		}),
		keyvaultv1.KeyService_ListKeys_FullMethodName:  about(func(_ *fixture, p *place) proto.Message { return &keyvaultv1.ListKeysRequest{Parent: p.ws} }),
		keyvaultv1.KeyService_RotateKey_FullMethodName: about(func(_ *fixture, p *place) proto.Message { return &keyvaultv1.RotateKeyRequest{Name: p.key} }),
		keyvaultv1.KeyService_SetKeyDisabled_FullMethodName: making(func(t *testing.T, f *fixture, p *place) proto.Message {
			k, err := keyvaultv1.NewKeyServiceClient(f.admin).CreateKey(t.Context(), &keyvaultv1.CreateKeyRequest{Parent: p.ws, KeyId: f.id("key")})
			must(t, err)
			return &keyvaultv1.SetKeyDisabledRequest{Name: k.GetName(), Version: 1, Disabled: true}
		}),
		keyvaultv1.KeyService_Encrypt_FullMethodName: about(func(_ *fixture, p *place) proto.Message {
			return &keyvaultv1.EncryptRequest{Name: p.key, Plaintext: []byte("text")}
		}),
		keyvaultv1.KeyService_Decrypt_FullMethodName: making(func(t *testing.T, f *fixture, p *place) proto.Message {
			e, err := keyvaultv1.NewKeyServiceClient(f.admin).Encrypt(t.Context(), &keyvaultv1.EncryptRequest{Name: p.key, Plaintext: []byte("text"), AssociatedData: []byte("a")})
			must(t, err)
			return &keyvaultv1.DecryptRequest{Name: p.key, Ciphertext: e.GetCiphertext(), AssociatedData: []byte("a")}
		}),

		keyvaultv1.VaultService_CreateVault_FullMethodName: forPeers(func(*testing.T, *fixture, string) proto.Message {
			return &keyvaultv1.CreateVaultRequest{WorkspaceUid: resource.NewUID("ws")}
		}),
		keyvaultv1.VaultService_DeleteVault_FullMethodName: forPeers(func(t *testing.T, f *fixture, _ string) proto.Message {
			ws := resource.NewUID("ws")
			_, err := keyvaultv1.NewVaultServiceClient(f.service(t, "workspace", nothing).conn(t, "keyvault")).CreateVault(t.Context(), &keyvaultv1.CreateVaultRequest{WorkspaceUid: ws})
			must(t, err)
			return &keyvaultv1.DeleteVaultRequest{WorkspaceUid: ws}
		}),
		keyvaultv1.VaultService_GenerateDataKey_FullMethodName: forPeers(func(_ *testing.T, f *fixture, _ string) proto.Message {
			return &keyvaultv1.GenerateDataKeyRequest{OwnerUid: f.ours.wsUID}
		}),
		keyvaultv1.VaultService_UnwrapDataKey_FullMethodName: forPeers(func(t *testing.T, f *fixture, service string) proto.Message {
			return &keyvaultv1.UnwrapDataKeyRequest{OwnerUid: f.ours.wsUID, Wrapped: f.dataKey(t, service).GetWrapped()}
		}),
	})
}

// dataKey makes a data key of our workspace for a service.
func (f *fixture) dataKey(t *testing.T, service string) *keyvaultv1.DataKey {
	t.Helper()
	k, err := keyvaultv1.NewVaultServiceClient(f.service(t, service, nothing).conn(t, "keyvault")).GenerateDataKey(t.Context(), &keyvaultv1.GenerateDataKeyRequest{OwnerUid: f.ours.wsUID})
	must(t, err)
	return k
}
