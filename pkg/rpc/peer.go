//go:build !redoubt_break_peer

package rpc

// anyPeer is true only in builds that are broken on purpose.
const anyPeer = false
