package e2e

import (
	"context"
	"encoding/hex"
	"net"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/internal/node"
	"github.com/redoubt-ml/redoubt/internal/testmesh"
)

// spans is an OTLP collector that keeps what it gets.
type spans struct {
	collector.UnsafeTraceServiceServer
	mu  sync.Mutex
	all map[string]map[string]bool // trace id → service and name
}

// Export implements the collector's contract.
func (s *spans) Export(_ context.Context, req *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	if req == nil {
		return nil, status.Error(codes.InvalidArgument, "nothing")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range req.GetResourceSpans() {
		service := ""
		for _, a := range r.GetResource().GetAttributes() {
			if a.GetKey() == "service.name" {
				service = a.GetValue().GetStringValue()
			}
		}
		for _, sc := range r.GetScopeSpans() {
			for _, sp := range sc.GetSpans() {
				id := hex.EncodeToString(sp.GetTraceId())
				if s.all[id] == nil {
					s.all[id] = make(map[string]bool)
				}
				s.all[id][service+" "+sp.GetName()] = true
			}
		}
	}
	return &collector.ExportTraceServiceResponse{}, nil
}

// I: one trace goes through every service that a call reaches.
func TestTraceCrossesServices(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	got := &spans{all: make(map[string]map[string]bool)}
	srv := grpc.NewServer()
	collector.RegisterTraceServiceServer(srv, got)
	go func() { _ = srv.Serve(l) }()
	defer srv.Stop()
	own, err := testmesh.Start(func(c *node.UpConfig) { c.TraceEndpoint, c.TraceRatio = l.Addr().String(), 1 })
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	if _, err := workspacev1.NewResourceServiceClient(own.Dial(t, own.Admin(t))).CreateWorkspace(t.Context(), &workspacev1.CreateWorkspaceRequest{
		Parent: "subscriptions/default/resourceGroups/default", WorkspaceId: "traced",
	}); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"gateway " + workspacev1.ResourceService_CreateWorkspace_FullMethodName,
		"workspace " + workspacev1.ResourceService_CreateWorkspace_FullMethodName,
		"identity /redoubt.identity.v1.PrincipalService/CreateManagedIdentity", "keyvault /redoubt.keyvault.v1.VaultService/CreateVault",
	}
	whole := func() bool {
		got.mu.Lock()
		defer got.mu.Unlock()
		for _, names := range got.all {
			n := 0
			for _, w := range want {
				if names[w] {
					n++
				}
			}
			if n == len(want) {
				return true
			}
		}
		return false
	}
	for end := time.Now().Add(15 * time.Second); !whole(); {
		if time.Now().After(end) {
			got.mu.Lock()
			defer got.mu.Unlock()
			t.Fatalf("no trace has all of %v:\n%v", want, got.all)
		}
		<-time.After(50 * time.Millisecond)
	}
}
