// Package jointoken owns the string with which a service enrols for the first time: where identity listens, which root to
// believe there, and a secret that is good for one key.
//
// Trust boundary: the string is made by an operator's command and carried to a machine by him. Who reads it before it was used
// can enrol in its place, once, as that service and instance; who reads it afterwards can do nothing with it.
//
// Invariants: a string has exactly one reading; the secret is never printed.
//
// Failure: Parse refuses what is not a join token, as InvalidArgument, and never repeats it.
package jointoken

import (
	"encoding/base64"
	"net"
	"strings"

	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
)

// Token is a join token, taken apart.
type Token struct {
	// Address is the host and port of identity's enrolment listener.
	Address string
	// Pin names the root to believe there: svid.Pin.
	Pin string
	// Secret is what goes into IssueRequest.join_token.
	Secret redact.Secret
}

const (
	prefix   = "redoubt-join1"
	maxBytes = 512
	pinBytes = 32
)

// Encode writes the token for an operator to carry. The result is a secret.
func (t Token) Encode() (redact.Secret, error) {
	if err := t.check(); err != nil {
		return redact.Secret{}, err
	}
	return redact.FromString(strings.Join([]string{
		prefix, base64.RawURLEncoding.EncodeToString([]byte(t.Address)), t.Pin, t.Secret.RevealString(),
	}, ".")), nil
}

// Parse reads what Encode wrote.
func Parse(s redact.Secret) (Token, error) {
	if s.Len() > maxBytes {
		return Token{}, malformed("it is too long")
	}
	part := strings.Split(strings.TrimSpace(s.RevealString()), ".")
	if len(part) != 4 || part[0] != prefix {
		return Token{}, malformed("it does not begin with " + prefix)
	}
	address, err := base64.RawURLEncoding.Strict().DecodeString(part[1])
	if err != nil {
		return Token{}, malformed("its address cannot be read")
	}
	t := Token{Address: string(address), Pin: part[2], Secret: redact.FromString(part[3])}
	return t, t.check()
}

func (t Token) check() error {
	host, port, err := net.SplitHostPort(t.Address)
	if err != nil || host == "" || port == "" {
		return malformed("its address is not host:port")
	}
	if pin, err := base64.RawURLEncoding.Strict().DecodeString(t.Pin); err != nil || len(pin) != pinBytes {
		return malformed("its pin is not that of a root")
	}
	if t.Secret.Empty() || strings.ContainsAny(t.Secret.RevealString(), ". \t\r\n") {
		return malformed("its secret is missing")
	}
	return nil
}

func malformed(why string) error {
	return fault.InvalidArgument("this is not a join token: %s; make a new one with the command that made it", why)
}
