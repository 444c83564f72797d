package registry

import (
	"maps"

	"google.golang.org/grpc"

	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	"github.com/redoubt-ml/redoubt/services/gateway/internal/mlflowapi/call"
)

// routes are what the routes of this package call.
type routes struct {
	models inferencev1.ModelServiceClient
}

// Routes of models and versions, by method and path.
func Routes(inference grpc.ClientConnInterface) map[string]call.Route {
	h := &routes{models: inferencev1.NewModelServiceClient(inference)}
	all := h.modelRoutes()
	maps.Copy(all, h.versionRoutes())
	return all
}
