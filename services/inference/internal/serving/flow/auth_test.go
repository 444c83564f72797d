package flow

import (
	"crypto/sha256"
	"fmt"
	"testing"
	"time"

	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
)

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
