package workspace

import (
	"testing"
	"testing/synctest"

	"google.golang.org/grpc/codes"

	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// B2: a change waits for a stream that acknowledges until it has applied it, and nobody else can say so for it.
func TestToldWaitsForTheAcknowledgement(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFeed(&Service{})
		sub := &subscriber{name: "str_1", peer: "spiffe://x/service/compute"}
		f.note(sub, 7, false)
		f.told(t.Context(), 7) // never acknowledged: having been sent it is enough
		if err := f.acknowledged(sub.name, sub.peer, 7); err != nil {
			t.Fatal(err)
		}
		f.note(sub, 8, false) // sent, not applied
		done := make(chan struct{})
		go func() { f.told(t.Context(), 8); close(done) }()
		synctest.Wait()
		if err := f.acknowledged(sub.name, "spiffe://x/service/telemetry", 8); !fault.Is(err, codes.NotFound) {
			t.Errorf("another peer's word: %v", err)
		}
		synctest.Wait()
		select {
		case <-done:
			t.Fatal("the change did not wait")
		default:
		}
		if err := f.acknowledged(sub.name, sub.peer, 8); err != nil {
			t.Fatal(err)
		}
		<-done
		go f.note(sub, 0, true) // a stream that ends holds nobody up
		f.told(t.Context(), 9)
	})
}
