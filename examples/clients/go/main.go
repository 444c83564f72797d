// Command go is a Redoubt client in Go, signed in as a program. It uses the generated packages and x/oauth2, and nothing else of Redoubt.
//
// usage: go run ./examples/clients/go SERVER CA_FILE CLIENT_ID SECRET_FILE WORKSPACE_ID COMPUTE FILE
package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/oauth"
	"google.golang.org/grpc/status"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
)

func main() {
	if len(os.Args) != 8 {
		log.Fatal("usage: go SERVER CA_FILE CLIENT_ID SECRET_FILE WORKSPACE_ID COMPUTE FILE")
	} else if err := run(context.Background(), os.Args[1:]); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, arg []string) error {
	server, client, workspaceID, compute, file := arg[0], arg[2], arg[4], arg[5], arg[6]
	ca, err := os.ReadFile(arg[1])
	secret, err2 := os.ReadFile(arg[3])
	data, err3 := os.ReadFile(file)
	if err := errors.Join(err, err2, err3); err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	web := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}}
	login := clientcredentials.Config{ClientID: client, ClientSecret: string(bytes.TrimSpace(secret)), TokenURL: "https://" + server + "/oauth2/token"}
	tokens := login.TokenSource(context.WithValue(ctx, oauth2.HTTPClient, web)) // gets a new one before the old one ends
	conn, err := grpc.NewClient(server, grpc.WithTransportCredentials(credentials.NewClientTLSFromCert(roots, "")), grpc.WithPerRPCCredentials(oauth.TokenSource{TokenSource: tokens}))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	me, err := identityv1.NewSignInServiceClient(conn).WhoAmI(ctx, &identityv1.WhoAmIRequest{})
	if err != nil {
		return err
	}
	fmt.Println("signed in:", me.GetPrincipal())
	resources, runs := workspacev1.NewResourceServiceClient(conn), computev1.NewRunServiceClient(conn)
	made, err := resources.CreateWorkspace(ctx, &workspacev1.CreateWorkspaceRequest{Parent: "subscriptions/default/resourceGroups/default", WorkspaceId: workspaceID})
	if err != nil {
		return err
	}
	fmt.Println("workspace:", made.GetName())
	parent, _, _ := strings.Cut(compute, "/computes/")
	snapshots, digest := workspacev1.NewSnapshotServiceClient(conn), sha256.Sum256(data)
	up, err := snapshots.UploadBlob(ctx)
	if err == nil {
		_ = up.Send(&workspacev1.UploadBlobRequest{Parent: parent, Digest: digest[:], Size: int64(len(data)), Data: data})
		_, err = up.CloseAndRecv() // tells also why a Send failed
	}
	if err != nil {
		return err
	}
	entry := &workspacev1.SnapshotEntry{Path: filepath.Base(file), Digest: digest[:], Size: int64(len(data))}
	snapshot, err := snapshots.CreateSnapshot(ctx, &workspacev1.CreateSnapshotRequest{Parent: parent, Entries: []*workspacev1.SnapshotEntry{entry}})
	if err != nil {
		return err
	}
	r, err := runs.SubmitRun(ctx, &computev1.SubmitRunRequest{Parent: parent, Compute: compute, Snapshot: snapshot.GetName(), Command: []string{"python3", entry.GetPath()}})
	if err != nil {
		return err
	}
	logs, err := runs.StreamLogs(ctx, &computev1.StreamLogsRequest{Name: r.GetName(), Follow: true})
	for chunk := new(computev1.LogChunk); err == nil; chunk, err = logs.Recv() {
		fmt.Print(string(chunk.GetData()))
	}
	states, err2 := runs.WatchRun(ctx, &computev1.WatchRunRequest{Name: r.GetName()})
	for next := r; err2 == nil; next, err2 = states.Recv() {
		r = next
	}
	if err := errors.Join(err, err2); !errors.Is(err, io.EOF) { // both streams end with the run
		return err
	}
	fmt.Println("state:", r.GetState())
	history, err := telemetryv1.NewMetricServiceClient(conn).ListMetricHistory(ctx, &telemetryv1.ListMetricHistoryRequest{Run: r.GetName(), Key: "loss"})
	if err != nil {
		return err
	}
	fmt.Print("loss:")
	for _, m := range history.GetMetrics() {
		fmt.Print(" ", m.GetValue())
	}
	_, err = runs.GetRun(ctx, &computev1.GetRunRequest{Name: parent + "/runs/no-such-run"})
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			fmt.Println("\nrefused: NOT_FOUND", info.GetReason())
		}
	}
	_, err = resources.DeleteWorkspace(ctx, &workspacev1.DeleteWorkspaceRequest{Name: made.GetName()})
	return err
}
