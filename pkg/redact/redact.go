// Package redact owns the type in which a secret travels through the program: passwords, tokens, keys.
//
// Trust boundary: none is crossed here. The package keeps a value from being shown by accident, not from code that
// asks for it with Reveal.
//
// Invariants: every way in which Go prints, encodes or logs a value shows "[redacted]"; comparing takes the same time
// wherever two secrets differ; the zero value is an empty secret, which equals nothing but another empty one.
//
// Failure: none of the functions fails. Decoding a Secret from JSON or YAML text is allowed, encoding one never shows it.
package redact

import (
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"log/slog"
)

// Mask is what is shown in place of a secret.
const Mask = "[redacted]"

// Secret holds bytes that must not be shown. It is safe to copy; copies share their bytes, so Wipe clears them all.
type Secret struct{ b []byte }

// New takes ownership of b: the caller must not change it afterwards.
func New(b []byte) Secret { return Secret{b: b} }

// FromString copies s into a Secret.
func FromString(s string) Secret { return Secret{b: []byte(s)} }

// Reveal returns the bytes themselves, not a copy. Keep them out of anything that is printed or stored in clear.
func (s Secret) Reveal() []byte { return s.b }

// RevealString returns the secret as a string, which cannot be wiped: use it at the last moment.
func (s Secret) RevealString() string { return string(s.b) }

// Empty reports whether there is nothing in s.
func (s Secret) Empty() bool { return len(s.b) == 0 }

// Len is the length in bytes.
func (s Secret) Len() int { return len(s.b) }

// Equal compares in a time that depends on the lengths only, and not on where the two differ.
func (s Secret) Equal(o Secret) bool {
	x, y := sha256.Sum256(s.b), sha256.Sum256(o.b)
	return subtle.ConstantTimeCompare(x[:], y[:]) == 1 && len(s.b) == len(o.b)
}

// Wipe overwrites the bytes with zeros. All copies of s are empty of meaning afterwards.
func (s Secret) Wipe() { clear(s.b) }

// String implements fmt.Stringer.
func (Secret) String() string { return Mask }

// GoString implements fmt.GoStringer, for %#v.
func (Secret) GoString() string { return Mask }

// Format implements fmt.Formatter, so that no verb reaches the bytes, %x and %s included.
func (Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(Mask)) }

// LogValue implements slog.LogValuer.
func (Secret) LogValue() slog.Value { return slog.StringValue(Mask) }

// MarshalText implements encoding.TextMarshaler, which JSON and YAML encoders use.
func (Secret) MarshalText() ([]byte, error) { return []byte(Mask), nil }

// UnmarshalText implements encoding.TextUnmarshaler, so that a secret can be read from a file or a message.
func (s *Secret) UnmarshalText(b []byte) error {
	s.b = append([]byte(nil), b...)
	return nil
}
