// Package fence makes a revocation true when the call returns (A3, item 8 of identity in depth): once Change has returned nil for a
// change of security state, nothing that was decided on the state before it takes effect any more, in any process of the mesh.
//
// An instance of a service is a member: it holds a lease in etcd and publishes up to which revision it has applied the state. Who
// changes the state writes that into etcd's log and waits until every member has published that revision, or its lease has ended. A
// member decides with a View, and takes effect through Finish, which lets nothing pass that was decided on another View than the
// present one, or after the member's own deadline, which is before the lease's. docs/adr/0028-the-fence.md has the shape and what was
// decided; the rules below are named in the code and in the tests, each of which fails without its rule:
//
//	r1  the deadline counts from when a renewal was sent      r7  it is on the clock that goes on in suspend
//	r2  registered first, read afterwards                     r8  a renewal counts if its leader is still the leader
//	r3  published when no section on an older view is open    r9  a repeated change waits as the first one did
//	r4  checked before the effect, against the same life      r10 a key belongs to one lease
//	r5  each message of a stream is an effect                 r11 members are listed in the transaction of the change
//	r6  a new lease begins with a new load                    r12 a lease is given up after the drain; r13 what outlives it has a mark
//
// Of class SQLFence the rules that say what a member can still do after its lease rest on no clock: each transaction locks a row of its life,
// which whoever waits deletes before the life counts as over (Rows, docs/adr/0043-rows-of-lives.md).
//
// State is too large for etcd, so the log has one key an owner: the number of the last change in the owner's own ordered stream. A
// member's revision rises when its streams have brought everything up to the numbers of that revision (Delivered).
//
// Trust boundary: etcd and everybody who may write below Prefix. A member is believed in what it says of itself.
//
// Invariants: the zero View is refused, and so is everything while no lease is confirmed. One life of a member is one lease, one key,
// created once. A key goes by its lease, by its member after a drain, or by proof that its process is dead.
//
// Failure: closed. A member that cannot confirm its lease, or cannot apply what is in the log within Times.Watch, stops deciding and
// says why (FENCE_LOST); it comes back by itself. A Change that cannot know returns ErrPending or an error; repeat it, and it waits again.
//
// A Fence is safe for concurrent use. View and Finish do not touch the network.
package fence
