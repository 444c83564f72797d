package view

import (
	"google.golang.org/grpc"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	"github.com/redoubt-ml/redoubt/services/compute/internal/news"
	"github.com/redoubt-ml/redoubt/services/compute/internal/store"
)

// logPieces is how many pieces of a log are read at once.
const logPieces = 16

// SendLog sends the log of a run from offset, and with follow goes on until it has ended. name is what its absence is told by.
func SendLog(stream grpc.ServerStreamingServer[computev1.LogChunk], st *store.Store, uid, name string, offset int64, follow bool) error {
	ctx := stream.Context()
	return news.Each(ctx, st, store.RunTopic(uid), func() (bool, error) {
		r, err := st.RunByUID(ctx, uid)
		if err != nil {
			return false, Absent(err, name)
		}
		for {
			pieces, err := st.ReadLog(ctx, r, offset, logPieces)
			if err != nil {
				return false, err
			}
			for _, p := range pieces {
				if err := stream.Send(p); err != nil {
					return false, err
				}
				offset = p.GetOffset() + int64(len(p.GetData()))
			}
			if len(pieces) < logPieces {
				return !follow || r.HasEnded(), nil
			}
		}
	})
}
