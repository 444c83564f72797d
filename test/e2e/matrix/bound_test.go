package matrix

import (
	"bytes"
	"errors"
	"testing"

	"google.golang.org/grpc/codes"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	keyvaultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/keyvault/v1"
)

var errNoHTTP2 = errors.New("the answer is not HTTP/2")

// D2, E1: what is sealed for one thing opens for no other, though the caller may see both. With redoubt_break_aad this is red.
func TestSealedForOneThing(t *testing.T) {
	f := live(t)
	secrets, keys := keyvaultv1.NewSecretServiceClient(f.admin), keyvaultv1.NewKeyServiceClient(f.admin)
	pageInvalid := refused(codes.InvalidArgument, faultv1.Reason_PAGE_TOKEN_INVALID)

	t.Run("a data key of another service", func(t *testing.T) {
		wrapped := f.dataKey(t, "telemetry").GetWrapped()
		vaults := keyvaultv1.NewVaultServiceClient(f.service(t, "compute", nothing).conn(t, "keyvault"))
		notYours := refused(codes.PermissionDenied, faultv1.Reason_KEY_NOT_YOURS)
		_, err := vaults.UnwrapDataKey(t.Context(), &keyvaultv1.UnwrapDataKeyRequest{OwnerUid: f.ours.wsUID, Wrapped: wrapped})
		expect(t, err, notYours)
		// The name in front is not what protects it.
		renamed := append([]byte("compute"), wrapped[bytes.IndexByte(wrapped, '\n'):]...)
		_, err = vaults.UnwrapDataKey(t.Context(), &keyvaultv1.UnwrapDataKeyRequest{OwnerUid: f.ours.wsUID, Wrapped: renamed})
		expect(t, err, notYours)
	})
	t.Run("a page of secrets continued as keys", func(t *testing.T) {
		f.secret(t, f.ours.ws)
		page, err := secrets.ListSecrets(t.Context(), &keyvaultv1.ListSecretsRequest{Parent: f.ours.ws, PageSize: 1})
		must(t, err)
		if page.GetNextPageToken() == "" {
			t.Fatal("there is one page only")
		}
		_, err = keys.ListKeys(t.Context(), &keyvaultv1.ListKeysRequest{Parent: f.ours.ws, PageToken: page.GetNextPageToken()})
		expect(t, err, pageInvalid)
		_, err = secrets.ListSecrets(t.Context(), &keyvaultv1.ListSecretsRequest{Parent: f.ours.ws, PageToken: page.GetNextPageToken()})
		expect(t, err, ok)
	})
	t.Run("a page of computes continued as runs", func(t *testing.T) {
		page, err := computev1.NewComputeServiceClient(f.admin).ListComputes(t.Context(), &computev1.ListComputesRequest{Parent: f.ours.ws, PageSize: 1})
		must(t, err)
		if page.GetNextPageToken() == "" {
			t.Fatal("there is one page only")
		}
		_, err = computev1.NewRunServiceClient(f.admin).ListRuns(t.Context(), &computev1.ListRunsRequest{Parent: f.ours.ws, PageToken: page.GetNextPageToken()})
		expect(t, err, pageInvalid)
	})
	t.Run("a page of users continued as groups", func(t *testing.T) {
		dir := identityv1.NewDirectoryServiceClient(f.admin)
		page, err := dir.ListUsers(t.Context(), &identityv1.ListUsersRequest{PageSize: 1})
		must(t, err)
		if page.GetNextPageToken() == "" {
			t.Fatal("there is one page only")
		}
		_, err = dir.ListGroups(t.Context(), &identityv1.ListGroupsRequest{PageToken: page.GetNextPageToken()})
		expect(t, err, pageInvalid)
	})
}
