package clients

import (
	"testing"
	"time"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
)

func says(seq uint64, r ...*identityv1.Revocation) *identityv1.WatchSecurityResponse {
	return &identityv1.WatchSecurityResponse{Seq: seq, Revocations: r}
}

func facts(uid, credential string, number uint64) Facts {
	return Facts{UID: uid, Name: "servicePrincipals/" + uid, Credential: credential, Expire: time.Now().Add(time.Hour), Number: number}
}

// What is kept follows the stream: a message drops whom it names, and nobody else, and what was read before it is not kept after it.
func TestKeptIsWhatTheStreamLeaves(t *testing.T) {
	c := New(0)
	a, b := BySecret([]byte("a")), ByThumbprint("spn_b", "t")
	if c.Keep(a, facts("spn_a", "sec_a", 9)); c.Len() != 0 {
		t.Error("kept before the stream has told anything")
	}
	c.Apply(&identityv1.WatchSecurityResponse{Seq: 5, Reset_: true, Complete: true})
	if c.Keep(a, facts("spn_a", "sec_a", 4)); c.Len() != 0 {
		t.Error("kept although it is older than the stream")
	}
	keep := func() {
		c.Keep(a, facts("spn_a", "sec_a", 100))
		c.Keep(b, facts("spn_b", "key_b", 100))
		c.Keep(b, facts("spn_b", "key_b", 100)) // again
	}
	has := func(k Key) bool { _, ok := c.Find(k); return ok }
	for _, tc := range []struct {
		name string
		m    *identityv1.WatchSecurityResponse
		a, b bool
	}{
		{"nobody", says(6), true, true},
		{"another", says(7, &identityv1.Revocation{Subject: "spn_c"}, &identityv1.Revocation{Sid: "sec_c"}, &identityv1.Revocation{Jti: "spn_a"}), true, true},
		{"the principal", says(8, &identityv1.Revocation{Subject: "spn_a"}), false, true},
		{"the key", says(9, &identityv1.Revocation{Sid: "key_b"}), true, false},
		{"a new start", &identityv1.WatchSecurityResponse{Seq: 10, Reset_: true}, false, false},
	} {
		keep()
		c.Apply(tc.m)
		if has(a) != tc.a || has(b) != tc.b {
			t.Errorf("%s: %t and %t are left", tc.name, has(a), has(b))
		}
	}
	keep()
	if f, _ := c.Find(a); f.Number != 100 {
		t.Errorf("it is known at %d, and was read at 100", f.Number)
	}
	c.Apply(says(200))
	if f, _ := c.Find(a); f.Number != 200 {
		t.Errorf("it is known at %d, and the stream is at 200", f.Number)
	}
	for _, k := range []Key{a, b} {
		f, _ := c.Find(k)
		c.drop(k, f)
	}
	if len(c.named) != 0 || len(c.kept) != 0 {
		t.Errorf("%d names of %d are left", len(c.named), len(c.kept))
	}
}

// It is bounded, and a key means one thing.
func TestBounded(t *testing.T) {
	c := New(4)
	c.Apply(says(1))
	for i := range 100 {
		c.Keep(BySecret([]byte{byte(i)}), facts("spn_"+string(rune('a'+i)), "sec", 1))
		if c.Len() > 4 || len(c.named) > 5 {
			t.Fatalf("%d are kept, by %d names", c.Len(), len(c.named))
		}
	}
	if _, ok := c.Find(BySecret([]byte{99})); !ok {
		t.Error("the last one is not there")
	}
	if ByThumbprint("a", "bc") == ByThumbprint("ab", "c") || BySecret([]byte("a")) == ByThumbprint("a", "") {
		t.Error("two things have one key")
	}
	c.Keep(BySecret([]byte("x")), Facts{Number: 1})
	if _, ok := c.Find(BySecret([]byte("x"))); ok {
		t.Error("nobody's facts are kept")
	}
}
