// Package console is the web console: pages for people, made on the server.
//
// # What it owns
//
// The pages below /console and nothing behind them: each page is a few ruled RPCs, called with the token of the browser's session, and
// decided by the services that answer. A page shows no more than the same caller would read by the CLI.
//
// # Trust boundary
//
// A browser proves its session by one cookie (`__Host-`, HttpOnly, Secure, SameSite=Strict) that holds the session's token; it is set
// only for a code that identity takes once, which `redoubt console` makes. What changes something is a POST from our own pages
// (net/http.CrossOriginProtection). Everything that tenants wrote passes html/template; pages run one script of ours and no other
// (Content-Security-Policy), and charts are images, in which no script runs at all.
//
// # Invariants
//
// The console keeps no state: neither sessions nor pages. No token and no code is logged, or stands in a page.
//
// # How it fails
//
// An RPC's refusal becomes a page with its status, its words and its request id. A session that is over becomes the page that says how
// to begin another one, and the cookie is cleared.
package console
