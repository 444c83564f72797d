// Package front owns the port that strangers reach, below HTTP: its TLS, its certificate, and how many connections stand on it.
//
// Trust boundary: the network is in front of it. It authenticates nobody.
//
// Invariants: TLS 1.2 or newer with AEAD ciphers only; the certificate is that of the moment at each handshake; one address cannot take
// all the connections; who does not read what is sent to him is cut.
//
// Failure: files of a certificate that are broken leave the one before in use, and a line in the log. A connection too many is closed.
package front
