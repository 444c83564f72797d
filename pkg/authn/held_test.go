package authn

import (
	"strings"
	"testing"

	"github.com/redoubt-ml/redoubt/pkg/redact"
)

func TestHeldKeys(t *testing.T) {
	p, kept, err := NewHeldProver(nil)
	if err != nil {
		t.Fatal(err)
	}
	again, err := HeldProver(kept, nil)
	if err != nil || again.Thumbprint() != p.Thumbprint() {
		t.Errorf("another key came back: %v", err)
	}
	text := kept.RevealString()
	for name, bad := range map[string]string{
		"nothing": "", "half": text[:20], "more": text + "AAAA", "zero": strings.Repeat("A", 43), "above the order": strings.Repeat("_", 42) + "8", "no base64": strings.Repeat("~", 43),
	} {
		if _, err := HeldProver(redact.FromString(bad), nil); err == nil || bad != "" && strings.Contains(err.Error(), bad) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
