package node

import (
	"cmp"
	"context"
	"crypto/tls"
	"net"
	"strconv"

	"google.golang.org/grpc"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/pkg/blob"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/services/inference"
)

// buildInference makes the one service that has listeners of its own besides the gateway: where endpoints are scored, and where
// replicas connect.
func (n *Node) buildInference(st *state, m *mesh, k *envelope.Keyring, b *blob.Store, peer func(string) grpc.ClientConnInterface) (served, error) {
	var err error
	if n.scoring, err = n.listen("inference-scoring", n.cfg.Service.ScoringListen); err != nil {
		return nil, err
	}
	if n.replicas, err = n.listen("inference-replicas", n.cfg.Service.ReplicaListen); err != nil {
		return nil, err
	}
	dropped, err := n.counter("redoubt_request_log_dropped_total", "Scoring requests whose record could not be kept.")
	if err != nil {
		return nil, err
	}
	unknown, err := n.counter("redoubt_scoring_unknown_total", "Requests to the scoring listener that name no endpoint.")
	if err != nil {
		return nil, err
	}
	limits, refused, err := n.edge()
	if err != nil {
		return nil, err
	}
	compute, ingest := peer("compute"), peer("telemetry")
	return inference.New(inference.Config{
		DB: st.db, Outbox: st.outbox, Own: st.own, Keys: k, Blobs: b, Engine: st.engine, Dir: n.cfg.Service.Dir,
		Replicas: computev1.NewReplicaServiceClient(compute), Computes: computev1.NewComputeServiceClient(compute), Runs: computev1.NewRunServiceClient(compute), RunInternal: computev1.NewRunInternalServiceClient(compute),
		Snapshots: workspacev1.NewSnapshotServiceClient(peer("workspace")), Ingest: telemetryv1.NewIngestServiceClient(ingest),
		RequestLog: telemetryv1.NewRequestLogServiceClient(ingest), Instance: n.cfg.Service.Instance,
		Edge: limits, OnRefused: refused,
		OnRequestsDropped: func(k int64) { dropped.Add(float64(k)) }, OnUnknownEndpoint: unknown.Inc,
		ScoringURL: n.cfg.Service.ScoringURL, ReplicaAddress: cmp.Or(n.cfg.Service.ReplicaAdvertise, dialled(n.replicas.Addr())),
		CertificateFile: n.cfg.Service.ScoringCertificateFile, KeyFile: n.cfg.Service.ScoringKeyFile,
		Certificate: func() (*tls.Certificate, error) {
			s, err := m.own.Current()
			if err != nil {
				return nil, err
			}
			return publicCertificate(s), nil
		},
		MeshTLS: m.source.ServerTLS, TrustDomain: n.cfg.Mesh.TrustDomain, ConnectionAge: n.opts.Limits.ConnectionAge, Now: n.opts.Now, Logger: n.log,
	})
}

// serveScoring opens inference's own listeners.
func (n *Node) serveScoring(s *inference.Service, m *mesh) {
	n.background("scoring", func(ctx context.Context) error { return s.Serve(ctx, n.scoring, m.source.Listen(n.replicas)) })
}

// dialled is how agents of this machine reach a listener.
func dialled(a net.Addr) string {
	t, ok := a.(*net.TCPAddr)
	if !ok || !t.IP.IsUnspecified() {
		return a.String()
	}
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(t.Port))
}
