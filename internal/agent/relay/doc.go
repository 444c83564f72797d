// Package relay joins the workers of a replica with inference: for each connection that a worker asks for at the run's endpoint it
// dials inference's listener for replicas, and copies bytes both ways (A5, D10).
//
// It owns those connections, from the worker's request to their end. What the bytes mean is the host's and inference's affair.
//
// # Trust boundary
//
// The worker's side is hostile: whatever runs in the sandbox can ask. All that it gains is to answer requests to its own deployment,
// which it does anyway, over as many connections as the replica has workers, and no more. Nothing that it writes is read here but the
// request for the upgrade, and nothing of the agent's identity reaches it. The other side proves that it is inference, by the SPIFFE ID
// in its certificate, before a byte goes out.
//
// # Invariants
//
// One worker, one connection: neither is used again when the other ends. A worker is answered 101 only after inference has said that it
// takes it, so what it reads afterwards is requests. Copying reads nothing into the bytes, gathers no more than a buffer in each
// direction, and so passes on who is slow to who is fast.
//
// # Failure
//
// Where inference cannot be reached, or does not take the run, the worker reads 503 and asks again. When inference goes, the connections
// break, and workers ask again until it is back. Close ends all of them.
package relay
