//go:build !redoubt_break_audience

package authn

// audienceIs compares byte for byte. An empty audience matches nothing, not even an empty one.
func audienceIs(have, want string) bool { return want != "" && have == want }
