package fence

import (
	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// because remembers why there is no view.
func (f *Fence) because(why string) { f.why.Store(&why) }

// lost is what is answered while there is no view.
func (f *Fence) lost() error {
	why := *f.why.Load()
	if f.cur.Load() != nil {
		why = "etcd has not confirmed its lease in time"
	}
	return fault.New(codes.Unavailable, faultv1.Reason_FENCE_LOST,
		"this instance cannot know what was revoked, so it decides nothing: %s. Repeat the call; if it stays so, look whether etcd answers and has its quorum (redoubt doctor)", why).With("cause", why)
}
