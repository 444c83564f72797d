// Package federation lets people in whose home is an OpenID provider that we did not write: Dex, run in this process. It is a module of its own, so
// that Dex and all that it brings stay out of ours.
package federation
