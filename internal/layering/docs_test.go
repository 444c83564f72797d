package layering

import (
	"go/parser"
	"go/token"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func TestEveryPackageSaysWhatItIs(t *testing.T) {
	for _, p := range list(t) {
		if below(p.ImportPath, "gen") || strings.HasSuffix(p.ImportPath, "/internal/store/db") {
			continue // written by generators
		}
		files := slices.Concat(p.GoFiles, p.TestGoFiles, p.XTestGoFiles)
		if len(files) == 0 {
			continue // all of it is for another system, or behind a build tag
		}
		if !documented(t, p.Dir, files) {
			t.Errorf("%s has no package comment that begins with \"Package\" or \"Command\": what it owns, its trust boundary, its invariants, how it fails", p.ImportPath)
		}
	}
}

// documented tells whether one of the files has a package comment.
func documented(t *testing.T, dir string, files []string) bool {
	t.Helper()
	for _, name := range files {
		file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(dir, name), nil, parser.PackageClauseOnly|parser.ParseComments)
		if err != nil {
			t.Errorf("%s: %v", filepath.Join(dir, name), err)
			continue
		}
		text := file.Doc.Text()
		if strings.HasPrefix(text, "Package ") || strings.HasPrefix(text, "Command ") {
			return true
		}
	}
	return false
}

func TestLinksInDocsLeadSomewhere(t *testing.T) {
	top := root(t)
	err := filepath.WalkDir(top, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && path != top && (strings.HasPrefix(entry.Name(), ".") || entry.Name() == "node_modules"):
			return filepath.SkipDir
		case entry.IsDir() || filepath.Ext(path) != ".md":
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, target := range links(string(text)) {
			if why := broken(top, path, target); why != "" {
				rel, _ := filepath.Rel(top, path)
				t.Errorf("%s links to %s: %s", rel, target, why)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestBrokenLinks(t *testing.T) {
	top := t.TempDir()
	page := filepath.Join(top, "docs", "page.md")
	if err := os.MkdirAll(filepath.Dir(page), 0o755); err != nil {
		t.Fatal(err)
	}
	text := "# The page, of `code`\n[a](page.md) [b](gone.md) ![c](../docs/#x) [d](#the-page-of-code) [e](page.md#nowhere)\n" +
		"`[not](a-link.md)` [f](https://example.org/gone) [g](../../etc/passwd)\n```\n[nor](this.md)\n```\n[h]: also-gone.md\n"
	if err := os.WriteFile(page, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, target := range links(text) {
		if broken(top, page, target) != "" {
			got = append(got, target)
		}
	}
	want := []string{"gone.md", "page.md#nowhere", "../../etc/passwd", "also-gone.md"}
	if !slices.Equal(got, want) {
		t.Errorf("broken links %q, want %q", got, want)
	}
}

var (
	fence      = regexp.MustCompile("(?ms)^ *```.*?^ *```")
	inlineCode = regexp.MustCompile("`[^`\n]*`")
	link       = regexp.MustCompile(`\]\(<?([^)\s>]+)>?(?:\s+"[^"]*")?\)|(?m:^\[[^\]]+\]:\s*(\S+))`)
	heading    = regexp.MustCompile(`(?m)^#{1,6}\s+(.*?)\s*#*$`)
	unslugged  = regexp.MustCompile(`[^\p{L}\p{N}_\- ]`)
)

// links finds the targets of a Markdown text's links and images, outside of code.
func links(text string) []string {
	text = inlineCode.ReplaceAllString(fence.ReplaceAllString(text, ""), "")
	var targets []string
	for _, match := range link.FindAllStringSubmatch(text, -1) {
		targets = append(targets, match[1]+match[2])
	}
	return targets
}

// broken says why a link of page leads nowhere, or nothing. Links to other sites are not followed.
func broken(top, page, target string) string {
	u, err := url.Parse(target)
	if err != nil {
		return err.Error()
	}
	if u.Scheme != "" || u.Host != "" {
		return ""
	}
	path := page
	if u.Path != "" {
		path = filepath.Join(filepath.Dir(page), filepath.FromSlash(u.Path))
	}
	if rel, err := filepath.Rel(top, path); err != nil || !filepath.IsLocal(rel) {
		return "it leaves the repository"
	}
	info, err := os.Stat(path)
	if err != nil {
		return "there is no such file"
	}
	if u.Fragment == "" || info.IsDir() || filepath.Ext(path) != ".md" {
		return ""
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	for _, match := range heading.FindAllStringSubmatch(fence.ReplaceAllString(string(text), ""), -1) {
		if slug(match[1]) == u.Fragment {
			return ""
		}
	}
	return "there is no such heading"
}

// slug makes the anchor of a heading as code hosts do.
func slug(title string) string {
	return strings.ReplaceAll(unslugged.ReplaceAllString(strings.ToLower(title), ""), " ", "-")
}
