package cli

import (
	"google.golang.org/protobuf/proto"

	"github.com/redoubt-ml/redoubt/internal/cli/show"
)

// orJSON is for an answer that is either refused or wanted as JSON.
func (a *app) orJSON(m proto.Message, err error) error {
	if err != nil {
		return err
	}
	return show.JSON(a.out, m)
}

// table writes rows and says when there is more.
func (a *app) table(header []string, rows [][]string, more string) error {
	if err := show.Table(a.out, header, rows); err != nil {
		return err
	}
	if more != "" {
		a.say("there is more: raise --limit, or --limit 0 for all")
	}
	return nil
}

// done writes an answer that has nothing in it.
func (a *app) done(m proto.Message, err error, format string, args ...any) error {
	if err != nil || a.json() {
		return a.orJSON(m, err)
	}
	a.say(format, args...)
	return nil
}
