// Package factor owns the arithmetic of second factors: codes by time (TOTP, RFC 6238), recovery codes, and the answers of security keys (Web
// Authentication Level 2). It keeps nothing: what is stored, counted and used up is the service's.
//
// Trust boundary: codes are typed by strangers who know a password. What is no code by its form costs nothing.
//
// Invariants: a code of a step is accepted while the step, the one before or the one after lasts, and only if the step is later than the
// last one that was accepted, so a code works once, and one that was seen before it came is dead when a later one was taken. All candidates
// are computed and compared in constant time, whichever fits. Digits are ASCII's alone; nothing else is read as one.
//
// Of a security key's answer nothing is taken that is not of the challenge, origin, name and user that were asked, by a key of the user's that was there. That
// a challenge is answered once is the service's to see to.
//
// Failure: a secret that cannot be used is an error and no "wrong code".
package factor
