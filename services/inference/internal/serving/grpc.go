package serving

import "net/http"

type oipServers struct{}

func newOIPServers(*Server) *oipServers { return &oipServers{} }

func (s *Server) serveGRPC(w http.ResponseWriter, _ *http.Request) {
	w.WriteHeader(http.StatusNotImplemented)
}
