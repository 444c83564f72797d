//go:build redoubt_break_peer

package rpc

// anyPeer opens the methods for services of the mesh to every peer, to see that tests notice. Never in a release.
const anyPeer = true
