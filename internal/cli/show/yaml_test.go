package show

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
)

func TestYAMLIsTheJSON(t *testing.T) {
	m := &computev1.Run{
		Name: "r", State: computev1.Run_STATE_RUNNING, LogBytes: 1 << 60, ExitCode: -3, Command: []string{"python3", "-c", "print(1)\nprint(2)\n"},
		Environment: map[string]string{"A": "yes", "B": ""}, CancelRequested: true, Limits: &computev1.RunLimits{},
	}
	want := `name: r
state: STATE_RUNNING
command:
  - python3
  - -c
  - |
    print(1)
    print(2)
exitCode: -3
cancelRequested: true
environment:
  A: "yes"
  B: ""
limits: {}
logBytes: "1152921504606846976"
`
	var b bytes.Buffer
	if err := YAML(&b, m); err != nil || b.String() != want {
		t.Errorf("got\n%s, %v", b.String(), err)
	}
	b.Reset()
	for range 2 {
		if err := Document(&b, m); err != nil {
			t.Fatal(err)
		}
	}
	if strings.Count(b.String(), "---\n") != 2 {
		t.Errorf("got\n%s", b.String())
	}
}

// Whatever somebody wrote into a field, a reader of YAML gets what a reader of JSON gets.
func TestYAMLKeepsEveryString(t *testing.T) {
	words := []string{
		"", "yes", "NO", "on", "y", "~", "null", "true", "0x10", "1_000", "1:30", "12e3", ".5", ".nan", "NaN", "2026-01-02", "<<", "=", "*a", "&a", "!x", "%x", "@x", "`x",
		"- a", "a: b", "a #b", "# a", "{", "]", "'", "\"", "\\", "\x1b]0;owned\x07", "\u0085", "\u2028x\u2029", "\ufeff", "\u202e", " lead", "trail ", "a\nb\n", "\n", "\n\n a", "\t", "a\tb\n", "a\r\nb",
		"---", "...", "? x", "|", ">", "é😀", strings.Repeat("long ", 60), "a\n  indented\n more", "\u00a0",
	}
	r := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		var s strings.Builder
		for range 1 + r.IntN(4) {
			s.WriteString(words[r.IntN(len(words))])
		}
		words = append(words, s.String())
	}
	for _, w := range words {
		text, err := json.Marshal(map[string]any{"key": w, w: []any{w, 1.5e300, true, nil, map[string]any{}, []any{}}})
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		if err := YAMLOf(&b, text); err != nil {
			t.Fatalf("%q: %v", w, err)
		}
		var got, want map[string]any
		if err := yaml.Unmarshal(b.Bytes(), &got); err != nil {
			t.Fatalf("%q: %v\n%s", w, err, b.String())
		}
		if err := json.Unmarshal(text, &want); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%q became\n%s", w, b.String())
		}
		if strings.ContainsAny(b.String(), "\x1b\x07\u0085") {
			t.Errorf("%q steers the terminal: %q", w, b.String())
		}
	}
}

func TestYAMLRefuses(t *testing.T) {
	for _, text := range []string{"", "{", `{"a":1} {"b":2}`, "nonsense"} {
		var b bytes.Buffer
		if err := YAMLOf(&b, []byte(text)); err == nil || b.Len() > 0 {
			t.Errorf("%q became %q", text, b.String())
		}
	}
}
