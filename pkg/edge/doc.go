// Package edge owns the ports that strangers reach, below HTTP: how many connections stand on one and from where, the PROXY protocol of a
// load balancer in front, TLS and its certificate, and the rates that addresses are held to.
//
// Trust boundary: the network is in front of it. It authenticates nobody. An address in a PROXY header is believed only from the networks
// that the configuration names; from everybody else such a header is no TLS, and the connection ends.
//
// Invariants: TLS 1.2 or newer with AEAD ciphers only; the certificate is that of the moment at each handshake; what is before the end
// of a handshake is bounded in number and in time, and of more than that the oldest goes, so that who is quick gets through a flood of
// those who are not; one address cannot take all the connections; who does not read what is sent to him is cut. An IPv6 /64 is one
// address.
//
// Failure: files of a certificate that are broken leave the one before in use, and a line in the log. A connection too many is closed.
// A process without free file descriptors waits for some; its port stays open.
package edge
