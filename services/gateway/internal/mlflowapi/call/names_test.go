package call

import (
	"strings"
	"testing"

	"github.com/redoubt-ml/redoubt/pkg/resource"
)

const ws = "subscriptions/s/resourceGroups/g/workspaces/w"

func TestPlaces(t *testing.T) {
	c := &Call{Workspace: ws}
	for raw, want := range map[string]Place{
		"0/r1/artifacts":           {Run: ws + "/runs/r1"},
		"0/r1/artifacts/a/b.txt":   {Run: ws + "/runs/r1", Path: "a/b.txt"},
		"0/r1/artifacts/a%20b":     {Run: ws + "/runs/r1", Path: "a b"},
		"0/r1/artifacts/artifacts": {Run: ws + "/runs/r1", Path: "artifacts"},
		"models/m.1/7/a/b":         {Version: ws + "/models/m.1/versions/7", Path: "a/b"},
		"0/r1/artifacts/100%":      {}, "0/r1/artifacts/..": {}, "0/r1/artifacts/a/../b": {}, "0/r1/artifacts/%2e%2e": {}, "0/r1/artifacts/.%2e/x": {}, "0/r1/artifacts/a%2fb": {},
		"0/r1/artifacts/a%5cb": {}, `0/r1/artifacts/a\b`: {}, "0/r1/artifacts/%252e%252e": {}, "0/r1/artifacts/a%00": {}, "0/r1/artifacts/a%0ab": {}, "0/r1/artifacts/": {}, "0/r1/artifacts//a": {}, "/0/r1/artifacts/a": {},
		"0/r1/other/a": {}, "0/r1": {}, "0": {}, "": {}, "../r1/artifacts/a": {}, "0/../artifacts/a": {}, "0/r1%2f..%2fr2/artifacts/a": {}, "0/a b/artifacts/x": {}, "models/m/latest/x": {}, "models/m/01/x": {}, "models/../1/x": {},
	} {
		path, err := SentPath(raw)
		var got Place
		if err == nil {
			got, err = c.PlaceOf(path)
		}
		if want == (Place{}) && err == nil || want != (Place{}) && (err != nil || got != want) {
			t.Errorf("%q is %+v: %v", raw, got, err)
		}
	}
}

// Whatever is sent: a path that is taken names one run or version of the workspace, and a file below it.
func FuzzPlaces(f *testing.F) {
	for _, s := range []string{"0/r1/artifacts/a/b", "models/m/1/x", "0/r1/artifacts/%2e%2e/x", "0/r1/artifacts/%c0%ae", "..%2f..", "0/r1/artifacts/%25%32%65"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		path, err := SentPath(raw)
		if err != nil {
			return
		}
		at, err := (&Call{Workspace: ws}).PlaceOf(path)
		if err != nil {
			return
		}
		name, err := resource.Parse(at.Run + at.Version)
		if err != nil || !strings.HasPrefix(name.String(), ws+"/") || (name.Kind() == resource.KindRun) != (at.Version == "") || name.Kind() != resource.KindRun && name.Kind() != resource.KindModelVersion {
			t.Fatalf("%q is about %q: %v", raw, at.Run+at.Version, err)
		}
		for segment := range strings.SplitSeq(at.Path, "/") {
			if segment == ".." || segment == "." || strings.ContainsAny(segment, "\\\x00") || strings.Contains(strings.ToLower(segment), "%2e") {
				t.Fatalf("%q is the file %q", raw, at.Path)
			}
		}
	})
}

func TestNames(t *testing.T) {
	c := &Call{Workspace: ws}
	for _, bad := range []string{"", "a/b", "..", "a b", "%2e", "a\x00"} {
		if n, err := c.RunName(bad); err == nil {
			t.Errorf("%q is the run %q", bad, n)
		}
		if n, err := c.ExperimentName(bad); err == nil {
			t.Errorf("%q is the experiment %q", bad, n)
		}
		if n, err := c.ModelName(bad); err == nil {
			t.Errorf("%q is the model %q", bad, n)
		}
		if n, err := c.VersionName("m", bad); err == nil {
			t.Errorf("%q is the version %q", bad, n)
		}
	}
}
