// Package blob stores bytes by name: snapshots, outputs, logs, models, always ciphertext by the time they come here (pkg/envelope).
// A Store is thin over gocloud.dev/blob: a folder of one process, or a part of an S3 bucket that replicas share (ADR 23).
//
// # What it owns
//
// A folder: <data>/<service>/blob: the blobs under their names, .tmp with writes in progress, .lock, held by flock for the life of
// the Store, since a second process would sweep the first one's writes; and during a backup .held, with what was deleted meanwhile. No sidecar
// files: a name and its bytes are all there is. Of a bucket: the objects below its prefix, and unfinished uploads there that are older than a
// day; during a backup nothing is held there, and what is deleted is gone.
//
// # The drivers
//
// The folder is served by a driver of this package's own, and not by gocloud's fileblob, which acknowledges before anything is on
// stable storage, writes its temporary files beside the blobs or in the process's TMPDIR (so that sweeping them means walking the
// whole tree), gives them the mode of the umask, and follows links out of the folder. Here a write goes to .tmp, is fsynced, renamed
// into place, and the folder fsynced, with every folder above it that this process has not yet seen durable; only then does Put
// return. Of a PutAll the bytes of all are on disk before the first is renamed, and a folder is fsynced once for all (ADR 27). Every path is resolved by os.Root, so nothing above the folder is ever opened. Files are 0600, folders 0700.
//
// A bucket is reached by https alone, with credentials from a file, and with the SHA-256 of every body under its signature, since a store may
// otherwise take what came before a connection broke for all of it. More than 8 MiB goes in parts; a name appears with the last request.
// Reads are of one version, and are taken up again where a connection broke.
//
// # Invariants
//
// A name shows either the whole of one Put or of another, never a part. What Put acknowledged survives a kill and a power cut (in a
// bucket: as its store promises). After a kill nothing of an unfinished Put stays longer than until the next Open (in a bucket: until one that
// comes a day later). Names are relative, clean and of [a-z0-9_.-] and '/'; no part
// begins with a dot, so that none can be the store's own.
//
// # How it fails
//
// A full disk is STORAGE_FULL; nothing is half written, what stood under the name stays, and it ends when there is space. A failed fsync
// leaves the state of the disk unknown: the Store then refuses every Put until it is opened anew. An unknown name is NOT_FOUND. Errors of
// the reader given to Put come back as they are. Messages hold neither names nor paths, but for those of Open, which are the operator's.
//
// A bucket that does not answer, refuses the credentials, or is gone is UNAVAILABLE, after at most 4 tries of each request and never as NOT_FOUND; a
// connection on which nothing moves for a minute is cut. Whether a Put whose last answer was lost has come to stand is looked up, and is open
// where that fails too: then it may stand, whole.
//
// # Trust boundary
//
// Whoever can write the folder or the bucket can replace or remove any blob: what it is, and that it is whole, is proved by pkg/envelope.
package blob
