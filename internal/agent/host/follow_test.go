package host

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/redoubt-ml/redoubt/internal/agent"
	"github.com/redoubt-ml/redoubt/pkg/svid"
)

// A host believes what it is given as long as it goes, runs that end after it was stopped included; asks again when it was told to, and soon
// where nobody answers; keeps what has changed, once; and takes nothing that is no root of its mesh.
func TestFollowsTheRoots(t *testing.T) { // D10
	synctest.Test(t, func(t *testing.T) {
		root := func(td string) []byte {
			a, err := svid.NewAuthority(spiffeid.RequireTrustDomainFromString(td), time.Now(), 24*time.Hour)
			if err != nil {
				t.Fatal(err)
			}
			return a.Root().Raw
		}
		one, two, other := root("mesh.test"), root("mesh.test"), root("other.test")
		begin := time.Now()
		var asked []time.Duration
		answers := []struct {
			roots [][]byte
			again time.Duration
			err   error
		}{
			{[][]byte{one}, time.Minute, nil},
			{nil, 0, errors.New("away")},
			{[][]byte{one}, time.Minute, nil},
			{[][]byte{one, two}, 0, nil},
			{[][]byte{two, other}, time.Hour, nil}, // no root of this mesh: all of it is left
			{[][]byte{two}, time.Hour, nil},
		}
		var kept []int
		roots, err := agent.NewRoots(nil)
		if err != nil {
			t.Skip(err)
		}
		in := &installation{}
		h, err := New(Config{
			Computes: in, Server: "https://h", Target: "x/computes/c", Roots: roots, Drain: time.Minute,
			Follow: func(context.Context) ([][]byte, time.Duration, error) {
				i := min(len(asked), len(answers)-1)
				asked = append(asked, time.Since(begin))
				return answers[i].roots, answers[i].again, answers[i].err
			},
			Keep: func(roots [][]byte) { kept = append(kept, len(roots)) },
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- h.Serve(ctx) }()
		time.Sleep(20 * time.Minute)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		synctest.Wait()
		// An hour is asked for and five minutes is the longest; no time is asked for and a second is the shortest.
		m, s := time.Minute, time.Second
		want := []time.Duration{0, m, m + 2*s, 2*m + 2*s, 2*m + 3*s, 7*m + 3*s, 12*m + 3*s, 17*m + 3*s}
		if !slices.Equal(asked, want) {
			t.Errorf("asked at %v, not %v", asked, want)
		}
		if !slices.Equal(kept, []int{1, 2, 1}) {
			t.Errorf("kept %v", kept)
		}
	})
}
