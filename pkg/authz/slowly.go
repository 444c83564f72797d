//go:build !redoubt_break_fence

package authz

// slowly is nothing: with the build tag redoubt_break_fence what is applied may come late, so that the checks of whole installations meet it.
func slowly[M any](apply func(*M) error) func(*M) error { return apply }
