//go:build redoubt_break_aad

package envelope

// bind covers nothing: every suite that claims to notice a ciphertext in the wrong place must fail with this.
func bind(AAD, []byte) []byte { return nil }
