package app

import (
	"google.golang.org/protobuf/proto"

	"github.com/redoubt-ml/redoubt/internal/cli/show"
)

// The forms that an answer is written in.
const (
	outputTable    = "table"
	outputJSON     = "json"
	outputYAML     = "yaml"
	outputNone     = "none"
	outputMarkdown = "markdown" // of the table of permissions alone
)

// Structured reports that a program reads the answer: JSON, YAML, or nothing at all.
func (a *App) Structured() bool {
	return a.Output == outputJSON || a.Output == outputYAML || a.Output == outputNone
}

// Answer is for an answer that is either refused or wanted as it is.
func (a *App) Answer(m proto.Message, err error) error {
	if err != nil {
		return err
	}
	switch a.Output {
	case outputNone:
		return nil
	case outputYAML:
		return show.YAML(a.Out, m)
	}
	return show.JSON(a.Out, m)
}

// AnswerJSON is Answer for what is JSON already.
func (a *App) AnswerJSON(b []byte) error {
	switch a.Output {
	case outputNone:
		return nil
	case outputYAML:
		return show.YAMLOf(a.Out, b)
	}
	_, err := a.Out.Write(b)
	return err
}

// Line is Answer for one of many that come one after the other: a line of JSON, or a document of YAML.
func (a *App) Line(m proto.Message) error {
	switch a.Output {
	case outputNone:
		return nil
	case outputYAML:
		return show.Document(a.Out, m)
	}
	return show.Line(a.Out, m)
}

// Table writes rows and says when there is more.
func (a *App) Table(header []string, rows [][]string, more string) error {
	if err := show.Table(a.Out, header, rows); err != nil {
		return err
	}
	if more != "" {
		a.Say("there is more: raise --limit, or --limit 0 for all")
	}
	return nil
}

// Done writes an answer that has nothing in it.
func (a *App) Done(m proto.Message, err error, format string, args ...any) error {
	if err != nil || a.Structured() {
		return a.Answer(m, err)
	}
	a.Say(format, args...)
	return nil
}
