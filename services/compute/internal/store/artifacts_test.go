package store

import (
	"context"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
)

// An agent's files are its own until its run has ended, and it counts no others.
func TestArtifacts(t *testing.T) {
	run(t, func(t *testing.T, l *lab) {
		ctx := t.Context()
		r := l.to(l.submit("r"), computev1.Run_STATE_RUNNING)
		put := func(path, blob string, artifact bool) (string, error) {
			return l.PutOutput(ctx, r, Output{Path: path, Size: 1, Digest: []byte("d"), Blob: blob, Created: l.now, Artifact: artifact}, 10, 100, nothing)
		}
		counted := func(want int64) {
			t.Helper()
			must(t, l.db.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
				n, err := CountAgentOutputs(ctx, tx, r.UID)
				if n != want {
					t.Errorf("%d files of the agent, want %d", n, want)
				}
				return err
			}))
		}
		for path, artifact := range map[string]bool{"own": false, "mine": true, "both": true} {
			_, err := put(path, path+"-1", artifact)
			must(t, err)
		}
		counted(1)
		if replaced, err := put("both", "both-2", false); err != nil || replaced != "both-1" {
			t.Errorf("the agent in another's place: %s, %v", replaced, err)
		}
		counted(2)
		_, err := put("own", "own-2", true)
		want(t, "in the agent's place", err, codes.FailedPrecondition, 0)
		all, err := l.Outputs(ctx, r)
		must(t, err)
		_, err = l.DeleteOutputs(ctx, r, all, nothing)
		want(t, "all, with the agent's", err, codes.FailedPrecondition, 0)
		mine := all[slices.IndexFunc(all, func(o Output) bool { return o.Path == "mine" })]
		if !mine.Artifact {
			t.Errorf("%+v", mine)
		}
		if blobs, err := l.DeleteOutputs(ctx, r, []Output{mine}, nothing); err != nil || !slices.Equal(blobs, []string{"mine-1"}) {
			t.Errorf("%v, %v", blobs, err)
		}
		_, err = l.DeleteOutputs(ctx, r, []Output{mine}, nothing)
		want(t, "what is gone", err, codes.Aborted, 0)

		r = l.to(r, computev1.Run_STATE_COMPLETED)
		_, err = put("own", "own-2", false)
		want(t, "by an agent after the end", err, codes.FailedPrecondition, 0)
		if replaced, err := put("own", "own-2", true); err != nil || replaced != "own-1" {
			t.Errorf("after the end: %s, %v", replaced, err)
		}
		all, err = l.Outputs(ctx, r)
		must(t, err)
		l.exec("UPDATE runs SET deleted = 1 WHERE uid = $1", r.UID)
		_, err = put("own", "own-3", true)
		want(t, "of a deleted run", err, codes.FailedPrecondition, 0)
		_, err = l.DeleteOutputs(ctx, r, all, nothing)
		want(t, "from a deleted run", err, codes.FailedPrecondition, 0)
		l.exec("UPDATE runs SET deleted = 0 WHERE uid = $1", r.UID)
		if blobs, err := l.DeleteOutputs(ctx, r, all, nothing); err != nil || len(blobs) != 2 {
			t.Errorf("%v, %v", blobs, err)
		}
	})
}

func TestScan(t *testing.T) {
	run(t, func(t *testing.T, l *lab) {
		ctx := t.Context()
		e := l.experiment("e")
		at := l.now.UnixMicro()
		for i, id := range []string{"a", "b", "c", "d", "e"} {
			experiment := DefaultExperiment
			if i%2 == 0 {
				experiment = e.ID
			}
			l.tracked(id, experiment, instant(at+int64(i/2))) // a b, c d, e
		}
		l.submit("job") // has not started, and was made last
		_, err := l.InsertRun(ctx, l.replica("replica"), "", nothing)
		must(t, err)
		l.exec("UPDATE runs SET deleted = 2 WHERE start_time = $1", at+2)
		for name, tc := range map[string]struct {
			scan Scan
			want string
		}{
			"all that are there": {Scan{}, "abcdjob"},
			"deleted":            {Scan{Least: DeletedItself, Most: DeletedWithExperiment}, "e"},
			"everything":         {Scan{Most: DeletedWithExperiment}, "abcdejob"},
			"of one experiment":  {Scan{Experiment: e.ID}, "ac"},
			"since":              {Scan{Oldest: at + 1}, "cdjob"},
			"until":              {Scan{Newest: at}, "ab"},
			"between":            {Scan{Oldest: at, Newest: at}, "ab"},
			"wanted":             {Scan{Keep: func(c Clear) bool { return c.State == computev1.Run_STATE_QUEUED && !c.Started.IsZero() }}, "job"},
		} {
			for _, limit := range []int{1, 2, 100} {
				scan := tc.scan
				scan.Workspace = l.ws
				var cur Cursor
				var got []string
				last := int64(1 << 62)
				for more := true; more; {
					var list []*Run
					list, cur, more, err = l.ScanRuns(ctx, scan, cur, limit)
					must(t, err)
					for _, r := range list {
						if micros(r.Clear().Started) > last {
							t.Errorf("%s: %s comes after an older one", name, r.Spec.GetRunId())
						}
						last = micros(r.Clear().Started)
						got = append(got, r.Spec.GetRunId())
					}
				}
				slices.Sort(got)
				if s := strings.Join(got, ""); s != tc.want {
					t.Errorf("%s, %d at once: %s, want %s", name, limit, s, tc.want)
				}
			}
		}
	})
}
