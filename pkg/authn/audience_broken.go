//go:build redoubt_break_audience

package authn

// audienceIs is broken on purpose: with this build tag the tests must fail.
func audienceIs(_, _ string) bool { return true }
