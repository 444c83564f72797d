// Package models is the registry: models, their numbered versions, aliases, and the files that a version consists of (H6).
//
// What it owns: the tables of models in inference's database, the blobs of their files, and the keys that sign manifests. A version's
// manifest names every file with its digest and says where the files came from; it is signed when the version is made and never changes.
//
// Trust boundary: as every service, behind the chain. Paths and contents come from whoever registers, and are later made into files on a
// machine of another, so a path is plain and relative. Outputs of a run are read from compute in the caller's name: who may not read them
// registers nothing. Database and blobs are not believed: what does not open at its place, or is not what was signed, is not given out.
//
// Invariants: a version is there with all of its files or not at all. Its number is given once. What a deployment holds stays, with the
// name that it was found by. Blobs without a version are those that a row names as left over, and are removed.
//
// Failure: what is not as it was signed is DATA_DAMAGED, and none of it is sent. A registration that breaks off leaves nothing that can be
// seen; what it left on disk goes at once, or with the next sweep.
package models
