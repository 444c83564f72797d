package keyvault_test

import (
	"bytes"
	"context"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	keyvaultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/keyvault/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
)

// D1, D2: a data key opens for the service and the workspace that it was made for.
func TestDataKeys(t *testing.T) {
	l := newLab(t)
	ctx := t.Context()
	one, two := l.uids[ws1], l.uids[ws2]
	made, err := l.vault("compute").GenerateDataKey(ctx, &keyvaultv1.GenerateDataKeyRequest{OwnerUid: one})
	must(t, err)
	if len(made.GetPlaintext()) != 32 || bytes.Contains(made.GetWrapped(), made.GetPlaintext()) {
		t.Fatalf("the key has %d bytes, or its wrapping holds it", len(made.GetPlaintext()))
	}
	again, err := l.vault("compute").GenerateDataKey(ctx, &keyvaultv1.GenerateDataKeyRequest{OwnerUid: one})
	must(t, err)
	if bytes.Equal(again.GetPlaintext(), made.GetPlaintext()) {
		t.Error("the same key twice")
	}
	wrapped := made.GetWrapped()
	renamed := append([]byte("telemetry"), wrapped[len("compute"):]...)
	flipped := bytes.Clone(wrapped)
	flipped[len(flipped)-1] ^= 1
	for _, tc := range []struct {
		name, service, owner string
		wrapped              []byte
		code                 codes.Code
		reason               faultv1.Reason
	}{
		{"its own", "compute", one, wrapped, codes.OK, 0},
		{"of another service", "telemetry", one, wrapped, codes.PermissionDenied, faultv1.Reason_KEY_NOT_YOURS},
		{"of another service, renamed", "telemetry", one, renamed, codes.PermissionDenied, faultv1.Reason_KEY_NOT_YOURS},
		{"of another workspace", "compute", two, wrapped, codes.PermissionDenied, faultv1.Reason_KEY_NOT_YOURS},
		{"changed", "compute", one, flipped, codes.PermissionDenied, faultv1.Reason_KEY_NOT_YOURS},
		{"cut", "compute", one, wrapped[:len(wrapped)-1], codes.PermissionDenied, faultv1.Reason_KEY_NOT_YOURS},
		{"no name in front", "compute", one, []byte("x"), codes.PermissionDenied, faultv1.Reason_KEY_NOT_YOURS},
		{"only the name", "compute", one, []byte("compute\n"), codes.PermissionDenied, faultv1.Reason_KEY_NOT_YOURS},
		{"a workspace without a vault", "compute", resource.NewUID("ws"), wrapped, codes.FailedPrecondition, 0},
		{"no uid", "compute", "../ws", wrapped, codes.InvalidArgument, 0},
	} {
		got, err := l.vault(tc.service).UnwrapDataKey(ctx, &keyvaultv1.UnwrapDataKeyRequest{OwnerUid: tc.owner, Wrapped: tc.wrapped})
		want(t, tc.name, err, tc.code, tc.reason)
		if err == nil && !bytes.Equal(got.GetPlaintext(), made.GetPlaintext()) {
			t.Errorf("%s: another key", tc.name)
		}
	}
	for _, service := range []string{"gateway", "identity", "keyvault"} {
		_, err := l.vault(service).GenerateDataKey(ctx, &keyvaultv1.GenerateDataKeyRequest{OwnerUid: one})
		want(t, service, err, codes.PermissionDenied, 0)
	}
	for _, service := range []string{"compute", "gateway"} {
		_, err := l.vault(service).DeleteVault(ctx, &keyvaultv1.DeleteVaultRequest{WorkspaceUid: one})
		want(t, "a vault deleted by "+service, err, codes.PermissionDenied, 0)
	}
	// A user's token opens no way around the rule.
	_, err = l.vault("gateway").UnwrapDataKey(l.as("owner"), &keyvaultv1.UnwrapDataKeyRequest{OwnerUid: one, Wrapped: wrapped})
	want(t, "the owner", err, codes.PermissionDenied, 0)
}

// D1, E1: with the vault goes all of it, at once, for good; data keys that are asked for meanwhile come before it or not at all.
func TestDeleteVault(t *testing.T) {
	l := newLab(t)
	ctx := t.Context()
	uid := l.uids[ws1]
	_, err := l.secrets().SetSecret(l.as("owner"), &keyvaultv1.SetSecretRequest{Parent: ws1, SecretId: "s", Value: []byte("v")})
	must(t, err)
	compute := l.vault("compute")
	var mu sync.Mutex
	var wrapped [][]byte
	var wg sync.WaitGroup
	started := make(chan struct{}, 4)
	for range 4 {
		wg.Go(func() {
			for i := 0; ; i++ {
				k, err := compute.GenerateDataKey(ctx, &keyvaultv1.GenerateDataKeyRequest{OwnerUid: uid})
				if i == 0 {
					started <- struct{}{}
				}
				if err != nil {
					want(t, "late", err, codes.FailedPrecondition, 0)
					return
				}
				mu.Lock()
				wrapped = append(wrapped, k.GetWrapped())
				mu.Unlock()
			}
		})
	}
	for range 4 {
		<-started
	}
	for range 2 {
		_, err = l.vault("workspace").DeleteVault(ctx, &keyvaultv1.DeleteVaultRequest{WorkspaceUid: uid})
		must(t, err)
	}
	wg.Wait()
	if len(wrapped) == 0 {
		t.Fatal("no key was made before")
	}
	for _, w := range wrapped {
		if _, err := compute.UnwrapDataKey(ctx, &keyvaultv1.UnwrapDataKeyRequest{OwnerUid: uid, Wrapped: w}); fault.Code(fault.FromStatus(err)) != codes.FailedPrecondition {
			t.Fatalf("a data key opens after its vault: %v", err)
		}
	}
	_, err = compute.GenerateDataKey(ctx, &keyvaultv1.GenerateDataKeyRequest{OwnerUid: uid})
	want(t, "a new data key", err, codes.FailedPrecondition, 0)
	_, err = l.secrets().AccessSecret(l.as("owner"), &keyvaultv1.AccessSecretRequest{Name: ws1 + "/secrets/s"})
	want(t, "its secret", err, codes.FailedPrecondition, 0)
	_, err = l.vault("workspace").CreateVault(ctx, &keyvaultv1.CreateVaultRequest{WorkspaceUid: uid})
	want(t, "the vault again", err, codes.FailedPrecondition, 0)
	_, err = compute.GenerateDataKey(ctx, &keyvaultv1.GenerateDataKeyRequest{OwnerUid: l.uids[ws2]})
	want(t, "the other vault", err, codes.OK, 0)
}

// E1: who may do what with a secret, and that its value was shown has a record.
func TestSecrets(t *testing.T) {
	l := newLab(t)
	c := l.secrets()
	set := func(user, id string, value []byte) error {
		_, err := c.SetSecret(l.as(user), &keyvaultv1.SetSecretRequest{Parent: ws1, SecretId: id, Value: value, ContentType: "text/plain"})
		return err
	}
	access := func(user, name string, version int64) (*keyvaultv1.AccessSecretResponse, error) {
		return c.AccessSecret(l.as(user), &keyvaultv1.AccessSecretRequest{Name: name, Version: version})
	}
	most := bytes.Repeat([]byte{0xff}, 64<<10)
	want(t, "64 KiB", set("owner", "s", most), codes.OK, 0)
	want(t, "a byte more", set("owner", "s", append(most, 0)), codes.InvalidArgument, 0)
	want(t, "empty", set("owner", "s", nil), codes.InvalidArgument, 0)
	want(t, "a bad id", set("owner", "a/b", []byte("v")), codes.InvalidArgument, 0)
	want(t, "by a reader", set("reader", "s", []byte("v")), codes.PermissionDenied, 0)
	want(t, "by the owner of another workspace", set("two", "s", []byte("v")), codes.NotFound, 0)
	want(t, "a second version", set("owner", "s", []byte("second")), codes.OK, 0)
	l.events()

	got, err := access("owner", ws1+"/secrets/s", 0)
	if want(t, "access", err, codes.OK, 0); string(got.GetValue()) != "second" || got.GetVersion().GetVersion() != 2 || got.GetVersion().GetContentType() != "text/plain" {
		t.Errorf("%v", got.GetVersion())
	}
	if got, err = access("owner", ws1+"/secrets/s", 1); err != nil || !bytes.Equal(got.GetValue(), most) {
		t.Errorf("the first version: %v", err)
	}
	seen := 0
	for _, ev := range l.events() {
		if ev.GetAction() == "keyvault/secrets/access" && ev.GetResult() == telemetryv1.ActivityEvent_RESULT_SUCCEEDED && ev.GetPrincipal() == "usr_owner" {
			seen++
		}
	}
	if seen != 2 {
		t.Errorf("%d records of 2 values shown", seen)
	}
	_, err = access("reader", ws1+"/secrets/s", 0)
	want(t, "access by a reader", err, codes.PermissionDenied, 0)
	_, err = access("two", ws1+"/secrets/s", 0)
	want(t, "access from another workspace", err, codes.NotFound, 0)
	_, err = access("owner", ws2+"/secrets/s", 0)
	want(t, "the same name in another workspace", err, codes.NotFound, 0)
	_, err = access("owner", ws1+"/secrets/s", 3)
	want(t, "a version that is not", err, codes.NotFound, 0)

	disable := func(version int64, disabled bool) {
		t.Helper()
		v, err := c.SetSecretDisabled(l.as("owner"), &keyvaultv1.SetSecretDisabledRequest{Name: ws1 + "/secrets/s", Version: version, Disabled: disabled})
		if must(t, err); v.GetDisabled() != disabled {
			t.Errorf("%v", v)
		}
	}
	disable(2, true)
	if got, err = access("owner", ws1+"/secrets/s", 0); err != nil || got.GetVersion().GetVersion() != 1 {
		t.Errorf("the newest enabled one: %v, %v", got.GetVersion(), err)
	}
	_, err = access("owner", ws1+"/secrets/s", 2)
	want(t, "the disabled one", err, codes.FailedPrecondition, faultv1.Reason_SECRET_DISABLED)
	_, err = c.DeleteSecret(l.as("owner"), &keyvaultv1.DeleteSecretRequest{Name: ws1 + "/secrets/s"})
	must(t, err)
	_, err = access("owner", ws1+"/secrets/s", 1)
	want(t, "after the end", err, codes.NotFound, 0)
}

// Page tokens belong to one list: of one kind, in one workspace.
func TestPages(t *testing.T) {
	l := newLab(t)
	for _, id := range []string{"a", "b", "c"} {
		for _, ws := range []string{ws1, ws2} {
			_, err := l.secrets().SetSecret(l.as("owner"), &keyvaultv1.SetSecretRequest{Parent: ws, SecretId: id, Value: []byte("v")})
			must(t, err)
			_, err = l.keys().CreateKey(l.as("owner"), &keyvaultv1.CreateKeyRequest{Parent: ws, KeyId: id})
			must(t, err)
		}
	}
	list := func(parent string, size int32, token string) (*keyvaultv1.ListSecretsResponse, error) {
		return l.secrets().ListSecrets(l.as("reader"), &keyvaultv1.ListSecretsRequest{Parent: parent, PageSize: size, PageToken: token})
	}
	var names []string
	token := ""
	for range 4 {
		page, err := list(ws1, 1, token)
		must(t, err)
		for _, s := range page.GetSecrets() {
			names = append(names, s.GetName())
		}
		if token = page.GetNextPageToken(); token == "" {
			break
		}
	}
	if len(names) != 3 || names[0] != ws1+"/secrets/a" || names[2] != ws1+"/secrets/c" || token != "" {
		t.Errorf("pages: %v, %q", names, token)
	}
	page, err := list(ws1, 1, "")
	must(t, err)
	token = page.GetNextPageToken()
	_, err = list(ws2, 1, token)
	want(t, "of another workspace", err, codes.InvalidArgument, faultv1.Reason_PAGE_TOKEN_INVALID)
	_, err = l.keys().ListKeys(l.as("reader"), &keyvaultv1.ListKeysRequest{Parent: ws1, PageSize: 1, PageToken: token})
	want(t, "of another kind", err, codes.InvalidArgument, faultv1.Reason_PAGE_TOKEN_INVALID)
	_, err = list(ws1, 1, token+"A")
	want(t, "changed", err, codes.InvalidArgument, faultv1.Reason_PAGE_TOKEN_INVALID)
	_, err = list(ws1, -1, "")
	want(t, "a negative size", err, codes.InvalidArgument, 0)
}

// E1: a key does its work and never leaves; what it made opens with this key, this version and these associated data only.
func TestKeys(t *testing.T) {
	l := newLab(t)
	c := l.keys()
	ctx := l.as("owner")
	create := func(ws, id string) {
		t.Helper()
		_, err := c.CreateKey(ctx, &keyvaultv1.CreateKeyRequest{Parent: ws, KeyId: id})
		must(t, err)
	}
	create(ws1, "k")
	create(ws1, "other")
	create(ws2, "k")
	_, err := c.CreateKey(ctx, &keyvaultv1.CreateKeyRequest{Parent: ws1, KeyId: "k"})
	want(t, "create again", err, codes.AlreadyExists, 0)
	encrypt := func(ctx context.Context, plain []byte) (*keyvaultv1.EncryptResponse, error) {
		return c.Encrypt(ctx, &keyvaultv1.EncryptRequest{Name: ws1 + "/keys/k", Plaintext: plain, AssociatedData: []byte("aad")})
	}
	first, err := encrypt(ctx, []byte("plain"))
	must(t, err)
	_, err = encrypt(ctx, make([]byte, 64<<10+1))
	want(t, "more than 64 KiB", err, codes.InvalidArgument, 0)
	_, err = encrypt(l.as("reader"), []byte("plain"))
	want(t, "by a reader", err, codes.PermissionDenied, 0)
	biggest, err := encrypt(ctx, make([]byte, 64<<10))
	must(t, err)
	_, err = c.RotateKey(ctx, &keyvaultv1.RotateKeyRequest{Name: ws1 + "/keys/k"})
	must(t, err)
	second, err := encrypt(ctx, []byte("plain"))
	must(t, err)
	if first.GetVersion() != 1 || second.GetVersion() != 2 {
		t.Errorf("versions %d, %d", first.GetVersion(), second.GetVersion())
	}
	edit := func(at int, b byte) []byte {
		out := bytes.Clone(first.GetCiphertext())
		out[at] = b
		return out
	}
	for _, tc := range []struct {
		name, key string
		ct        []byte
		aad       string
		code      codes.Code
	}{
		{"version 1", ws1 + "/keys/k", first.GetCiphertext(), "aad", codes.OK},
		{"version 2", ws1 + "/keys/k", second.GetCiphertext(), "aad", codes.OK},
		{"the biggest", ws1 + "/keys/k", biggest.GetCiphertext(), "aad", codes.OK},
		{"another key", ws1 + "/keys/other", first.GetCiphertext(), "aad", codes.InvalidArgument},
		{"another key, without that version", ws1 + "/keys/other", second.GetCiphertext(), "aad", codes.InvalidArgument},
		{"the key of another workspace", ws2 + "/keys/k", first.GetCiphertext(), "aad", codes.InvalidArgument},
		{"no such key", ws1 + "/keys/absent", first.GetCiphertext(), "aad", codes.NotFound},
		{"other associated data", ws1 + "/keys/k", first.GetCiphertext(), "bad", codes.InvalidArgument},
		{"no associated data", ws1 + "/keys/k", first.GetCiphertext(), "", codes.InvalidArgument},
		{"renumbered", ws1 + "/keys/k", edit(8, 2), "aad", codes.InvalidArgument},
		{"version 0", ws1 + "/keys/k", edit(8, 0), "aad", codes.InvalidArgument},
		{"a version without end", ws1 + "/keys/k", edit(1, 0xff), "aad", codes.InvalidArgument},
		{"another format", ws1 + "/keys/k", edit(0, 2), "aad", codes.InvalidArgument},
		{"only the head", ws1 + "/keys/k", first.GetCiphertext()[:9], "aad", codes.InvalidArgument},
		{"cut", ws1 + "/keys/k", first.GetCiphertext()[:20], "aad", codes.InvalidArgument},
	} {
		got, err := c.Decrypt(ctx, &keyvaultv1.DecryptRequest{Name: tc.key, Ciphertext: tc.ct, AssociatedData: []byte(tc.aad)})
		want(t, tc.name, err, tc.code, 0)
		if tc.code == codes.OK && tc.name != "the biggest" && string(got.GetPlaintext()) != "plain" {
			t.Errorf("%s: %q", tc.name, got.GetPlaintext())
		}
	}
	disable := func(version int64) {
		t.Helper()
		_, err := c.SetKeyDisabled(ctx, &keyvaultv1.SetKeyDisabledRequest{Name: ws1 + "/keys/k", Version: version, Disabled: true})
		must(t, err)
	}
	disable(1)
	_, err = c.Decrypt(ctx, &keyvaultv1.DecryptRequest{Name: ws1 + "/keys/k", Ciphertext: first.GetCiphertext(), AssociatedData: []byte("aad")})
	want(t, "of a disabled version", err, codes.FailedPrecondition, faultv1.Reason_KEY_DISABLED)
	disable(2)
	_, err = encrypt(ctx, []byte("plain"))
	want(t, "all disabled", err, codes.FailedPrecondition, faultv1.Reason_KEY_DISABLED)
}
