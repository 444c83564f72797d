//go:build !redoubt_break_authorize

package authz

// allowAll is true only in builds that are broken on purpose.
const allowAll = false
