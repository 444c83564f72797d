package provider

import (
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/redoubt-ml/redoubt/pkg/fault"
)

const maxRedirect = 512

// loopbacks are the hosts of native applications, with which alone http is allowed (RFC 8252 section 7.3). The name localhost is not among
// them: what it resolves to is for others to say (section 8.3).
var loopbacks = []string{"http://127.0.0.1", "http://[::1]"}

// CheckRedirect reports why an application may not be registered with a redirect URI. What passes has one spelling: a browser sends its
// user exactly there, and nowhere else.
func CheckRedirect(raw string) error {
	bad := func(why string) error {
		return fault.InvalidArgument("%q cannot be a redirect URI: %s", cut(raw), why).Field("redirect_uris", why)
	}
	if len(raw) == 0 || len(raw) > maxRedirect {
		return bad("it has 1 to 512 bytes")
	}
	for i := range len(raw) {
		if b := raw[i]; b <= ' ' || b >= 0x7f || strings.IndexByte(`\"<>^{|}*`+"`", b) >= 0 {
			return bad("it holds a character that needs escaping, or a wildcard")
		}
	}
	u, err := url.Parse(raw)
	if err != nil || u.String() != raw {
		return bad("it is not a URL in its plain spelling")
	}
	switch {
	case u.Opaque != "" || u.Host == "" || u.Hostname() == "":
		return bad("it needs a host")
	case u.User != nil:
		return bad("it must not hold a user name")
	case u.Fragment != "" || strings.Contains(raw, "#"):
		return bad("it must not have a fragment")
	case u.Host != strings.ToLower(u.Host) || strings.HasSuffix(u.Hostname(), "."):
		return bad("the host has to be in lower case, without a dot at its end")
	}
	for _, segment := range strings.Split(u.EscapedPath(), "/") {
		if plain, err := url.PathUnescape(segment); err != nil || plain == "." || plain == ".." || strings.ContainsAny(plain, "/\\") {
			return bad("the path must not hold . or .., escaped or not")
		}
	}
	if p := u.Port(); p != "" {
		if n, err := strconv.Atoi(p); err != nil || n < 1 || n > 65535 || strconv.Itoa(n) != p {
			return bad("the port is none")
		}
	} else if strings.HasSuffix(u.Host, ":") {
		return bad("the port is missing")
	}
	switch u.Scheme {
	case "https":
		return nil
	case "http":
		if slices.Contains(loopbacks, "http://"+hostOnly(u)) {
			return nil
		}
	}
	return bad("it has to be https, or http on 127.0.0.1 or [::1]")
}

// hostOnly is the host without its port, as it is written.
func hostOnly(u *url.URL) string { return strings.TrimSuffix(u.Host, ":"+u.Port()) }

// matches reports whether an answer may be sent to asked: it is one of those registered, byte for byte; of a loopback address that is registered
// without a port, any port is taken.
func matches(registered []string, asked string) bool {
	if asked == "" || len(asked) > maxRedirect {
		return false
	}
	if slices.Contains(registered, asked) {
		return true
	}
	for _, host := range loopbacks {
		rest, ok := strings.CutPrefix(asked, host+":")
		if !ok {
			continue
		}
		digits := len(rest) - len(strings.TrimLeft(rest, "0123456789"))
		n, err := strconv.Atoi(rest[:digits])
		if err != nil || n < 1 || n > 65535 || strconv.Itoa(n) != rest[:digits] {
			return false
		}
		return slices.Contains(registered, host+rest[digits:])
	}
	return false
}

// originOf is the origin of a redirect URI that matched.
func originOf(redirect string) string {
	u, err := url.Parse(redirect)
	if err != nil {
		return ""
	}
	return u.Scheme + "://" + u.Host
}

// withQuery adds parameters to a redirect URI, which may have a query of its own.
func withQuery(redirect string, q url.Values) string {
	sep := "?"
	if strings.Contains(redirect, "?") {
		sep = "&"
	}
	return redirect + sep + q.Encode()
}

func cut(s string) string {
	if len(s) > 80 {
		return strings.ToValidUTF8(s[:80], "") + "…"
	}
	return s
}
