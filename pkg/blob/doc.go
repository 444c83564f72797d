// Package blob stores bytes by name: snapshots, outputs, logs, models, always ciphertext by the time they come here (pkg/envelope).
// A Store is thin over gocloud.dev/blob, so that an object store can take the place of the folder.
//
// # What it owns
//
// One folder, <data>/<service>/blob: the blobs under their names, .tmp with writes in progress, .lock, held by flock for the life of
// the Store, since a second process would sweep the first one's writes. No sidecar files: a name and its bytes are all there is.
//
// # The driver
//
// The folder is served by a driver of this package's own, and not by gocloud's fileblob, which acknowledges before anything is on
// stable storage, writes its temporary files beside the blobs or in the process's TMPDIR (so that sweeping them means walking the
// whole tree), gives them the mode of the umask, and follows links out of the folder. Here a write goes to .tmp, is fsynced, renamed
// into place, and the folder fsynced, with every folder above it that this process has not yet seen durable; only then does Put
// return. Every path is resolved by os.Root, so nothing above the folder is ever opened. Files are 0600, folders 0700.
//
// # Invariants
//
// A name shows either the whole of one Put or of another, never a part. What Put acknowledged survives a kill and a power cut. After a
// kill nothing of an unfinished Put stays longer than until the next Open. Names are relative, clean and of [a-z0-9_.-] and '/'; no part
// begins with a dot, so that none can be the store's own.
//
// # How it fails
//
// A full disk is STORAGE_FULL; nothing is half written, what stood under the name stays, and it ends when there is space. A failed fsync
// leaves the state of the disk unknown: the Store then refuses every Put until it is opened anew. An unknown name is NOT_FOUND. Errors of
// the reader given to Put come back as they are. Messages hold neither names nor paths, but for those of Open, which are the operator's.
//
// # Trust boundary
//
// Whoever can write the folder can replace or remove any blob: what it is, and that it is whole, is proved by pkg/envelope.
package blob
