package flow

import (
	"crypto/sha256"
	"fmt"
	"testing"
	"time"

	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
)

// TestAdmitComparesTheWhole has digests that are found in one place and differ in their last bit.
func TestAdmitComparesTheWhole(t *testing.T) {
	right := sha256.Sum256([]byte("primary"))
	near := right
	near[31] ^= 1
	for name, c := range map[string]struct {
		stored []Credential
		label  string
	}{
		"the right one":   {[]Credential{{Hash: right, Label: "key-primary"}}, "key-primary"},
		"a near one":      {[]Credential{{Hash: near, Label: "key-primary"}}, ""},
		"beside a near":   {[]Credential{{Hash: near, Label: "key-primary"}, {Hash: right, Label: "key-secondary"}}, "key-secondary"},
		"none":            {nil, ""},
		"the hash of all": {[]Credential{{}}, ""},
	} {
		p, refused := Present([]string{"Bearer primary"})
		if refused != nil {
			t.Fatal(refused)
		}
		got, refused := Admit(newState(&Endpoint{Auth: inferencev1.Endpoint_AUTH_KEY, Credentials: c.stored}), &p, time.Now())
		if got.Label != c.label || (refused == nil) != (c.label != "") {
			t.Errorf("%s: %v %v", name, got, refused)
		}
	}
	// Who sends nothing has no hash, not even one of zeros.
	if _, refused := Admit(newState(&Endpoint{Auth: inferencev1.Endpoint_AUTH_KEY, Credentials: []Credential{{Label: "key-primary"}}}), &Presented{}, time.Now()); refused == nil {
		t.Error("nothing opens an endpoint")
	}
}

func BenchmarkAdmit(b *testing.B) {
	for _, n := range []int{2, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			e := &Endpoint{Auth: inferencev1.Endpoint_AUTH_KEY, Credentials: []Credential{{Hash: sha256.Sum256([]byte("primary"))}}}
			for i := range n - 1 {
				e.Credentials = append(e.Credentials, Credential{Hash: sha256.Sum256([]byte(fmt.Sprint(i)))})
			}
			x := newState(e)
			header, now := []string{"Bearer primary"}, time.Now()
			b.ReportAllocs()
			for b.Loop() {
				p, r := Present(header)
				if r != nil {
					b.Fatal(r)
				}
				if _, r := Admit(x, &p, now); r != nil {
					b.Fatal(r)
				}
			}
		})
	}
}
