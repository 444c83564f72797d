package installation

import (
	"context"
	"strings"
	"time"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/internal/cli/show"
)

const (
	// rootsEnd is how long before a root's end somebody has to know: time enough for a rotation, and for whoever believes a file.
	rootsEnd = 30 * 24 * time.Hour
	// handLimit is how long a rotation by hand may stand before it looks forgotten.
	handLimit = 7 * 24 * time.Hour
)

// examineRoots looks at the rotation of the mesh's root.
func (a verbs) examineRoots(ctx context.Context, d *diagnosis, keys identityv1.KeyServiceClient) {
	all, err := keys.ListAuthorities(ctx, &identityv1.ListAuthoritiesRequest{})
	if err != nil {
		p := client.Describe(err)
		d.unknown("root of the mesh", p.Message, p.Next)
		return
	}
	rotation(d, all)
}

// rotation judges what identity says of its roots.
func rotation(d *diagnosis, all *identityv1.ListAuthoritiesResponse) {
	const what = "root of the mesh"
	c := all.GetClock()
	for _, r := range all.GetAuthorities() {
		state := strings.ToLower(strings.TrimPrefix(r.GetState().String(), "AUTHORITY_STATE_"))
		found := state + ", made " + show.Clock(r.GetCreateTime()) + ", ends " + show.Clock(r.GetExpireTime())
		switch {
		case r.GetState() == identityv1.AuthorityState_AUTHORITY_STATE_ACTIVE && r.GetExpireTime().AsTime().Sub(d.now()) < rootsEnd:
			d.wrong(what, found, "rotate it before: redoubt ca prepare (docs/operations.md)")
		case r.GetState() == identityv1.AuthorityState_AUTHORITY_STATE_ACTIVE:
			d.ok(what, found)
		case c.GetLate() && !c.GetManual():
			d.wrong("rotation of the root", state+", later than it can be while all is well: "+reason(c), "see that who is named runs and reaches identity; redoubt ca list")
		case d.now().Sub(r.GetCreateTime().AsTime()) > handLimit && d.now().Sub(r.GetSignEndTime().AsTime()) > handLimit && (c == nil || c.GetManual()):
			d.unknown("rotation of the root", "begun by hand, and left "+state+" for longer than a week: two roots are believed", "go on with it, or back: redoubt ca list")
		default:
			d.ok("rotation of the root", state+" beside the one that signs")
		}
	}
	if len(all.GetAuthorities()) == 1 && c.GetLate() {
		d.wrong("rotation of the root", "the next root should have been prepared at "+show.Clock(c.GetNextTime()), "see identity's log: no instance leads, or its database cannot be written")
	}
}

func reason(c *identityv1.AuthorityClock) string {
	if c.GetWaitsFor() != "" {
		return c.GetWaitsFor()
	}
	return "no instance of identity takes the step"
}
