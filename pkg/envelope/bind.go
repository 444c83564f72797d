//go:build !redoubt_break_aad

package envelope

// bind is what the authentication of a ciphertext covers beside its plaintext.
func bind(a AAD, header []byte) []byte { return a.encode(header) }
