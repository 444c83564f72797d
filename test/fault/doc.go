// Command fault hurts an installation of many processes while clients use it, and judges what is left of what they were told (ADR 26).
//
// It owns an installation of its own (internal/mesh), in a network of namespaces that nothing leaves, clients (internal/load), the book of
// what they were told (internal/oracle), and the kernel's account of which runs' commands were started (internal/ledger).
//
// Trust boundary: it is root, operator, client and network at once. What it finds is compared with what the installation has answered, and
// never with what the installation says of itself alone.
//
// Invariants: the order of rounds follows from the seed; one fault at a time, healed before the next; nothing remains.
//
// Failure: it ends with 1 when anything that was acknowledged is not there once, anything refused is, a run was carried out twice, the
// activity log says more or less than what was done, or a service does not answer again in time.
package main
