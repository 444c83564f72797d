package e2e

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"google.golang.org/grpc"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
)

// TestAModelComesFromARun registers what a run has left, through every service that has a part in it, and takes it back.
func TestAModelComesFromARun(t *testing.T) {
	l := newLab(t, "models")
	r := l.submit(t, l.request("/bin/sh", "-c", `mkdir -p "$REDOUBT_OUTPUTS/model" && head -c 3000000 /dev/zero | tr '\0' x > "$REDOUBT_OUTPUTS/model/weights" && echo note > "$REDOUBT_OUTPUTS/note"`))
	if r, log := l.finish(t, r.GetName()); r.GetState() != computev1.Run_STATE_COMPLETED {
		t.Fatalf("%v\n%s", r, log)
	}
	models := l.Models()
	v, err := models.CreateModelVersion(t.Context(), &inferencev1.CreateModelVersionRequest{Parent: l.workspace + "/models/m", CreateModel: true, SourceRun: r.GetName(), SourcePath: "model"})
	if err != nil {
		t.Fatal(err)
	}
	if v.GetName() != l.workspace+"/models/m/versions/1" || v.GetSourceRun() != r.GetName() || v.GetSourceSnapshot() != l.snapshot || len(v.GetFiles()) != 1 || v.GetFiles()[0].GetPath() != "weights" {
		t.Errorf("%v", v)
	}
	s, err := models.DownloadModelVersion(t.Context(), &inferencev1.DownloadModelVersionRequest{Name: l.workspace + "/models/m/versions/latest"})
	if err != nil {
		t.Fatal(err)
	}
	if got := content(t, s); !bytes.Equal(got, bytes.Repeat([]byte("x"), 3000000)) {
		t.Errorf("%d bytes came back, or others", len(got))
	}
}

func content(t *testing.T, s grpc.ServerStreamingClient[inferencev1.DownloadModelVersionResponse]) (out []byte) {
	t.Helper()
	for {
		m, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, m.GetData()...)
	}
}
