//go:build redoubt_break_authorize

package authz

// allowAll makes every decision an allowance, to see that tests notice. Never in a release.
const allowAll = true
