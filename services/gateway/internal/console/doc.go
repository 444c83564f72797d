// Package console is the web console: pages for people, made on the server.
//
// # What it owns
//
// The pages below /console and nothing behind them: each page is a few ruled RPCs, called with the token of the browser's session, and
// decided by the services that answer. A page shows no more than the same caller would read by the CLI.
//
// # Trust boundary
//
// A browser signs in at the OpenID provider (ADR 38), or joins the session of `redoubt console` by a code that identity takes once. It proves
// its session by one cookie (`__Host-`, HttpOnly, Secure, SameSite=Strict) that holds the token and the key that it is bound to; each call to a
// service carries a proof made with it. What changes something is a POST from our own pages
// (net/http.CrossOriginProtection). Everything that tenants wrote passes html/template; pages run one script of ours and no other
// (Content-Security-Policy), and charts are images, in which no script runs at all.
//
// # Invariants
//
// The console keeps no state: neither sessions nor pages. No token and no code is logged, or stands in a page.
//
// # How it fails
//
// An RPC's refusal becomes a page with its status, its words and its request id. One that asks for a fresh sign-in sends the browser to the
// provider and back; nothing is repeated by itself. A session that is over becomes the page that begins another one, and the cookie is cleared.
package console
