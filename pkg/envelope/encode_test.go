package envelope

import (
	"bytes"
	"testing"

	"pgregory.net/rapid"

	"github.com/redoubt-ml/redoubt/pkg/redact"
)

// Two AADs never encode equal, whatever stands in their parts.
func TestEncodingTellsAllApart(t *testing.T) {
	part := rapid.StringMatching(`[ab\x00\x01]{0,4}`)
	draw := func(r *rapid.T, label string) (AAD, string) {
		return AAD{
			Owner: part.Draw(r, label+".owner"), Kind: part.Draw(r, label+".kind"), ID: part.Draw(r, label+".id"),
			Field: part.Draw(r, label+".field"), Version: rapid.Int64Range(-1, 1).Draw(r, label+".version"),
		}, part.Draw(r, label+".header")
	}
	rapid.Check(t, func(r *rapid.T) {
		a, headerA := draw(r, "a")
		b, headerB := draw(r, "b")
		if bytes.Equal(a.encode([]byte(headerA)), b.encode([]byte(headerB))) != (a == b && headerA == headerB) {
			r.Fatalf("%+v %q and %+v %q", a, headerA, b, headerB)
		}
		if bytes.Equal(a.encode([]byte(headerA)), a.encode([]byte(headerB))) != (headerA == headerB) {
			r.Fatalf("%+v under the headers %q and %q", a, headerA, headerB)
		}
		// Borders that move: the same letters, cut elsewhere.
		moved := a
		if text := a.Kind + a.ID; len(text) > 0 {
			cut := rapid.IntRange(0, len(text)).Draw(r, "cut")
			moved.Kind, moved.ID = text[:cut], text[cut:]
		}
		if bytes.Equal(a.encode(nil), moved.encode(nil)) != (a == moved) {
			r.Fatalf("%+v and %+v", a, moved)
		}
	})
}

// One data key serves four uses: none of them may share a key, and the id that is stored in clear may not be part of one.
func TestEachUseHasItsOwnKey(t *testing.T) {
	data := redact.New(bytes.Repeat([]byte{7}, KeySize))
	seen := make(map[string]string)
	for _, label := range []string{"id", "mac", "blob", "record", "stream"} {
		prefix := string(subkey(data, label, subkeySize)[:idSize])
		if other, ok := seen[prefix]; ok {
			t.Errorf("%s and %s are the same", label, other)
		}
		seen[prefix] = label
	}
	k, err := derive("ws_a", data)
	if err != nil {
		t.Fatal(err)
	}
	for use, got := range map[string][]byte{"id": k.id[:], "mac": k.mac, "blob": k.blob} {
		if seen[string(got[:idSize])] != use {
			t.Errorf("%s is under the key of %q", use, seen[string(got[:idSize])])
		}
	}
	for _, size := range []int{0, KeySize - 1, KeySize + 1} {
		if _, err := derive("ws_a", redact.New(make([]byte, size))); err == nil {
			t.Errorf("a data key of %d bytes was taken", size)
		}
	}
}
