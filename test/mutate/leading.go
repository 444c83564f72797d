package main

const (
	leading  = "pkg/leader/leader.go"
	settling = "services/workspace/saga.go"
	minting  = "services/identity/keys.go"
	guarding = "pkg/edge/guard.go"
	heading  = "pkg/edge/headers.go"
	owning   = "services/workspace/access.go"
	typing   = "services/identity/internal/provider/device.go"
	stored   = "services/identity/internal/store/db/queries.sql.go"
	carrying = "services/gateway/internal/onward/onward.go"
)

// leaders are the checks of what comes between: they keep who leads nothing from writing, what finishes removals that were left half done from
// those that a call is at (D10), a token from outliving the account that ends while it is made (A3), and one client from taking everybody's time (D10).
var leaders = []mutant{
	{"a term that nobody has won writes", leading, `if t == nil || t.claim == "" {`, "if t == nil {", "^Test"},
	{"a removal is taken over from under its call", settling, "from where.\n\tdefer s.claim(sc.UID)()", "from where.\n\tdefer s.claim(\"\")()", "^TestDelete"},
	{"a token outlives the account's end", minting, "return token, c, s.unended(ctx, q, c.Subject, until)", "return token, c, nil", "^TestNoTokenOutlives"},
	{"a client may begin any number of streams", guarding, "if idle && !g.begins(1) {", "if false {", "^TestGuard"},
	{"large headers cost nothing", heading, "n > 0 && !g.begins(n)", "n > 0 && false", "^TestGuard"},
	{"headers may be larger than they look", heading, "b.size > mostBlock {", "false {", "^TestGuard"},
	{"two Owners go at the same moment", owning, "if !slices.Contains(owners, kept) {", "if !slices.Contains(owners, kept) && len(owners) < 0 {", "^TestOwners"},
	{"a device is answered twice", stored, "WHERE user_mac = $1 AND state = 0 AND", "WHERE user_mac = $1 AND state >= 0 AND", "^TestAttackDevices$@services/identity"},
	{"a user code is typed after its answer", typing, "if !ok || d.State != store.DeviceWaits {", "if !ok {", "^TestAttackDevices$@services/identity"},
	{"a device code works for another client", typing, "|| d.ClientID != c.id ||", "||", "^TestAttackDevices$@services/identity"},
	{"what gRPC cannot carry passes", carrying, "return r < 0x20 || r > 0x7e", "return r < 0", "^TestUnreadable@services/gateway"},
	{"the making of a workspace is taken over", settling, "return s.claims[sc.UID] > 0 ||", "return", "^Test(Create|Delete)"},
}
