package account

import (
	"context"
	"errors"
	"html/template"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/internal/cli/app"
	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/internal/cli/show"
)

// openFor is how long the page that leads a browser to the link is kept for it.
const openFor = 10 * time.Second

func (a verbs) console() *cobra.Command {
	var open bool
	c := &cobra.Command{Use: "console [--open]", Short: "A link that opens the web console, once, within a minute", Args: app.Exactly(0)}
	c.Flags().BoolVar(&open, "open", false, "open it in the desktop's browser")
	c.RunE = a.With(func(ctx context.Context, c *client.Client, _ []string) error {
		code, err := c.Identity().CreateSignInCode(ctx, &identityv1.CreateSignInCodeRequest{})
		if err != nil {
			return err
		}
		link := c.Context().Server + "/console/enter?" + url.Values{"code": {code.GetCode()}}.Encode()
		if open {
			return a.open(ctx, link)
		}
		if a.Structured() {
			return a.Answer(code, nil)
		}
		a.Say("good once, until %s:", show.Clock(code.GetExpireTime()))
		_, err = a.Out.Write([]byte(link + "\n"))
		return err
	})
	return c
}

// open leads the desktop's browser to the link, once.
func (a verbs) open(ctx context.Context, link string) error {
	if _, err := exec.LookPath("xdg-open"); err != nil {
		return app.Usagef("there is no xdg-open here to open a browser with; leave --open out and follow the link yourself")
	}
	page, remove, err := leadingTo(link)
	if err != nil {
		return err
	}
	defer remove()
	if err := exec.CommandContext(ctx, "xdg-open", page).Run(); err != nil {
		return app.Usagef("the browser could not be opened (%v); leave --open out and follow the link yourself", err)
	}
	a.Say("opening the console in the browser")
	select { // xdg-open returns before the browser has read the page
	case <-time.After(openFor):
	case <-ctx.Done():
	}
	return nil
}

// leadingTo is a page that leads a browser to the link and that only this user may read: the arguments of a process are read by all.
func leadingTo(link string) (page string, remove func(), err error) {
	dir, err := os.MkdirTemp("", "redoubt-browser-") // 0700
	if err != nil {
		return "", nil, err
	}
	remove = func() { _ = os.RemoveAll(dir) }
	page = filepath.Join(dir, "redoubt.html")
	f, err := os.OpenFile(page, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err == nil {
		err = errors.Join(leadTo.Execute(f, link), f.Close())
	}
	if err != nil {
		remove()
		return "", nil, err
	}
	return page, remove, nil
}

var leadTo = template.Must(template.New("").Parse(`<!doctype html><meta charset="utf-8"><meta name="referrer" content="no-referrer"><meta http-equiv="refresh" content="0; url={{.}}"><title>Redoubt</title><a href="{{.}}">go on</a>
`))
