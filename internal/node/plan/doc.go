// Package plan owns how an installation of many processes on many hosts is made (ADR 19): it reads a plan, and writes for each process
// the folder that it needs, and nothing of another's but the seal and the database's password, which all instances of a service share.
//
// Trust boundary: whoever runs it is the operator, and has for the time everything that he hands out: the seals, the join tokens, the
// roots' private keys. What it writes is 0600 in folders of 0700, but for the plan's SQL, which holds verifiers in place of passwords.
// The key of etcd's root lies in a folder that no process needs, so that it can be taken away.
//
// Invariants: it adds what is missing and changes nothing that is there; a folder that was made once is not made again, also when it
// has been carried away, as its seal would be another; a plan that says otherwise than the one that was carried out is refused.
//
// Failure: what is wrong in a plan is named by its field, before anything is written. A run that was cut off is finished by the same
// command.
package plan
