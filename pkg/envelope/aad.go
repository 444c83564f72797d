package envelope

import (
	"encoding/binary"

	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// AAD says what a ciphertext is. All of it is needed again to open it, none of it is stored in it.
type AAD struct {
	// Owner is the workspace's uid, or what else the record belongs to. Never empty.
	Owner string
	// Kind is the kind of record, ID the record's uid within it. Never empty.
	Kind, ID string
	// Field tells apart what one record holds in several columns.
	Field string
	// Version makes an older content of the same record refuse to open, where the record keeps a version.
	Version int64
}

func (a AAD) check() error {
	if a.Owner == "" || a.Kind == "" || a.ID == "" {
		return fault.Internal(nil, "a record was to be sealed or opened without saying which one it is")
	}
	return nil
}

// encode gives different bytes for different AADs: every part stands behind its length.
func (a AAD) encode(header []byte) []byte {
	out := make([]byte, 0, 64+len(header)+len(a.Owner)+len(a.Kind)+len(a.ID)+len(a.Field))
	out = appendParts(out, "redoubt envelope aad v1", string(header), a.Owner, a.Kind, a.ID, a.Field)
	return binary.BigEndian.AppendUint64(out, uint64(a.Version))
}

func appendParts(out []byte, parts ...string) []byte {
	for _, p := range parts {
		out = binary.BigEndian.AppendUint32(out, uint32(len(p)))
		out = append(out, p...)
	}
	return out
}
