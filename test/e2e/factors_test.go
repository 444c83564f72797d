package e2e

import (
	"bytes"
	"io"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/pquerna/otp/hotp"

	"github.com/redoubt-ml/redoubt/internal/cli"
)

// answering is a standard input that is written when it is read: by somebody who looks at what was printed.
type answering struct {
	write func() string
	text  *strings.Reader
}

func (a *answering) Read(b []byte) (int, error) {
	if a.text == nil {
		a.text = strings.NewReader(a.write())
	}
	return a.text.Read(b)
}

// A2: an authenticator app is added, asked for, replaced by a recovery code, and reset by an administrator, from a terminal.
func TestFactorsByCommand(t *testing.T) {
	x := typist(t, "")
	x.types(0, "tulpen im regen 7\n", "user", "create", "frida", "--password-stdin")
	t.Setenv("REDOUBT_TOKEN", "")
	t.Setenv("REDOUBT_WORKSPACE", "")
	login := func(code int, lines ...string) (string, string) {
		t.Helper()
		return x.types(code, strings.Join(append([]string{"tulpen im regen 7"}, lines...), "\n")+"\n", "login", "--server", mesh.URL, "--ca", x.dir+"/ca.pem", "--user", "frida", "--password-stdin")
	}
	login(0)
	x.ok("factor", "list")
	var out, errs bytes.Buffer
	var secret string
	code := func(later int64) string {
		c, err := hotp.GenerateCode(secret, uint64(time.Now().Unix()/30+later))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	in := &answering{write: func() string {
		m := regexp.MustCompile(`otpauth://totp/\S+[?&]secret=([A-Z2-7]+)`).FindStringSubmatch(out.String())
		if m == nil {
			t.Fatalf("no URI in\n%s", out.String())
		}
		secret = m[1]
		return code(0) + "\n"
	}}
	if got := cli.Main(t.Context(), []string{"factor", "add", "--name", "phone", "--code-stdin"}, io.Reader(in), &out, &errs); got != 0 {
		t.Fatalf("%d\n%s%s", got, out.String(), errs.String())
	}
	codes := regexp.MustCompile(`(?m)^[0-9a-z]{5}(?:-[0-9a-z]{5}){3}$`).FindAllString(out.String(), -1)
	if len(codes) != 10 {
		t.Fatalf("no recovery codes in\n%s", out.String())
	}
	// The session that came in place of the first is kept.
	x.has(x.ok("whoami"), "users/frida")
	x.has(x.ok("factor", "list"), "phone", "counts")
	_, said := login(1)
	x.has(said, "a code is asked for")
	_, said = login(3, "000000")
	x.has(said, "wrong")
	login(0, code(1))
	login(3, code(1))
	login(0, codes[0])
	login(3, codes[0])
	out2, _ := x.types(0, "", "factor", "recovery-codes")
	if n := len(regexp.MustCompile(`(?m)^[0-9a-z-]{23}$`).FindAllString(out2, -1)); n != 10 {
		t.Errorf("%d new recovery codes in\n%s", n, out2)
	}
	x.types(3, "", "factor", "policy", "--require-mfa=true")

	t.Setenv("REDOUBT_TOKEN", mesh.Admin(t))
	x.has(x.ok("factor", "policy"), "require-mfa", "false")
	x.ok("factor", "reset", "frida", "--yes")
	t.Setenv("REDOUBT_TOKEN", "")
	login(0)
	x.has(x.ok("whoami"), "users/frida")
}
