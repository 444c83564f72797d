//go:build !redoubt_break_fence

package rpc

// onceForAll reports whether a stream is decided once, when it begins: never, since each message is an effect (ADR 28, r5). With the build tag
// redoubt_break_fence it can be, to show that the checks on whole installations notice.
func onceForAll() bool { return false }
