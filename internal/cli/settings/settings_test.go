package settings

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestFilesArePrivate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "redoubt")
	d := Open(dir)
	if err := d.Write(&File{CurrentContext: "a", Contexts: []Context{{Name: "a", Server: "https://h"}}}); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	if err := d.SetToken(t.Context(), "a", Token{Server: "https://h", Value: "secret", Expires: now.Add(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]os.FileMode{"": os.ModeDir | 0o700, ConfigFile: 0o600, TokenFile: 0o600, lockFile: 0o600} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode() != mode {
			t.Errorf("%q: %v, %v", name, info.Mode(), err)
		}
	}
	if all, err := os.ReadDir(dir); err != nil || len(all) != 3 {
		t.Errorf("left behind: %v, %v", all, err)
	}
	b, err := os.ReadFile(d.Path())
	if err != nil || strings.Contains(string(b), "secret") {
		t.Errorf("the contexts hold the token: %v", err)
	}
}

func TestTokenGoesNowhereElse(t *testing.T) {
	d, now := Open(t.TempDir()), time.Now()
	if err := d.SetToken(t.Context(), "a", Token{Server: "https://h", Value: "secret", Expires: now.Add(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	cases := []struct {
		name, context, server string
		at                    time.Time
		want                  bool
	}{
		{"its own", "a", "https://h", now, true},
		{"another context", "b", "https://h", now, false},
		{"another server", "a", "https://evil", now, false},
		{"just before its end", "a", "https://h", now.Add(time.Hour - time.Second), true},
		{"at its end", "a", "https://h", now.Add(time.Hour), false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			tok, ok, err := d.Token(t.Context(), c.context, c.server, c.at)
			if err != nil || ok != c.want || ok == tok.Empty() {
				t.Errorf("got %v, %v", ok, err)
			}
		})
	}
	if err := d.SetToken(t.Context(), "a", Token{}); err != nil {
		t.Fatal(err)
	}
	if _, ok, _ := d.Token(t.Context(), "a", "https://h", now); ok {
		t.Error("a token that was forgotten is there")
	}
}

func TestReadRefuses(t *testing.T) {
	good := "current_context: a\ncontexts:\n  - name: a\n    server: https://h\n"
	cases := []struct {
		name, file, text string
		mode             os.FileMode
		want             string
	}{
		{"good", ConfigFile, good, 0o600, ""},
		{"empty", ConfigFile, "", 0o600, ""},
		{"unknown key", ConfigFile, good + "colour: red\n", 0o600, "colour"},
		{"unknown key of a context", ConfigFile, good + "    token: x\n", 0o600, "token"},
		{"two of one name", ConfigFile, good + "  - name: a\n    server: https://i\n", 0o600, "two of one name"},
		{"no server", ConfigFile, "contexts:\n  - name: a\n", 0o600, "without name or server"},
		{"current one is missing", ConfigFile, "current_context: b\n", 0o600, "does not have"},
		{"written by others", ConfigFile, good, 0o622, "written by others"},
		{"tokens read by others", TokenFile, `{}`, 0o640, "read by others"},
		{"damaged tokens", TokenFile, `{"a":{"server":"x","token":"s3cret"`, 0o600, "damaged"},
		{"too large", ConfigFile, strings.Repeat("#", maxFile+1), 0o600, "more than"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			d := Open(t.TempDir())
			p := filepath.Join(d.dir, c.file)
			if err := os.WriteFile(p, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(p, c.mode); err != nil {
				t.Fatal(err)
			}
			var err error
			if c.file == ConfigFile {
				_, err = d.Read()
			} else {
				_, _, err = d.Token(t.Context(), "a", "x", time.Now())
			}
			switch {
			case c.want == "" && err != nil:
				t.Error(err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "s3cret")):
				t.Errorf("got %v, want %q in it", err, c.want)
			}
		})
	}
}

func TestDefault(t *testing.T) {
	cases := []struct {
		name string
		env  map[string]string
		want string
	}{
		{"home", map[string]string{"HOME": "/h"}, "/h/.config/redoubt/config.yaml"},
		{"xdg", map[string]string{"HOME": "/h", "XDG_CONFIG_HOME": "/x"}, "/x/redoubt/config.yaml"},
		{"ours", map[string]string{"HOME": "/h", "XDG_CONFIG_HOME": "/x", "REDOUBT_CONFIG": "/r/config.yaml"}, "/r/config.yaml"},
		{"nothing", nil, ""},
		{"relative", map[string]string{"XDG_CONFIG_HOME": "x"}, ""},
		{"another name", map[string]string{"REDOUBT_CONFIG": "/r/other.yaml"}, ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			d, err := Default(func(k string) string { return c.env[k] })
			if (err == nil) != (c.want != "") || err == nil && d.Path() != c.want {
				t.Errorf("got %q, %v", d.Path(), err)
			}
		})
	}
}
