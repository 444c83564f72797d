//go:build !redoubt_break_fence

package fence

// broken is no rule: with the build tag redoubt_break_fence the environment switches some off, to show that the checks on whole installations
// notice (test/fault/revoke).
func broken() off { return off{} }

func widened() func(point string) { return nil }
