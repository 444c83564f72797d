package show

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
)

func TestTableKeepsTheTerminal(t *testing.T) {
	var b bytes.Buffer
	err := Table(&b, []string{"name", "text"}, [][]string{{"a", "x\x1b]0;owned\x07\ny\u202e"}, {"b", ""}})
	if err != nil {
		t.Fatal(err)
	}
	if got := b.String(); strings.ContainsAny(got, "\x1b\x07\u202e") || strings.Count(got, "\n") != 3 || !strings.Contains(got, "–") {
		t.Errorf("got %q", got)
	}
}

func TestJSONIsTheSameEachTime(t *testing.T) {
	m := &computev1.Run{Name: "r", State: computev1.Run_STATE_RUNNING, LogBytes: 1 << 60}
	want := "{\n  \"name\": \"r\",\n  \"state\": \"STATE_RUNNING\",\n  \"logBytes\": \"1152921504606846976\"\n}\n"
	var b bytes.Buffer
	if err := JSON(&b, m); err != nil || b.String() != want {
		t.Errorf("got %q, %v", b.String(), err)
	}
	b.Reset()
	if err := Line(&b, m); err != nil || strings.Count(b.String(), "\n") != 1 || strings.Contains(b.String(), ": ") {
		t.Errorf("got %q, %v", b.String(), err)
	}
}

func TestForPeople(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	ago := func(d time.Duration) string { return Ago(now, timestamppb.New(now.Add(-d))) }
	for _, c := range []struct{ got, want string }{
		{ago(0), "now"},
		{ago(3 * time.Second), "3.0 s ago"},
		{ago(90 * time.Second), "90 s ago"},
		{ago(5 * time.Minute), "5 min ago"},
		{ago(3 * time.Hour), "3 h ago"},
		{ago(72 * time.Hour), "3 d ago"},
		{ago(-time.Hour), "in 60 min"},
		{Ago(now, nil), ""},
		{Clock(nil), ""},
		{Bytes(0), "0 B"},
		{Bytes(1023), "1023 B"},
		{Bytes(1536), "1.5 KiB"},
		{Bytes(3 << 30), "3.0 GiB"},
		{Last("a/b/c"), "c"},
		{Last("c"), "c"},
		{Enum("KIND_SELF_HOSTED", "KIND_"), "self hosted"},
	} {
		if c.got != c.want {
			t.Errorf("got %q, want %q", c.got, c.want)
		}
	}
}
