// Package envelope turns what a tenant wrote into ciphertext before it reaches SQL or a blob, bound to what it is (D1, D2).
//
// # The chain
//
// A Source (keyvault for workspaces, a seal for a service's own records) wraps one 32-byte data key for each owner; the wrapped key
// stands in the table data_keys of the service's database. From the data key four keys are derived with HKDF-SHA-256 under labels of
// their own: for records, for streams, for MACs, for blob names. Derivation was chosen over a Tink keyset for each use, so that the source
// wraps and rotates 32 bytes of which it knows the shape, and no serialized keyset has to be kept in step with it. The primitives
// themselves are Tink's: XAES-256-GCM for records (its 192-bit nonces may be random for as many records as a workspace will ever
// have, so nothing is counted), AES-256-GCM-HKDF in segments of 64 KiB for streams. MACs are HMAC-SHA-256.
//
// # Invariants
//
// A ciphertext opens only with the AAD that it was sealed with: owner, kind, id, field and version, encoded with lengths so that no two
// AADs look the same. So a row that is copied to another place, or an older version put back, does not open. Owner, kind and id are never
// empty. A ciphertext names its format and its key, both authenticated. MACs and blob names of different kinds are under different
// inputs, so that equal texts of different kinds do not show as equal. The first use of an owner is free of races: whoever stores the key
// first wins, and all others read it back. A key is stored only after its wrapped form was opened once.
//
// # Trust boundary
//
// Whoever holds the database and the blobs learns owners, record kinds, lengths, times, and which texts of a kind under one parent are
// equal; nothing else. Putting back a whole older database is not found here. A stolen process memory holds the keys that were used
// within Config.TTL: Go gives no way to keep derived keys out of it, and Forget lets them go only as far as the garbage collector does.
//
// # How it fails
//
// What does not open is DATA_DAMAGED, and nothing more is said: not whether the key, the place or a byte was wrong. A key that the source
// does not give (disabled, away) fails the call with the source's error; nothing is decided from an expired copy. After Forget or Destroy
// keys that callers still hold refuse to seal and open, streams in progress included. After Destroy the owner never gets a key again.
//
// # Build tags
//
// redoubt_break_aad binds ciphertexts to nothing and redoubt_break_encryption encrypts nothing; they exist so that the suites can
// show that they notice. No release carries them.
package envelope
