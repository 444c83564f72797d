package authn

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

const (
	maxText    = 512          // bytes in any one text claim
	maxInstant = 253402300799 // 9999-12-31T23:59:59Z, the last NumericDate that is read
)

// members is one JSON object whose names are unique and compared byte for byte, unlike encoding/json's into a struct.
type members map[string]json.RawMessage

// parseObject reads exactly one JSON object: no duplicate names, nothing after it, valid UTF-8.
func parseObject(data []byte) (members, error) {
	if !utf8.Valid(data) {
		return nil, cause("JSON is not UTF-8")
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil, cause("not a JSON object")
	}
	m := make(members, 16)
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return nil, cause("JSON is malformed")
		}
		name, ok := t.(string)
		if !ok {
			return nil, cause("JSON is malformed")
		}
		if _, twice := m[name]; twice {
			return nil, cause("a JSON name stands twice")
		}
		var raw json.RawMessage
		if err := dec.Decode(&raw); err != nil {
			return nil, cause("JSON is malformed")
		}
		m[name] = raw
	}
	if _, err := dec.Token(); err != nil {
		return nil, cause("JSON is malformed")
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, cause("there is data after the JSON object")
	}
	return m, nil
}

// text reads a JSON string of 1 to maxText bytes without control characters. ok is false if the member is absent.
func (m members) text(name string) (s string, ok bool, err error) {
	raw, ok := m[name]
	if !ok {
		return "", false, nil
	}
	s, err = rawText(raw)
	return s, true, err
}

func rawText(raw json.RawMessage) (string, error) {
	if len(raw) < 3 || raw[0] != '"' || len(raw) > 6*maxText {
		return "", cause("a claim is not a text, or is empty")
	}
	var s string
	if err := json.Unmarshal(raw, &s); err != nil {
		return "", cause("a claim is not a text")
	}
	return s, checkText(s)
}

func checkText(s string) error {
	if s == "" || len(s) > maxText {
		return cause("a text is empty or too long")
	}
	if strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r == 0x7f || r == utf8.RuneError }) {
		return cause("a text holds control characters")
	}
	return nil
}

// instant reads a NumericDate. Only plain positive integers count: no sign, fraction, exponent, or quotes.
func (m members) instant(name string) (t time.Time, ok bool, err error) {
	raw, ok := m[name]
	if !ok {
		return time.Time{}, false, nil
	}
	if len(raw) == 0 || len(raw) > 12 || raw[0] < '1' || raw[0] > '9' {
		return time.Time{}, true, cause("a time is not a positive integer")
	}
	n, err := strconv.ParseUint(string(raw), 10, 63)
	if err != nil || n > maxInstant {
		return time.Time{}, true, cause("a time is not a positive integer")
	}
	return time.Unix(int64(n), 0), true, nil
}

// texts reads an array of 1 to limit texts, none twice.
func (m members) texts(name string, limit int) ([]string, error) {
	raw, ok := m[name]
	if !ok {
		return nil, nil
	}
	if len(raw) == 0 || raw[0] != '[' {
		return nil, cause("a list claim is not an array")
	}
	var items []json.RawMessage
	if err := json.Unmarshal(raw, &items); err != nil || len(items) == 0 || len(items) > limit {
		return nil, cause("a list claim is empty or too long")
	}
	out := make([]string, len(items))
	for i, item := range items {
		s, err := rawText(item)
		if err != nil {
			return nil, err
		}
		out[i] = s
	}
	return out, nil
}

// only refuses names outside the list.
func (m members) only(names ...string) error {
next:
	for have := range m {
		for _, n := range names {
			if have == n {
				continue next
			}
		}
		return cause("an object holds a member that is not allowed there")
	}
	return nil
}

// rawURL refuses padding, line breaks and the non-zero trailing bits that would give one token several spellings.
var rawURL = base64.RawURLEncoding.Strict()

func decodeSegment(s string) ([]byte, error) {
	if s == "" || strings.ContainsAny(s, "\r\n") { // the decoder skips line breaks even when strict
		return nil, cause("a segment is empty or not base64url")
	}
	b, err := rawURL.DecodeString(s)
	if err != nil {
		return nil, cause("a segment is empty or not base64url")
	}
	return b, nil
}

// parseCompact splits a compact JWS into its three segments without allocating for what is not one.
func parseCompact(s string) (header, payload, signature string, err error) {
	i := strings.IndexByte(s, '.')
	if i <= 0 {
		return "", "", "", cause("not a compact JWS")
	}
	j := strings.IndexByte(s[i+1:], '.')
	if j <= 0 {
		return "", "", "", cause("not a compact JWS")
	}
	j += i + 1
	// 64 bytes of signature are 86 characters: this also refuses a fourth segment, and so every JWE.
	if len(s)-j-1 != 86 || strings.IndexByte(s[j+1:], '.') >= 0 {
		return "", "", "", cause("the signature does not have the length of ES256")
	}
	return s[:i], s[i+1 : j], s[j+1:], nil
}
