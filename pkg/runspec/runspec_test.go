package runspec

import (
	"strings"
	"testing"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

func TestPath(t *testing.T) {
	for _, p := range []string{"a", "a/b.txt", "...", "a..b", ".hidden", "a b", "ä", strings.Repeat("a", 1024)} {
		if err := Path("path", "the path", p); err != nil {
			t.Errorf("%q: %v", p, err)
		}
	}
	for name, p := range map[string]string{
		"empty": "", "root": "/", "absolute": "/etc/passwd", "dot": ".", "dots": "..", "up": "../a", "up inside": "a/../../b", "up and back": "a/../b", "dot inside": "a/./b",
		"dot first": "./a", "slash last": "a/", "two slashes": "a//b", "two first": "//a", "up last": "a/..", "backslash": `a\b`, "windows up": `..\a`, "NUL": "a\x00b", "newline": "a\nb",
		"escape": "a\x1b[2J", "DEL": "a\x7f", "not UTF-8": "a\xff", "not NFC": "a\u0308", "too long": strings.Repeat("a", 1025),
	} {
		if err := Path("path", "the path", p); fault.ReasonOf(err) != faultv1.Reason_PATH_INVALID {
			t.Errorf("%s: %q: %v", name, p, err)
		}
	}
}

func TestLooksSecret(t *testing.T) {
	for _, tc := range []struct {
		key, value string
		secret     bool
	}{
		{"A", "plain", false}, {"EPOCHS", "10", false}, {"TOKENIZERS_PARALLELISM", "false", false}, {"MAX_TOKENS", "5", false}, {"KEYBOARD", "us", false}, {"PASSENGERS", "5", false},
		{"DATA_URL", "https://example.com/a@b", false}, {"PASSWORD", "", false}, {"MONKEY", "x", false}, {"PWD", "/srv", false}, {"PASSWORDLESS", "true", false},
		{"PASSWORD", "x", true}, {"DB_PASSWORD", "x", true}, {"db_password", "x", true}, {"PGPASSWORD", "x", true}, {"MYSQL_PWD", "x", true}, {"HF_TOKEN", "x", true}, {"API_KEY", "x", true}, {"APIKEY", "x", true},
		{"AWS_SECRET_ACCESS_KEY", "x", true}, {"MY_CREDENTIALS", "x", true}, {"PRIVATE_KEY_PATH", "x", true},
		{"A", "-----BEGIN RSA PRIVATE KEY-----", true}, {"A", "-----BEGIN PRIVATE KEY-----", true}, {"A", "-----BEGIN CERTIFICATE-----", false},
		{"A", "AKIAABCDEFGHIJKLMNOP", true}, {"A", "ASIAABCDEFGHIJKLMNOP", true}, {"A", "eyJhbGciOiJ9.eyJzdWIiOiIx.sig", true}, {"A", "ghp_" + strings.Repeat("a", 36), true},
		{"A", "github_pat_" + strings.Repeat("a", 30), true}, {"A", "xoxb-1234567890-x", true}, {"A", "glpat-" + strings.Repeat("a", 20), true}, {"A", "hf_" + strings.Repeat("a", 34), true},
		{"A", "postgres://user:pw@host/db", true}, {"A", "postgres://host/db", false}, {"A", "DefaultEndpointsProtocol=https;AccountKey=abc", true}, {"A", "rdt_abcdefgh1", true},
	} {
		if got := looksSecret(tc.key, tc.value); got != tc.secret {
			t.Errorf("%s=%s: %v", tc.key, tc.value, got)
		}
	}
}

func TestEnvironment(t *testing.T) {
	for name, tc := range map[string]struct {
		key, value string
		refused    bool
	}{
		"plain": {"EPOCHS", "3", false}, "a name with a dash": {"A-B", "x", true}, "an empty name": {"", "x", true}, "ours": {"REDOUBT_RUN", "x", true},
		"the loader's": {"LD_PRELOAD", "x", true}, "NUL in a value": {"A", "x\x00", true}, "not UTF-8": {"A", "\xff", true}, "a secret": {"DB_PASSWORD", "hunter22", true},
	} {
		err := Environment(map[string]string{tc.key: tc.value})
		if (fault.ReasonOf(err) == faultv1.Reason_REQUEST_INVALID) != tc.refused || err != nil && strings.Contains(err.Error(), "hunter22") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := Environment(nil); err != nil {
		t.Error(err)
	}
}
