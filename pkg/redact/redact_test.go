package redact

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

func TestNothingPrintsASecret(t *testing.T) {
	const canary = "canary-5f3a"
	s := FromString(canary)
	holder := struct {
		S  Secret
		P  *Secret
		In any
	}{s, &s, s}
	js, err := json.Marshal(holder)
	if err != nil {
		t.Fatal(err)
	}
	var logged bytes.Buffer
	slog.New(slog.NewJSONHandler(&logged, nil)).Info("x", "secret", s, "holder", holder)
	slog.New(slog.NewTextHandler(&logged, nil)).Info("x", "secret", s, "holder", holder)
	hexed := fmt.Sprintf("%x", canary)
	for name, out := range map[string]string{
		"v": fmt.Sprintf("%v", s), "+v": fmt.Sprintf("%+v", holder), "#v": fmt.Sprintf("%#v", holder),
		"s": fmt.Sprintf("%s", s), "q": fmt.Sprintf("%q", s), "x": fmt.Sprintf("%x", s), "d": fmt.Sprintf("%d", holder.S),
		"json": string(js), "slog": logged.String(),
		"error": fmt.Errorf("with %w and %v", fmt.Errorf("%v", s), s).Error(),
	} {
		if strings.Contains(out, canary) || strings.Contains(out, hexed) || strings.Contains(out, "99 97 110") {
			t.Errorf("%s shows the secret: %s", name, out)
		}
	}
}

func TestEqual(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want bool
	}{{"", "", true}, {"a", "a", true}, {"a", "b", false}, {"a", "", false}, {"a", "a\x00", false}} {
		if got := FromString(c.a).Equal(FromString(c.b)); got != c.want {
			t.Errorf("Equal(%q, %q) = %v", c.a, c.b, got)
		}
	}
	var zero Secret
	if !zero.Empty() || zero.RevealString() != "" {
		t.Error("the zero value is not empty")
	}
}

func TestRoundTripAndWipe(t *testing.T) {
	var in struct{ S Secret }
	if err := json.Unmarshal([]byte(`{"S":"hello"}`), &in); err != nil || in.S.RevealString() != "hello" {
		t.Fatalf("%v %q", err, in.S.RevealString())
	}
	c := in.S
	in.S.Wipe()
	if bytes.ContainsAny(c.Reveal(), "helo") {
		t.Error("a copy outlives Wipe")
	}
}
