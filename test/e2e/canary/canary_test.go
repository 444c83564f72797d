package canary

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
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
	w.secrets()
	w.forms()
	w.fields()
	// The activity log shows names to who may see them: they are stored, and have to be ciphertext.
	names := 0
	w.eventually(func() error {
		names = 0
		for token := ""; names < 5; { // by now a great many events came after them
			page, err := w.admin.Activity().ListActivity(w.ctx, &telemetryv1.ListActivityRequest{Scope: "/", PageSize: 1000, PageToken: token})
			if err != nil {
				return err
			}
			for _, e := range page.GetEvents() {
				if bytes.Contains([]byte(e.GetScope()), []byte(w.canaries["workspace id"])) {
					names++
				}
			}
			if token = page.GetNextPageToken(); token == "" {
				break
			}
		}
		if names < 5 {
			return fmt.Errorf("only %d events name the workspace", names)
		}
		return nil
	})

	s := newSearcher(w.canaries)
	w.planted(s)
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
	hits = append(hits, s.in("the traces", traces.bytes())...)
	hits = append(hits, w.told(s)...)
	if traces.n.Load() < 1000 {
		t.Errorf("only %d spans came", traces.n.Load())
	}
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
				t.Errorf("found, %s, in %s%s", h.form, h.place, w.around(h))
			}
		})
	}
	fmt.Printf("attack: %s: tried %d, accepted %d\n", t.Name(), len(w.canaries), len(found))
	t.Logf("%d spans, %d answers, %d bytes of logs", traces.n.Load(), w.said.calls, len(mesh.Log()))
	t.Logf("%d canaries in %d files of %d MiB while running, %d files of %d MiB after; %d hits", len(w.canaries), live, size>>20, files, size2>>20, len(hits))
}

// around is the line of a log or answer in which a canary stands.
func (w *walk) around(h hit) string {
	text := []byte(mesh.Log())
	if by, ok := strings.CutPrefix(h.place, "what "); ok {
		text = nil
		for _, a := range w.said.all {
			if a.by == strings.TrimSuffix(by, " answers") {
				text = append(append(text, bytes.ReplaceAll(a.text, []byte("\n"), []byte(" "))...), '\n')
			}
		}
	} else if h.place != "the log of the services" {
		return ""
	}
	b := forms(w.canaries[h.canary])[h.form]
	for line := range bytes.Lines(text) {
		if i := bytes.Index(line, b); i >= 0 {
			return fmt.Sprintf(": %.400s", line[max(0, i-250):])
		}
	}
	return ""
}

// told searches what callers were told: a sensitive value is in none of it, not even in the words to whoever sent it.
func (w *walk) told(all *searcher) (hits []hit) {
	seen := make(map[hit]bool)
	for _, a := range w.said.all {
		for _, h := range all.in("what "+a.by+" answers", a.text) {
			if w.sensitive[h.canary] && !seen[h] {
				seen[h] = true
				hits = append(hits, h)
			}
		}
	}
	return hits
}

// planted holds that the search finds what is there, each canary in each form: in a log, a file, a trace and an answer as they come.
func (w *walk) planted(s *searcher) {
	w.t.Helper()
	missed := 0
	for what, text := range w.canaries {
		for form, b := range forms(text) {
			line := append(append([]byte(`{"level":"INFO","msg":"`), b...), `"}`...)
			if !slices.ContainsFunc(s.in("", line), func(h hit) bool { return h.canary == what }) {
				missed++
				w.t.Errorf("%s was planted %s, and not found", what, form)
			}
		}
	}
	w.t.Logf("planted: %d canaries, missed %d", len(w.canaries), missed)
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
