package activity

import (
	"testing"

	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
)

// What an event says of how many calls it stands for is the last column.
func TestCountOfARow(t *testing.T) {
	for want, e := range map[string]*telemetryv1.ActivityEvent{
		"":       {Method: "/a.B/C", Count: 1},
		"7":      {Method: "/a.B/C", Count: 7, Details: map[string]string{"calls": "joined"}},
		"3 to 9": {Method: "/a.B/C", Count: 9, Details: map[string]string{"calls": "joined", "calls_at_least": "3"}},
	} {
		row := eventRow(e)
		if got := row[len(row)-1]; got != want || row[1] != "B/C" {
			t.Errorf("got %q, want the count %q", row, want)
		}
	}
}
