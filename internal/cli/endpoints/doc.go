// Package endpoints is the commands about endpoints and deployments: what answers where, who may score it, and what was asked of it.
//
// It owns the way of a request from a file to an endpoint and of the answer to standard output.
//
// Trust boundary: keys and tokens of endpoints are shown by the commands that ask for them and by no other. One that is used comes
// from standard input or from the installation, never from a flag, and goes to the endpoint's own address over TLS alone. What a
// model answers is written as it is: it is the answer.
//
// Failure: errors of the installation come as they came. An answer of an endpoint that is none of success ends the command with the
// code of a refusal, 401 and 403 with that of a denial; its body is written all the same.
package endpoints
