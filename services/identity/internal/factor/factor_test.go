package factor

import (
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/redoubt-ml/redoubt/pkg/redact"
)

// rfc is the secret of RFC 6238 appendix B, of SHA-1.
var rfc = redact.FromString("12345678901234567890")

func TestVectors(t *testing.T) { // A2: RFC 6238 appendix B, the last six of its eight digits
	for at, code := range map[int64]string{
		59: "287082", 1111111109: "081804", 1111111111: "050471", 1234567890: "005924", 2000000000: "279037", 20000000000: "353130",
	} {
		step, ok, err := Match(rfc, code, time.Unix(at, 0), 0)
		if err != nil || !ok || step != at/30 {
			t.Errorf("at %d: %d %v %v", at, step, ok, err)
		}
	}
}

func TestMatch(t *testing.T) { // A2
	const at, code = 1234567890, "005924" // step 41152263
	const step = int64(at / 30)
	for _, c := range []struct {
		name, code string
		now        int64
		used       int64
		ok         bool
	}{
		{"as it is", code, at, 0, true},
		{"in groups", "005 924", at, 0, true},
		{"space around", " 005924 ", at, 0, true},
		{"the step after it", code, at + 30, 0, true},
		{"the step before it", code, at - 30, 0, true},
		{"two steps after", code, at + 60, 0, false},
		{"two steps before", code, at - 60, 0, false},
		{"an hour after", code, at + 3600, 0, false},
		{"the last second that counts", code, (step+2)*30 - 1, 0, true},
		{"a second too late", code, (step + 2) * 30, 0, false},
		{"used", code, at, step, false},
		{"used, in the step after", code, at + 30, step, false},
		{"a later one was used", code, at, step + 1, false},
		{"an earlier one was used", code, at, step - 1, true},
		{"another code", "005925", at, 0, false},
		{"nothing", "", at, 0, false},
		{"five digits", "00592", at, 0, false},
		{"the leading zeros left out", "5924", at, 0, false},
		{"seven digits", "0059240", at, 0, false},
		{"eight digits of the RFC", "89005924", at, 0, false},
		{"letters for digits", "OO5924", at, 0, false},
		{"full width", "００５９２４", at, 0, false},
		{"Arabic-Indic", "٠٠٥٩٢٤", at, 0, false},
		{"mathematical", "𝟎𝟎𝟓𝟗𝟐𝟒", at, 0, false},
		{"a sign", "+05924", at, 0, false},
		{"a tab", "005\t924", at, 0, false},
		{"NUL after it", "005924\x00", at, 0, false},
		{"two codes", "005924005924", at, 0, false},
		{"very long", strings.Repeat(" ", 1<<16) + code, at, 0, false},
		{"the first step of all", "755224", 0, 0, false},
	} {
		got, ok, err := Match(rfc, c.code, time.Unix(c.now, 0), c.used)
		if err != nil || ok != c.ok || ok && got != step {
			t.Errorf("%s: %d %v %v", c.name, got, ok, err)
		}
	}
	if _, _, err := Match(redact.FromString("short"), code, time.Unix(at, 0), 0); err == nil {
		t.Error("a short secret is used")
	}
	if _, _, err := Match(redact.Secret{}, code, time.Unix(at, 0), 0); err == nil {
		t.Error("no secret is used")
	}
}

func TestSecretsAreOnesOwn(t *testing.T) {
	a, b := NewTOTP(), NewTOTP()
	if a.Len() != 20 || a.Equal(b) {
		t.Errorf("%d bytes", a.Len())
	}
	u, err := url.Parse(URI(a, "redoubt.test:7443", "users/alice"))
	if err != nil || u.Scheme != "otpauth" || u.Host != "totp" || u.Path != "/Redoubt redoubt.test 7443:users/alice" {
		t.Fatalf("%v %v", u, err)
	}
	q := u.Query()
	if q.Get("secret") != Text(a) || q.Get("issuer") != "Redoubt redoubt.test:7443" || q.Get("digits") != "6" || q.Get("period") != "30" || q.Get("algorithm") != "SHA1" {
		t.Errorf("%v", q)
	}
	if u, err := url.Parse(URI(a, "a&secret=b+c", "x/y")); err != nil || u.Query().Get("secret") != Text(a) || u.Query().Get("issuer") != "Redoubt a&secret=b+c" {
		t.Errorf("%v %v", u, err)
	}
}

func TestRecoveryCodes(t *testing.T) { // A2
	codes := NewRecoveryCodes()
	if len(codes) != 10 {
		t.Fatalf("%d codes", len(codes))
	}
	seen := make(map[string]bool)
	for _, c := range codes {
		shown := Show(c)
		if seen[shown] || len(shown) != 23 {
			t.Errorf("%q", shown)
		}
		seen[shown] = true
		if got, ok := Recovery(shown); !ok || !got.Equal(c) {
			t.Errorf("%q reads as another", shown)
		}
	}
	const code = "0123456789abcdefghjk"
	for _, c := range []struct {
		name, typed string
		ok          bool
	}{
		{"as it is", code, true},
		{"as it is shown", "01234-56789-abcde-fghjk", true},
		{"upper case", "01234-56789-ABCDE-FGHJK", true},
		{"spaces", " 01234 56789 abcde fghjk ", true},
		{"letters that look like digits", "OI234-56789-abcde-fghjk", true},
		{"l for 1", "ol234-56789-abcde-fghjk", true},
		{"one too few", "01234-56789-abcde-fghj", false},
		{"one too many", "01234-56789-abcde-fghjkm", false},
		{"a letter that is in none", "u1234-56789-abcde-fghjk", false},
		{"full width", "０1234-56789-abcde-fghjk", false},
		{"NUL", "01234-56789-abcde-fghj\x00", false},
		{"nothing", "", false},
		{"very long", code + strings.Repeat("-", 1<<10), false},
	} {
		got, ok := Recovery(c.typed)
		if ok != c.ok || ok && got.RevealString() != code {
			t.Errorf("%s: %v", c.name, ok)
		}
	}
}
