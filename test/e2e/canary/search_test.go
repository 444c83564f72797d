package canary

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf16"
)

// hit is one place where a canary was found.
type hit struct{ canary, form, place string }

// searcher looks for many texts in many forms at once.
type searcher struct {
	pairs [1 << 16]bool        // first two bytes of what is looked for
	heads map[uint64][]pattern // by the first eight bytes
	tails int                  // longest pattern
}

type pattern struct {
	canary, form string
	text         []byte
}

const shortest = 8

func newSearcher(canaries map[string]string) *searcher {
	s := &searcher{heads: make(map[uint64][]pattern)}
	for name, text := range canaries {
		for form, b := range forms(text) {
			if len(b) < shortest {
				panic("the canary " + name + " is too short to be looked for")
			}
			s.pairs[binary.LittleEndian.Uint16(b)] = true
			h := binary.LittleEndian.Uint64(b)
			s.heads[h] = append(s.heads[h], pattern{name, form, b})
			s.tails = max(s.tails, len(b))
		}
	}
	return s
}

// forms are the ways in which a text might be written.
func forms(text string) map[string][]byte {
	b := []byte(text)
	out := map[string][]byte{
		"raw": b, "hex": []byte(hex.EncodeToString(b)), "HEX": []byte(strings.ToUpper(hex.EncodeToString(b))),
		"every byte URL-coded": []byte(strings.ToUpper(percent(b))), "every byte url-coded": []byte(percent(b)),
	}
	if e := url.QueryEscape(text); e != text {
		out["URL-coded"] = []byte(e)
	}
	out["JSON-coded"], out["reversed"] = []byte(escaped(text)), reversed(b)
	units := utf16.Encode([]rune(text))
	little, big := make([]byte, 0, 2*len(units)), make([]byte, 0, 2*len(units))
	for _, u := range units {
		little, big = binary.LittleEndian.AppendUint16(little, u), binary.BigEndian.AppendUint16(big, u)
	}
	out["UTF-16LE"], out["UTF-16BE"] = little, big
	for i := range 3 {
		// The text stands i bytes after the start of a group of three: what its neighbours decide is cut off.
		for _, name := range []string{"base64", "base64url"} { // in this order: what both write alike is looked for once
			enc := map[string]*base64.Encoding{"base64": base64.RawStdEncoding, "base64url": base64.RawURLEncoding}[name]
			e := enc.EncodeToString(append(make([]byte, i), b...))
			from, to := (i*8+5)/6, len(e)
			if (i+len(b))%3 != 0 {
				to--
			}
			if c := []byte(e[from:to]); name == "base64" || !bytes.Equal(c, out[fmt.Sprintf("base64 at %d", i)]) {
				out[fmt.Sprintf("%s at %d", name, i)] = c
			}
		}
	}
	return out
}

// escaped is a text in which JSON writes every letter as a number.
func escaped(text string) string {
	var s strings.Builder
	for _, u := range utf16.Encode([]rune(text)) {
		fmt.Fprintf(&s, `\u%04x`, u)
	}
	return s.String()
}

func reversed(b []byte) []byte {
	b = slices.Clone(b)
	slices.Reverse(b)
	return b
}

func percent(b []byte) string {
	var s strings.Builder
	for _, c := range b {
		fmt.Fprintf(&s, "%%%02x", c)
	}
	return s.String()
}

// in searches b, and every gzip stream in it.
func (s *searcher) in(place string, b []byte) []hit { return s.nested(place, b, 0) }

func (s *searcher) nested(place string, b []byte, depth int) []hit {
	var out []hit
	seen := make(map[hit]bool)
	for i := 0; i+shortest <= len(b); i++ {
		if b[i] == 0 && b[i+1] == 0 {
			continue // the most of a file that was made in advance
		}
		if !s.pairs[binary.LittleEndian.Uint16(b[i:])] {
			continue
		}
		for _, p := range s.heads[binary.LittleEndian.Uint64(b[i:])] {
			if h := (hit{p.canary, p.form, place}); bytes.HasPrefix(b[i:], p.text) && !seen[h] {
				seen[h] = true
				out = append(out, h)
			}
		}
	}
	if depth == 3 {
		return out
	}
	for i := 0; ; {
		j := bytes.Index(b[i:], []byte{0x1f, 0x8b, 0x08})
		if j < 0 {
			return out
		}
		i += j + 1
		r, err := gzip.NewReader(bytes.NewReader(b[i-1:]))
		if err != nil {
			continue
		}
		r.Multistream(false)
		plain, _ := io.ReadAll(io.LimitReader(r, 64<<20)) // a damaged stream is searched as far as it goes
		out = append(out, s.nested(fmt.Sprintf("%s, gzip at %d", place, i-1), plain, depth+1)...)
	}
}

// folder searches every file below dir, and the names too. What vanishes meanwhile is passed over.
func (s *searcher) folder(t *testing.T, dir string) (hits []hit, files int, size int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			if os.IsNotExist(err) {
				return nil
			}
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		hits = append(hits, s.in("the name "+rel, []byte(d.Name()))...)
		switch {
		case d.Type()&fs.ModeSymlink != 0:
			to, _ := os.Readlink(path)
			hits = append(hits, s.in("the link "+rel, []byte(to))...)
		case d.Type().IsRegular():
			b, err := os.ReadFile(path)
			if os.IsNotExist(err) {
				return nil
			} else if err != nil {
				return err
			}
			files, size = files+1, size+int64(len(b))
			hits = append(hits, s.in(rel, b)...)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return hits, files, size
}

// The search finds what is there, in each form and place, and nothing where nothing is.
func TestSearch(t *testing.T) {
	const text = "kanarienvogel~0123456789+/?"
	s := newSearcher(map[string]string{"bird": text, "other": "something-else-0123"})
	zip := func(b []byte) []byte {
		var out bytes.Buffer
		w := gzip.NewWriter(&out)
		_, _ = w.Write(b)
		_ = w.Close()
		return out.Bytes()
	}
	in := func(b []byte) []byte { return slices.Concat([]byte("some \x00\x00 before"), b, []byte("and after")) }
	places := map[string][]byte{"gzip": in(zip(in([]byte(text)))), "gzip in gzip": in(zip(in(zip(in([]byte(text)))))), "a broken gzip": append([]byte{0x1f, 0x8b, 0x08, 0x1f, 0x8b, 0x08}, zip([]byte(text))...)}
	for form, b := range forms(text) {
		places[form] = in(b)
	}
	for i := range 3 {
		places[fmt.Sprintf("base64 of a record, %d", i)] = []byte(base64.StdEncoding.EncodeToString([]byte(strings.Repeat("x", i) + text + "tail")))
		places[fmt.Sprintf("base64url of a record, %d", i)] = []byte(base64.RawURLEncoding.EncodeToString([]byte(strings.Repeat("x", i) + text)))
	}
	if len(places) < 18 {
		t.Errorf("only %d places", len(places))
	}
	for place, b := range places {
		t.Run(place, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "file"), b, 0o600); err != nil {
				t.Fatal(err)
			}
			hits, _, _ := s.folder(t, dir)
			if len(hits) != 1 || hits[0].canary != "bird" {
				t.Errorf("found %v", hits)
			}
		})
	}
	if hits := s.in("", in([]byte("kanarienvogel~0123456789+/!"))); len(hits) != 0 {
		t.Errorf("found what is not there: %v", hits)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a something-else-0123"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if hits, files, _ := s.folder(t, dir); len(hits) != 1 || hits[0].canary != "other" || files != 1 {
		t.Errorf("in a name: %v in %d files", hits, files)
	}
}
