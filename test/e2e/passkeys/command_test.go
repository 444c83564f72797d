package passkeys

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"golang.org/x/sys/unix"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/internal/cli"
)

// output is what a command has written so far. It is safe for concurrent use.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// terminal is the end of a pseudo-terminal that a command has.
func terminal(t *testing.T) *os.File {
	t.Helper()
	keyboard, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skip("there are no pseudo-terminals here:", err)
	}
	t.Cleanup(func() { _ = keyboard.Close() })
	if err := unix.IoctlSetPointerInt(int(keyboard.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Skip("there are no pseudo-terminals here:", err)
	}
	n, err := unix.IoctlGetInt(int(keyboard.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip("there are no pseudo-terminals here:", err)
	}
	t.Cleanup(func() { _ = program.Close() })
	return program
}

// A2: who has security keys alone is led to a browser by a command that wants a fresh proof, and the command goes on.
func TestCommandStepsUpByAKey(t *testing.T) {
	const user = "kai"
	if _, err := identityv1.NewDirectoryServiceClient(mesh.Dial(t, mesh.Admin(t))).CreateUser(t.Context(), &identityv1.CreateUserRequest{UserId: user, Password: password}); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	ca := filepath.Join(dir, "ca.pem")
	if err := os.WriteFile(ca, mesh.CA, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx := chromium(t)
	plugIn(ctx, t)
	do(ctx, t, "signing in to the page of factors", append([]chromedp.Action[chromedp.Void]{chromedp.Navigate(mesh.URL + "/oauth2/factors")}, signsIn(user, "#key button")...)...)
	do(ctx, t, "registering", chromedp.Click(chromedp.CSS("#key button")), chromedp.WaitVisible(chromedp.CSS("pre.code")))
	catchUp(t)
	for k, v := range map[string]string{
		"HOME": dir, "REDOUBT_CONFIG": filepath.Join(dir, "config.yaml"), "REDOUBT_KEYRING": "off", "REDOUBT_FORMAT": "", "REDOUBT_CONTEXT": "", "REDOUBT_ADDR": "", "REDOUBT_CACERT": "",
		"REDOUBT_TOKEN": "", "REDOUBT_WORKSPACE": "", "REDOUBT_RESOURCE_GROUP": "", "DISPLAY": ":0", "BROWSER": "",
	} {
		t.Setenv(k, v)
	}
	tty := terminal(t)
	// runs starts a command that leads to a browser, goes there, and gives what the command wrote.
	runs := func(there func(address string), args ...string) string {
		t.Helper()
		var out, errs output
		end := make(chan int, 1)
		go func() { end <- cli.Main(t.Context(), args, tty, &out, &errs) }()
		address := ""
		for deadline := time.Now().Add(time.Minute); address == ""; time.Sleep(10 * time.Millisecond) {
			if address = regexp.MustCompile(`https://\S+/oauth2/authorize\?\S+`).FindString(errs.String()); address == "" && time.Now().After(deadline) {
				t.Fatalf("no address:\n%s%s", out.String(), errs.String())
			}
		}
		there(address)
		if code := <-end; code != 0 {
			t.Fatalf("%v: %d\n%s%s", args, code, out.String(), errs.String())
		}
		return out.String() + errs.String()
	}
	runs(func(address string) {
		do(ctx, t, "login", chromedp.Navigate(address), chromedp.Click(chromedp.CSS(`button[value="continue"]`)), chromedp.WaitVisible(chromedp.CSS("p")))
	}, "login", "--server", mesh.URL, "--ca", ca)
	said := runs(func(address string) {
		do(ctx, t, "stepping up: password", append([]chromedp.Action[chromedp.Void]{chromedp.Navigate(address)}, signsIn(user, "#key button")...)...)
		do(ctx, t, "stepping up: key", chromedp.Click(chromedp.CSS("#key button")), chromedp.WaitNotPresent(chromedp.CSS("#key")))
	}, "factor", "recovery-codes")
	if n := len(regexp.MustCompile(`(?m)^[0-9a-z]{5}(?:-[0-9a-z]{5}){3}$`).FindAllString(said, -1)); n != 10 {
		t.Errorf("%d recovery codes:\n%s", n, said)
	}
	// The session that came stays, and is fresh.
	var out, errs output
	if code := cli.Main(t.Context(), []string{"factor", "recovery-codes"}, strings.NewReader(""), &out, &errs); code != 0 {
		t.Errorf("%d\n%s", code, errs.String())
	}
}
