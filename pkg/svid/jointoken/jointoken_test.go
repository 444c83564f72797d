package jointoken_test

import (
	"encoding/base64"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/svid/jointoken"
)

var pin = base64.RawURLEncoding.EncodeToString([]byte(strings.Repeat("p", 32)))

func TestRoundTrip(t *testing.T) {
	for _, address := range []string{"127.0.0.1:7001", "[::1]:7001", "identity.example.com:443"} {
		want := jointoken.Token{Address: address, Pin: pin, Secret: redact.FromString("rdj_abc")}
		s, err := want.Encode()
		if err != nil {
			t.Fatalf("%s: %v", address, err)
		}
		got, err := jointoken.Parse(redact.FromString(s.RevealString() + "\n"))
		if err != nil || got.Address != want.Address || got.Pin != want.Pin || !got.Secret.Equal(want.Secret) {
			t.Errorf("%s: read back %+v, %v", address, got, err)
		}
	}
}

func TestRefused(t *testing.T) {
	good, err := jointoken.Token{Address: "h:1", Pin: pin, Secret: redact.FromString("rdj_canary")}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	s := good.RevealString()
	for name, in := range map[string]string{
		"empty":          "",
		"another prefix": "x" + s,
		"a part more":    s + ".x",
		"a part less":    s[:strings.LastIndex(s, ".")],
		"no secret":      s[:strings.LastIndex(s, ".")+1],
		"short pin":      strings.Replace(s, pin, pin[:20], 1),
		"no address":     strings.Replace(s, "."+base64.RawURLEncoding.EncodeToString([]byte("h:1"))+".", "..", 1),
		"not host:port":  strings.Replace(s, base64.RawURLEncoding.EncodeToString([]byte("h:1")), base64.RawURLEncoding.EncodeToString([]byte("h")), 1),
		"too long":       s + strings.Repeat("a", 600),
	} {
		_, err := jointoken.Parse(redact.FromString(in))
		if !fault.Is(err, codes.InvalidArgument) {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && strings.Contains(fmt.Sprint(err), "canary") {
			t.Errorf("%s: the refusal shows the secret", name)
		}
	}
}
