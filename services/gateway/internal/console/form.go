package console

import (
	"context"
	"net/http"
	"net/url"
	"strings"

	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// form is what a page of ours sent, each field once.
type form map[string]string

func formOf(w http.ResponseWriter, r *http.Request) (form, error) {
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	if err := r.ParseForm(); err != nil {
		return nil, fault.InvalidArgument("the form cannot be read")
	}
	f := make(form, len(r.PostForm))
	for name, v := range r.PostForm {
		if len(v) != 1 {
			return nil, fault.InvalidArgument("the form cannot be read: a field is given twice")
		}
		f[name] = v[0]
	}
	return f, nil
}

// outcome is what follows after something was done: a page to go to, or one that is shown this once.
type outcome struct {
	to, note string
	page     string
	view     view
	// over says that the session ended with it.
	over bool
}

// act is a handler of a form that stands on the page at. It is refused there, done once, and followed by a page that can be loaded again.
func (c *Console) act(at func(*visit) string, do func(*visit, form) (outcome, error)) http.HandlerFunc {
	return c.signedIn(func(w http.ResponseWriter, v *visit) {
		ctx, cancel := context.WithTimeout(v.ctx, callTime)
		defer cancel()
		v.ctx = ctx
		f, err := formOf(w, v.r)
		var done outcome
		if err == nil {
			done, err = do(v, f)
		}
		switch {
		case err != nil:
			c.refusedAt(w, v, at(v), err)
		case done.over:
			forget(w)
			c.show(w, http.StatusOK, done.page, done.view)
		case done.page != "":
			c.shown(w, v, done.page, done.view)
		default:
			http.Redirect(w, v.r, noted(done.to, done.note), http.StatusSeeOther)
		}
	})
}

// noted is a path of ours whose page says what was done.
func noted(path, note string) string {
	path, _, _ = strings.Cut(path, "?")
	if note == "" {
		return path
	}
	return path + "?" + url.Values{"done": {note}}.Encode()
}

// notes are what pages say after something was done. A link can only choose among them.
var notes = map[string]string{
	"fresh":    "You have proved yourself again. Nothing was done yet: please repeat it.",
	"made":     "Made.",
	"ended":    "The session was ended. Nothing takes its tokens any more.",
	"others":   "All other sessions were ended.",
	"password": "Your password is changed, and all other sessions are ended.",
	"removed":  "Removed.",
	"disabled": "Disabled. All sessions are ended.",
	"enabled":  "Enabled.",
	"deleted":  "Deleted.",
	"added":    "Added.",
	"reset":    "The second factors were removed, and all sessions ended.",
}

// may asks which of the actions the visitor has at the installation.
func (c *Console) may(v *visit, actions ...string) (map[string]bool, error) {
	out := make(map[string]bool, len(actions))
	for _, a := range actions {
		r, err := c.access.Explain(v.ctx, &workspacev1.ExplainRequest{Scope: "/", Action: a})
		if err != nil {
			return nil, err
		}
		out[a[strings.IndexByte(a, '/')+1:]] = r.GetAllowed()
	}
	return out, nil
}
