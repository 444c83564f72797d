package resource

import (
	"crypto/rand"
	"encoding/base32"
	"strings"
)

// The most bytes that ids may have.
const (
	MaxIDBytes         = 63
	MaxRunIDBytes      = 256
	MaxSnapshotIDBytes = 128
	MaxModelIDBytes    = 255
	MaxVersionIDBytes  = 255
)

// ValidID checks an id that a caller chose: [a-z]([a-z0-9-]{0,61}[a-z0-9])?, which also makes a DNS label.
func ValidID(id string) error { return ValidIDField("id", id) }

// ValidIDField is ValidID for a request whose field is called otherwise, "workspace_id".
func ValidIDField(field, id string) error { return refuse(field, badID(id)) }

// ValidRunID checks the id of a run, which may be what MLflow's clients choose: [a-zA-Z0-9][a-zA-Z0-9_-]{0,255}. The case
// of letters counts.
func ValidRunID(id string) error { return refuse("run_id", badRunID(id)) }

// ValidSnapshotID checks the id of a snapshot, which the platform makes from its digest: [a-z0-9-]{1,128}.
func ValidSnapshotID(id string) error { return refuse("snapshot_id", badSnapshotID(id)) }

// ValidModelID checks the id of a model, in which MLflow's users expect dots and underscores: [a-zA-Z0-9][a-zA-Z0-9_.-]{0,254}.
// The case of letters counts.
func ValidModelID(id string) error { return ValidModelIDField("model_id", id) }

// ValidModelIDField is ValidModelID for a request whose field is called otherwise.
func ValidModelIDField(field, id string) error { return refuse(field, badModelID(id)) }

func refuse(field, wrong string) error {
	if wrong == "" {
		return nil
	}
	return invalid(field, "not an id: it "+wrong)
}

func badID(id string) string {
	switch {
	case id == "":
		return "is empty"
	case len(id) > MaxIDBytes:
		return "is longer than 63 bytes"
	case !lower(id[0]):
		return wrongID
	case id[len(id)-1] == '-':
		return wrongID
	}
	for i := range len(id) {
		if c := id[i]; !lower(c) && !digit(c) && c != '-' {
			return wrongID
		}
	}
	return ""
}

const wrongID = "must have only a to z, 0 to 9 and hyphens, start with a letter and not end with a hyphen"

func badRunID(id string) string {
	const wrong = "must have only letters of ASCII, 0 to 9, hyphens and underscores, and start with a letter or digit"
	switch {
	case id == "":
		return "is empty"
	case len(id) > MaxRunIDBytes:
		return "is longer than 256 bytes"
	case id[0] == '-' || id[0] == '_':
		return wrong
	}
	for i := range len(id) {
		if c := id[i]; !lower(c|0x20) && !digit(c) && c != '-' && c != '_' {
			return wrong
		}
	}
	return ""
}

func badSnapshotID(id string) string {
	switch {
	case id == "":
		return "is empty"
	case len(id) > MaxSnapshotIDBytes:
		return "is longer than 128 bytes"
	}
	for i := range len(id) {
		if c := id[i]; !lower(c) && !digit(c) && c != '-' {
			return "must have only a to z, 0 to 9 and hyphens"
		}
	}
	return ""
}

func badModelID(id string) string {
	if id != "" && !lower(id[0]|0x20) && !digit(id[0]) {
		return wrongModelID
	}
	return badWord(id, MaxModelIDBytes, ".", wrongModelID)
}

const wrongModelID = "must have only letters of ASCII, 0 to 9, dots, hyphens and underscores, and start with a letter or digit"

// badVersionID takes a number, an alias, or "latest": which of them it is, and whether there is one, its service says.
func badVersionID(id string) string {
	return badWord(id, MaxVersionIDBytes, "", "must be a number, or an alias of letters of ASCII, 0 to 9, hyphens and underscores")
}

// badWord takes letters of ASCII, digits, hyphens, underscores and what else is named.
func badWord(id string, most int, also, wrong string) string {
	switch {
	case id == "":
		return "is empty"
	case len(id) > most:
		return "is longer than 255 bytes"
	}
	for i := range len(id) {
		if c := id[i]; !lower(c|0x20) && !digit(c) && c != '-' && c != '_' && strings.IndexByte(also, c) < 0 {
			return wrong
		}
	}
	return ""
}

func badUID(id string) string {
	if !IsUID(id) {
		return "must be a uid, as in mid_ and 26 letters and digits"
	}
	return ""
}

func lower(c byte) bool { return 'a' <= c && c <= 'z' }
func digit(c byte) bool { return '0' <= c && c <= '9' }

// uidEncoding is base32 (RFC 4648) in lower case: 128 bits are 26 characters.
var uidEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

const uidChars = 26

// NewUID makes a uid: the prefix, an underscore and 26 characters for 128 random bits. The prefix is 1 to 8 lower-case
// letters, given with or without its underscore; another one is a fault in the program and panics.
func NewUID(prefix string) string {
	prefix = strings.TrimSuffix(prefix, "_")
	if !uidPrefix(prefix) {
		panic("resource: a uid's prefix has 1 to 8 lower-case letters")
	}
	var bits [16]byte
	_, _ = rand.Read(bits[:]) // never fails: it ends the process instead
	return prefix + "_" + uidEncoding.EncodeToString(bits[:])
}

// IsUID reports whether s has the form of a uid.
func IsUID(s string) bool {
	prefix, rest, ok := strings.Cut(s, "_")
	if !ok || len(rest) != uidChars || !uidPrefix(prefix) {
		return false
	}
	for i := range len(rest) {
		if c := rest[i]; !lower(c) && (c < '2' || c > '7') {
			return false
		}
	}
	return true
}

func uidPrefix(prefix string) bool {
	if prefix == "" || len(prefix) > 8 {
		return false
	}
	for i := range len(prefix) {
		if !lower(prefix[i]) {
			return false
		}
	}
	return true
}
