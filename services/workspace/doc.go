// Package workspace is the service that knows what there is and who may do what with it: the tree of subscriptions, resource groups
// and workspaces, the role assignments in it, and the code snapshots of each workspace.
//
// What it owns: the tree with its names, the assignments (B1, B2, B4), the authorization state that every service of the mesh decides
// with, the folders of code that runs start from (H2), and the order in which a workspace comes to be and goes (H1).
//
// Trust boundary: callers come through the chain of pkg/rpc, which has decided whether they may; paths, digests and contents of
// snapshots are hostile. Of its peers it trusts identity to say who exists. The database and the blobs may be read by others: names
// are ciphertext and found by HMAC, the content of snapshots is under the workspace's own key from keyvault.
//
// Invariants:
//   - A workspace is there with its managed identity, its vault and its assignments, or not at all. Until then, and from the
//     beginning of its removal, no call reaches anything in it.
//   - A change of the authorization state takes the next number from one locked row, in its own transaction with its audit record. This
//     service decides with it before the call returns. Each stream that is connected then has been sent it too, or
//     two seconds have passed: a service that was not connected meanwhile may still decide with the state before.
//   - Someone is always Owner of the installation, once someone was.
//   - A blob is visible once it is stored in full and its content has the digest that was announced; a snapshot once all of its blobs
//     are. The same tree is the same snapshot.
//   - What was deleted cannot be read: the keys that it was under are destroyed with the row.
//
// Failure: closed. If a part of a workspace cannot be made, what was made is taken back; if that fails too, or the process
// ends in between, Run finds the row and goes on until the peers are there again. A removal that has begun is finished the same
// way, and never turned back, but for compute's refusal at the very beginning while runs are going.
package workspace
