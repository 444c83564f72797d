package app

import (
	"testing"
	"time"
	"unicode/utf8"
)

func TestBarLine(t *testing.T) {
	cases := []struct {
		name        string
		label       string
		done, total int64
		since       time.Duration
		width       int
		want        string
	}{
		{"at its beginning", "m", 0, 4 << 20, 0, 80, "m  [                        ]    0%  0 B of 4.0 MiB"},
		{"half", "m", 2 << 20, 4 << 20, 2 * time.Second, 80, "m  [============            ]   50%  2.0 MiB of 4.0 MiB  1.0 MiB/s  2.0 s left"},
		{"at its end", "m", 4 << 20, 4 << 20, 2 * time.Second, 80, "m  [========================]  100%  4.0 MiB of 4.0 MiB  2.0 MiB/s"},
		{"more than was said", "m", 9, 4, 0, 80, "m  [========================]  100%  9 B of 4 B"},
		{"no total", "m", 2048, 0, 0, 80, "m  2.0 KiB"},
		{"little room", "m", 1, 2, 0, 30, "m   50%  1 B of 2 B"},
		{"no room", "model", 1, 2, 0, 4, "mode"},
		{"none at all", "model", 1, 2, 0, -1, ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got := barLine(c.label, c.done, c.total, c.since, c.width)
			if got != c.want || utf8.RuneCountInString(got) > max(c.width, 0) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}
