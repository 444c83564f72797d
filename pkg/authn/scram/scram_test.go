package scram

import (
	"encoding/base64"
	"strings"
	"testing"

	"github.com/redoubt-ml/redoubt/pkg/redact"
)

// The example of RFC 7677, as PostgreSQL keeps it.
func TestVector(t *testing.T) {
	salt, err := base64.StdEncoding.DecodeString("W22ZaJ0SNY7soEsUEjb6gQ==")
	if err != nil {
		t.Fatal(err)
	}
	got, err := verifier(redact.FromString("pencil"), salt, 4096)
	if err != nil {
		t.Fatal(err)
	}
	if want := "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestVerifier(t *testing.T) {
	seen := make(map[string]bool)
	for range 3 {
		v, err := Verifier(redact.FromString("canary-password"))
		if err != nil || seen[v] || strings.Contains(v, "canary") || !strings.HasPrefix(v, "SCRAM-SHA-256$4096:") {
			t.Errorf("%s, %v", v, err)
		}
		seen[v] = true
	}
	for _, p := range []string{"", "with space", "tab\t", "\u00fc", "\x00", "\x7f"} {
		if v, err := Verifier(redact.FromString(p)); err == nil {
			t.Errorf("%q is taken: %s", p, v)
		}
	}
}
