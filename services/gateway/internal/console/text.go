package console

import (
	"fmt"
	"html/template"
	"net/http"
	"strings"
	"time"
	"unicode"
)

func (c *Console) file(w http.ResponseWriter, _ *http.Request, name, kind string) {
	b, err := files.ReadFile("pages/" + name)
	if err != nil {
		http.NotFound(w, nil)
		return
	}
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Cache-Control", "max-age=300")
	_, _ = w.Write(b)
}

// instant is a time of a message.
type instant interface {
	AsTime() time.Time
	IsValid() bool
}

// functions are what the templates call.
func functions(now func() time.Time) template.FuncMap {
	return template.FuncMap{
		"last": last,
		"ago": func(t instant) string {
			at := t.AsTime()
			if at.Unix() <= 0 {
				return ""
			}
			return now().Sub(at).Truncate(time.Second).String() + " ago"
		},
		"when": func(t instant) string {
			if !t.IsValid() || t.AsTime().Unix() <= 0 {
				return "never"
			}
			return t.AsTime().UTC().Format("2006-01-02 15:04 UTC")
		},
		"soon":  func(t instant) bool { return t.IsValid() && t.AsTime().Sub(now()) < 14*24*time.Hour },
		"state": plainly,
		"plain": plain,
		"ways":  ways,
	}
}

// plainly is the value of an enum as people read it.
func plainly(s fmt.Stringer) string {
	text := s.String()
	for _, prefix := range []string{"STATE_", "RESULT_", "KIND_", "AUTH_", "PRINCIPAL_TYPE_"} {
		text = strings.TrimPrefix(text, prefix)
	}
	return strings.ToLower(strings.ReplaceAll(text, "_", " "))
}

// mostShown is how much of a text that somebody wrote is shown where it is a name.
const mostShown = 120

// plain is a text that somebody wrote, as a name of one line: what would turn the direction of the text, hide or break it is written out, and
// of a long one the beginning is shown.
func plain(s string) string {
	var b strings.Builder
	n := 0
	for _, r := range strings.ToValidUTF8(s, "\uFFFD") {
		if n++; n > mostShown {
			b.WriteString("…")
			break
		}
		if r != ' ' && !unicode.IsPrint(r) {
			fmt.Fprintf(&b, "[U+%04X]", r)
			continue
		}
		b.WriteRune(r)
	}
	return b.String()
}

// ways says how somebody has proved himself, from what tokens call it (RFC 8176).
func ways(amr []string) string {
	names := map[string]string{
		"pwd": "password", "otp": "authenticator app", "rec": "recovery code", "hwk": "security key", "swk": "passkey", "pop": "security key", "fed": "signed in elsewhere", "mfa": "",
	}
	var out []string
	for _, a := range amr {
		name, known := names[a]
		if !known {
			name = plain(a)
		}
		if name != "" {
			out = append(out, name)
		}
	}
	return strings.Join(out, ", ")
}
