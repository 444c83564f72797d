package main

const (
	leading  = "pkg/leader/leader.go"
	settling = "services/workspace/saga.go"
	minting  = "services/identity/keys.go"
	guarding = "pkg/edge/guard.go"
	heading  = "pkg/edge/headers.go"
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
	{"the making of a workspace is taken over", settling, "return s.claims[sc.UID] > 0 ||", "return", "^Test(Create|Delete)"},
}
