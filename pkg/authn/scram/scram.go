// Package scram owns the form in which PostgreSQL keeps a password: what it verifies one with by SCRAM-SHA-256 (RFC 5803), so that an
// administrator can make a role without ever seeing its password.
//
// Trust boundary: a verifier is no password, but lets who has it try passwords against it: it is for passwords of our own making, which
// are random and long.
//
// Invariants: every verifier has a salt of its own; no password stands in it.
//
// Failure: a password that would need to be normalized (RFC 4013) is refused, as both sides could read it in different ways.
package scram

import (
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"

	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
)

// iterations is PostgreSQL's own count. Passwords of 256 random bits need no more.
const iterations = 4096

// Verifier makes the text for ALTER ROLE … PASSWORD. The password is of ASCII characters that can be seen.
func Verifier(password redact.Secret) (string, error) {
	var salt [16]byte
	_, _ = rand.Read(salt[:]) // crypto/rand never fails
	return verifier(password, salt[:], iterations)
}

func verifier(password redact.Secret, salt []byte, n int) (string, error) {
	if password.Empty() {
		return "", fault.InvalidArgument("an empty password lets nobody in")
	}
	for _, c := range password.Reveal() {
		if c <= ' ' || c > '~' {
			return "", fault.InvalidArgument("the password has characters that PostgreSQL and others read differently")
		}
	}
	salted, err := pbkdf2.Key(sha256.New, password.RevealString(), salt, n, sha256.Size)
	if err != nil {
		return "", fault.Internal(err, "a password could not be prepared for PostgreSQL")
	}
	defer clear(salted)
	stored := sha256.Sum256(mac(salted, "Client Key"))
	b64 := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("SCRAM-SHA-256$%d:%s$%s:%s", n, b64(salt), b64(stored[:]), b64(mac(salted, "Server Key"))), nil
}

func mac(key []byte, text string) []byte {
	m := hmac.New(sha256.New, key)
	_, _ = m.Write([]byte(text)) // never fails
	return m.Sum(nil)
}
