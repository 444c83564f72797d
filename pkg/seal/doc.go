// Package seal is the root of a service's key chain: what a service wraps with its seal, only that service's seal file opens. Each
// service has one of its own, so that a stolen file opens one service.
//
// # What it owns
//
// The seal file (seal.key, E3's embedded default): one 32-byte key, made at first start and never changed or overwritten by this
// package. The keeper behind it is gocloud.dev/secrets, so that a cloud KMS or another vault can stand in the file's place.
//
// # Trust boundary
//
// Whoever reads the seal file opens everything below it: the file must be private to the service's user, and is refused when it is
// not. Backups of data and of the seal belong in different hands. What is stored beside wrapped keys needs no secrecy.
//
// # Invariants
//
// A seal file appears complete and on stable storage, or not at all, and only where none was: it is written under another name and
// linked into place. Wrapped bytes are bound to the additional data they were wrapped with, and open with no other. Fingerprint tells
// seals apart without telling anything of the key; a service stores it beside its data and calls Check at start, so that data that
// was sealed by another key is named as that and not as damaged.
//
// # How it fails
//
// A missing, foreign, too widely readable or damaged seal file is an error that names the file and touches nothing: there is no way
// to mend it but a backup. Wrapped bytes that do not open are DATA_DAMAGED, and nothing more is said. A closed seal opens nothing.
// Close wipes this package's copy of the key; the copies of the keeper and of Go's memory management are out of its reach.
package seal
