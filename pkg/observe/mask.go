package observe

import (
	"bytes"
	"strings"

	"github.com/redoubt-ml/redoubt/pkg/redact"
)

// secretWords name a secret when they stand in an attribute's key, as one of its words.
var secretWords = map[string]bool{
	"authorization": true, "password": true, "passwd": true, "pwd": true, "passphrase": true, "secret": true,
	"secrets": true, "token": true, "tokens": true, "jwt": true, "bearer": true, "cookie": true, "cookies": true, "dpop": true,
	"credential": true, "credentials": true, "apikey": true, "pin": true, "otp": true, "totp": true, "dsn": true,
}

// keyWords name a secret together with a following "key".
var keyWords = map[string]bool{
	"api": true, "private": true, "signing": true, "encryption": true, "master": true, "access": true, "account": true,
	"primary": true, "secondary": true, "data": true, "wrapping": true, "scratch": true, "seal": true,
}

// aboutWords say, as the last word of a key, that the value tells something about a secret and is none.
var aboutWords = map[string]bool{
	"id": true, "uid": true, "name": true, "type": true, "kind": true, "file": true, "path": true, "count": true, "total": true,
	"version": true, "state": true, "reason": true, "ttl": true, "bytes": true, "size": true, "age": true, "expiry": true,
	"expired": true, "issuer": true, "audience": true, "cached": true,
}

// secretKey reports whether an attribute with this key is to be hidden. Words are split at anything but letters and
// digits, and before a capital: client_secret, accessToken, Set-Cookie; but not token_id.
func secretKey(key string) bool {
	var buf [24]byte
	var found bool
	var last, before string
	end := func(word []byte) {
		if len(word) == 0 {
			return
		}
		// The map lookups of a converted slice do not allocate; the two words are kept by what they mean.
		switch w := string(word); {
		case secretWords[w]:
			found, before, last = true, last, "secret"
		case w == "key" || w == "keys":
			if before = last; before == "kind of key" {
				found = true
			}
			last = "key"
		case keyWords[w]:
			before, last = last, "kind of key"
		case aboutWords[w]:
			before, last = last, "about"
		default:
			before, last = last, ""
		}
	}
	var whole [24]byte // all letters together, for DPoP and PassWord
	n, lower, all := 0, false, 0
	for i := 0; i < len(key); i++ {
		c := key[i]
		upper := c >= 'A' && c <= 'Z'
		if upper {
			c |= 0x20
		}
		letter := c >= 'a' && c <= 'z' || c >= '0' && c <= '9'
		if !letter || upper && lower {
			end(buf[:min(n, len(buf))])
			n = 0
		}
		if letter {
			if n < len(buf) {
				buf[n] = c
			}
			n++
			if all < len(whole) {
				whole[all] = c //nolint:gosec // all < len(whole), one line above
			}
			all++
		}
		lower = letter && !upper
	}
	end(buf[:min(n, len(buf))])
	if all <= len(whole) && secretWords[string(whole[:all])] {
		return true
	}
	return found && last != "about"
}

var mask = []byte(redact.Mask)

// lure is the beginning of something that is to be masked, and where in it the secret begins.
type lure struct {
	text  string
	skip  int // bytes of text that are shown
	run   func(byte) bool
	min   int  // shortest run, after skip, that is masked
	mixed bool // only a run with a digit, a capital or padding in it: what follows may also be a plain word
}

func tokenByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("-_.~+/=", c) >= 0
}

// lures are looked for in every line. A JWT begins with eyJ, the base64 of {" ; rdt_ is the prefix of this
// product's own secrets.
var lures = []lure{
	{text: "eyJ", run: tokenByte, min: 16},
	{text: "rdt_", skip: 4, run: tokenByte, min: 8},
	{text: "earer ", skip: 6, run: tokenByte, min: 8, mixed: true},
	{text: "asic ", skip: 5, run: tokenByte, min: 8, mixed: true},
	{text: "DPoP ", skip: 5, run: tokenByte, min: 8, mixed: true},
	{text: "PRIVATE KEY-----", skip: 16, run: func(c byte) bool { return c != '"' }, min: 1},
}

// maskLine hides in one finished line what looks like a secret. It returns line itself if there is nothing to hide,
// which costs no allocation, and otherwise a new slice.
func maskLine(line []byte) []byte {
	for _, l := range lures {
		line = l.mask(line)
	}
	return maskUserinfo(line)
}

func (l lure) mask(line []byte) []byte {
	var out []byte
	done := 0 // line[:done] is in out, once there is an out
	for at := 0; ; {
		i := bytes.Index(line[at:], []byte(l.text))
		if i < 0 {
			break
		}
		from := at + i + l.skip
		to := from
		for to < len(line) && l.run(line[to]) {
			to++
		}
		if to-from < l.min || l.mixed && !bytes.ContainsAny(line[from:to], "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789=") {
			at += i + len(l.text)
			continue
		}
		if out == nil {
			out = make([]byte, 0, len(line)+len(mask))
		}
		out = append(append(out, line[done:from]...), mask...)
		done, at = to, to
	}
	if out == nil {
		return line
	}
	return append(out, line[done:]...)
}

// maskUserinfo hides the password of a URL: postgres://user:password@host.
func maskUserinfo(line []byte) []byte {
	for at := 0; ; {
		i := bytes.Index(line[at:], []byte("://"))
		if i < 0 {
			return line
		}
		from := at + i + 3
		at = from
		end := from
		for end < len(line) && strings.IndexByte("/?# \t\n\"'\\", line[end]) < 0 {
			end++
		}
		host := bytes.LastIndexByte(line[from:end], '@')
		colon := bytes.IndexByte(line[from:end], ':')
		if host < 0 || colon < 0 || colon+1 >= host {
			continue
		}
		out := append(make([]byte, 0, len(line)+len(mask)), line[:from+colon+1]...)
		out = append(append(out, mask...), line[from+host:]...)
		at = from + colon + 1 + len(mask)
		line = out
	}
}
