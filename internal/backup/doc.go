// Package backup takes what all services of an installation keep, as of one moment, into one encrypted archive, and makes an installation of
// it again.
//
// # What it owns
//
// The service BackupService that every node with a store serves; Take, which asks all of them at once and writes the archive; Reader, which
// believes an archive only as far as it has checked it; Verify and Restore.
//
// # Invariants
//
// Every change that was acknowledged before Take began is in the archive, and no change is in it half: while the cut is made, all stores
// hold their writers at the same time. Writers are held for holdLimit at most, whatever Take does. An archive has every service of its head
// once, in that order, ends with its end, and nothing follows. What is restored is checked against digests and, with the seals, against
// each service's MAC, before anything can start on it; a restore that was interrupted is refused at start.
//
// # Trust boundary
//
// The archive may have lain anywhere. age proves that it was not changed since it was encrypted, and not who did that: everybody with the
// recipient can. Each part's MAC proves that the service made it for this backup, since only its seal opens the key; so a restore without
// seals does not exist. Rows and blobs are ciphertext where tenants wrote them, and stay so. Seals are never in an archive, nor are they asked for
// by any call.
//
// # How it fails
//
// A cut that was not made in time is tried again, and then an error; nothing is left. What does not fit is DATA_DAMAGED and named; what belongs
// elsewhere (other keys, other seals, a newer schema) is FAILED_PRECONDITION. Restore has changed nothing then, or says what it has left.
package backup
