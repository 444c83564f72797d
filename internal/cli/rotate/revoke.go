package rotate

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/svid"
)

// revoke revokes a root. Where this command line believes it, it believes those that stay from then on.
func (a verbs) revoke(ctx context.Context, c *client.Client, pin string, force bool) (*identityv1.ListAuthoritiesResponse, error) {
	keys := identityv1.NewKeyServiceClient(c.Conn())
	all, err := keys.ListAuthorities(ctx, &identityv1.ListAuthoritiesRequest{})
	if err != nil && status.Code(err) != codes.PermissionDenied { // who may revoke and not look goes on without knowing what stays
		return nil, err
	}
	believed, err := c.Context().RootsPEM()
	if err != nil {
		return nil, err
	}
	stay, believes := staying(believed, all, pin)
	again := keys
	if believes {
		after, err := c.Believing(stay)
		if err != nil {
			return nil, err
		}
		defer func() { _ = after.Close() }()
		again = identityv1.NewKeyServiceClient(after.Conn())
	}
	r, err := revoked(ctx, keys, again, pin, force)
	if err != nil || !believes {
		return r, err
	}
	kept, err := a.Believe(stay)
	switch {
	case err != nil:
		a.Say("the root is revoked, and the context believes it still: %v", err)
	case !kept:
		a.Say("the root is revoked: replace it where --ca names a file (redoubt ca show)")
	}
	return r, nil
}

// staying are the roots that are believed once pin is gone: those of the installation in its place. believes is false where it was not believed,
// and nothing changes.
func staying(believed []byte, all *identityv1.ListAuthoritiesResponse, pin string) (stay []byte, believes bool) {
	var out bytes.Buffer
	add := func(der []byte) { _ = pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: der}) }
	seen := make(map[string]bool)
	for rest := believed; ; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			break
		}
		cert, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			continue
		}
		if svid.Pin(cert) == pin {
			believes = true
			continue
		}
		seen[svid.Pin(cert)] = true
		add(b.Bytes)
	}
	if !believes || len(all.GetAuthorities()) == 0 {
		return believed, false
	}
	for _, root := range all.GetAuthorities() {
		if root.GetPin() != pin && !seen[root.GetPin()] {
			add(root.GetRoot())
		}
	}
	return out.Bytes(), true
}

// revoked orders it. By force the order may hang on a connection of that root, which is closed before its answer comes; it is repeated then, which
// finds it done, by a connection that believes the roots that stay.
func revoked(ctx context.Context, keys, again identityv1.KeyServiceClient, pin string, force bool) (*identityv1.ListAuthoritiesResponse, error) {
	r, err := keys.RevokeAuthority(ctx, &identityv1.RevokeAuthorityRequest{Pin: pin, Force: force})
	for tries := 0; force && status.Code(err) == codes.Unavailable && tries < 3; tries++ {
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(rpc.RepeatFirst):
		}
		r, err = again.RevokeAuthority(ctx, &identityv1.RevokeAuthorityRequest{Pin: pin, Force: force})
	}
	return r, err
}
