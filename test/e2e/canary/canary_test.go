package canary

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
)

// D1, D2, E1, F1, G2: of all that a tenant wrote nothing is found in clear, while the installation runs and after it has stopped.
func TestCanaries(t *testing.T) {
	w := newWalk(t)
	for _, what := range []string{"content type", "user agent", "referer", "user of basic authentication", "password of basic authentication"} {
		w.text(what)
	}
	w.places()
	w.people()
	w.vault()
	w.train()
	w.register()
	w.deploy()
	w.host()
	w.refused()
	// The activity log shows names to who may see them: they are stored, and have to be ciphertext.
	names := 0
	w.eventually(func() error {
		page, err := w.admin.Activity().ListActivity(w.ctx, &telemetryv1.ListActivityRequest{Scope: "/", PageSize: 1000})
		if err != nil {
			return err
		}
		names = 0
		for _, e := range page.GetEvents() {
			if bytes.Contains([]byte(e.GetScope()), []byte(w.canaries["workspace id"])) {
				names++
			}
		}
		if names < 5 {
			return fmt.Errorf("only %d events name the workspace", names)
		}
		return nil
	})

	s := newSearcher(w.canaries)
	hits, files, size := s.folder(t, mesh.Dir)
	hits = append(hits, w.processes(s)...)
	live := files
	hits = append(hits, s.metrics(t)...)
	_, err := w.admin.Runs().CancelRun(w.ctx, &computev1.CancelRunRequest{Name: w.waiting})
	w.must(err)
	_, err = w.admin.WaitRun(w.ctx, w.waiting, nil)
	w.must(err)
	mesh.Stop() // databases write their logs back
	again, files, size2 := s.folder(t, mesh.Dir)
	hits = append(hits, again...)
	hits = append(hits, s.in("the log of the services", []byte(mesh.Log()))...)
	hits = append(hits, s.in("the log of the agent", w.agentLog.bytes())...)
	if len(mesh.Log()) < 1000 || len(w.agentLog.bytes()) < 100 {
		t.Errorf("the logs have only %d and %d bytes", len(mesh.Log()), len(w.agentLog.bytes()))
	}
	if live < 30 || size < 1<<20 {
		t.Errorf("only %d files of %d bytes were searched", live, size)
	}
	found := make(map[string][]hit)
	for _, h := range hits {
		found[h.canary] = append(found[h.canary], h)
	}
	for _, what := range slices.Sorted(maps.Keys(w.canaries)) {
		t.Run(what, func(t *testing.T) {
			for _, h := range found[what] {
				t.Errorf("found, %s, in %s", h.form, h.place)
			}
		})
	}
	t.Logf("%d canaries in %d files of %d MiB while running, %d files of %d MiB after; %d hits", len(w.canaries), live, size>>20, files, size2>>20, len(hits))
}

// processes searches what everyone on the machine may read of the waiting run's agent: its command line, its environment.
func (w *walk) processes(s *searcher) (hits []hit) {
	w.t.Helper()
	b, err := os.ReadFile(filepath.Join(mesh.Dir, "compute", "runs", w.waitingUID, "agent.pid"))
	w.must(err)
	pid := 0
	_, err = fmt.Sscan(string(b), &pid)
	w.must(err)
	for _, file := range []string{"cmdline", "environ", "comm"} {
		for who, p := range map[string]int{"the agent": pid, "the installation": os.Getpid()} {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", p, file))
			w.must(err)
			hits = append(hits, s.in(file+" of "+who, b)...)
		}
	}
	return hits
}

// metrics searches what Prometheus would be told.
func (s *searcher) metrics(t *testing.T) (hits []hit) {
	t.Helper()
	for name, n := range mesh.Nodes {
		families, err := n.Metrics().Gather()
		if err != nil || len(families) == 0 {
			t.Fatalf("metrics of %s: %d families, %v", name, len(families), err)
		}
		for _, f := range families {
			hits = append(hits, s.in("metrics of "+name, []byte(f.String()))...)
		}
	}
	return hits
}
