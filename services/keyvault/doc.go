// Package keyvault owns the vaults of an installation: the secrets and keys of each workspace, and the data keys that the other
// services encrypt with.
//
// Trust boundary: below this service there is only the seal. What callers get of a key is what it does (encrypt, decrypt), never
// its bytes; a data key goes to the one service that it was made for, told by the SPIFFE ID of its connection.
//
// Invariants: a vault's key is destroyed with the vault, and after that nothing that it wrapped opens again, in a backup
// either; a value shown or opened has a record before the answer; a disabled version does nothing.
//
// Failure: closed. Without the seal nothing opens; a row that does not open is reported as damaged and not guessed at.
package keyvault
