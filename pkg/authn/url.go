package authn

import (
	"net/url"
	"strings"
)

const maxURL = 2048

// NormalizeURL gives the form in which DPoP compares an htu: scheme and host in lower case, no default port, the path
// with its dot segments removed and its escapes in one spelling (RFC 3986 section 6.2), no query and no fragment. ok is
// false for what is not an absolute http or https URL, and for one that names a user or has a host outside ASCII.
func NormalizeURL(s string) (_ string, ok bool) {
	if s == "" || len(s) > maxURL {
		return "", false
	}
	u, err := url.Parse(s)
	if err != nil || u.User != nil || u.Opaque != "" || u.Hostname() == "" {
		return "", false
	}
	var standard string
	switch u.Scheme { // url.Parse has lowered it
	case "https":
		standard = "443"
	case "http":
		standard = "80"
	default:
		return "", false
	}
	host := strings.ToLower(u.Hostname())
	if strings.ContainsFunc(host, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || strings.ContainsRune(".-_:", r))
	}) {
		return "", false
	}
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if p := u.Port(); p != "" && p != standard {
		host += ":" + p
	}
	escaped, ok := normalizeEscapes(u.EscapedPath())
	if !ok {
		return "", false
	}
	return u.Scheme + "://" + host + removeDots(escaped), true
}

// removeDots removes "." and ".." (RFC 3986 section 5.2.4) and keeps a final slash and doubled ones, which have a
// meaning.
func removeDots(p string) string {
	if !strings.Contains(p, "/.") {
		if p == "" {
			return "/"
		}
		return p
	}
	var out []string
	parts := strings.Split(strings.TrimPrefix(p, "/"), "/")
	for i, s := range parts {
		last := i == len(parts)-1
		switch s {
		case ".", "..":
			if s == ".." && len(out) > 0 {
				out = out[:len(out)-1]
			}
			if last {
				out = append(out, "")
			}
		default:
			out = append(out, s)
		}
	}
	return "/" + strings.Join(out, "/")
}

// normalizeEscapes writes %XX in upper case and decodes those of unreserved characters.
func normalizeEscapes(p string) (string, bool) {
	if !strings.Contains(p, "%") {
		return p, true
	}
	var b strings.Builder
	for i := 0; i < len(p); i++ {
		if p[i] != '%' {
			b.WriteByte(p[i])
			continue
		}
		if i+2 >= len(p) {
			return "", false
		}
		hi, lo := unhex(p[i+1]), unhex(p[i+2])
		if hi < 0 || lo < 0 {
			return "", false
		}
		switch c := byte(hi<<4 | lo); {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '.', c == '_', c == '~':
			b.WriteByte(c)
		default:
			b.WriteString("%" + strings.ToUpper(p[i+1:i+3]))
		}
		i += 2
	}
	return b.String(), true
}

func unhex(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c >= 'a' && c <= 'f':
		return int(c-'a') + 10
	case c >= 'A' && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}
