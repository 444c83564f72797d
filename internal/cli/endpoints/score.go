package endpoints

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	"github.com/redoubt-ml/redoubt/internal/cli/app"
	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/internal/cli/show"
	"github.com/redoubt-ml/redoubt/pkg/redact"
)

const (
	// maxBody is the most that an endpoint can be told to take.
	maxBody = 64 << 20
	// maxKey bounds a credential on standard input.
	maxKey = 8192
)

func (a verbs) score() *cobra.Command {
	var file, deployment, contentType, ca string
	var stdin, issue bool
	cmd := a.onEndpoint("score ID --file FILE|-", "Send a request to an endpoint: by your roles, or with a key or token to its own address", app.Exactly(1), func(ctx context.Context, c *client.Client, name string, _ []string) error {
		switch {
		case file == "":
			return app.Usagef("--file says what is sent; - is standard input")
		case stdin && issue:
			return app.Usagef("--key-stdin and --issue-token are two ways of proving it; give one")
		case stdin && file == "-":
			return app.Usagef("standard input cannot be both the key and the request: give the request as a file")
		case ca != "" && !stdin && !issue:
			return app.Usagef("--scoring-ca is for requests to the endpoint's own address; give --key-stdin or --issue-token")
		}
		var key redact.Secret
		if stdin {
			var err error
			if key, err = a.FirstLine(maxKey); err != nil {
				return err
			}
			defer key.Wipe()
		}
		body, err := a.body(file)
		if err != nil {
			return err
		}
		if !stdin && !issue {
			return a.byRole(ctx, c, &inferencev1.ScoreRequest{Endpoint: name, Deployment: deployment, ContentType: contentType, Data: body})
		}
		e, err := get(ctx, c, name)
		if err != nil {
			return err
		}
		if issue {
			t, err := c.Endpoints().IssueEndpointToken(ctx, &inferencev1.IssueEndpointTokenRequest{Name: name})
			if err != nil {
				return err
			}
			key = redact.FromString(t.GetAccessToken())
			defer key.Wipe()
		}
		r, err := client.ScoreAt(ctx, c.Context(), client.ScoringRequest{
			URI: e.GetScoringUri(), Credential: key, Deployment: deployment, ContentType: contentType, Body: body, CAFile: ca,
		})
		if err != nil {
			return err
		}
		return a.scored(r.Status, r.ContentType, r.RequestID, r.Body)
	})
	f := cmd.Flags()
	f.StringVarP(&file, "file", "f", "", "the file that is sent; - for standard input")
	f.StringVar(&deployment, "deployment", "", "only this deployment, past the traffic split")
	f.StringVar(&contentType, "content-type", "application/json", "what the file is")
	f.BoolVar(&stdin, "key-stdin", false, "read a key or a token of the endpoint from the first line of standard input, and go to its own address")
	f.BoolVar(&issue, "issue-token", false, "get a token of the endpoint by your roles, and go to its own address with it")
	f.StringVar(&ca, "scoring-ca", "", "file with the roots of the endpoint's address, PEM, where its certificate is not the installation's")
	return cmd
}

// body is the request.
func (a verbs) body(file string) ([]byte, error) {
	src := a.In
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, app.Usagef("the request cannot be read: %v", err)
		}
		defer func() { _ = f.Close() }()
		src = f
	}
	b, err := io.ReadAll(io.LimitReader(src, maxBody+1))
	if err != nil {
		return nil, app.Usagef("the request cannot be read: %v", err)
	}
	if len(b) > maxBody {
		return nil, app.Usagef("the request has more than %s", show.Bytes(maxBody))
	}
	return b, nil
}

// byRole asks through the gateway, which takes half as much.
func (a verbs) byRole(ctx context.Context, c *client.Client, req *inferencev1.ScoreRequest) error {
	if len(req.GetData()) > maxBody/2 {
		return app.Usagef("by role a request has at most %s; larger ones go to the endpoint's own address, with --key-stdin or --issue-token", show.Bytes(maxBody/2))
	}
	r, err := c.Scoring().Score(ctx, req)
	if err != nil {
		return err
	}
	return a.scored(int(r.GetStatus()), r.GetContentType(), r.GetRequestId(), r.GetData())
}

// scored writes what the model said, and ends as it was answered. As YAML it is written if it is JSON.
func (a verbs) scored(status int, contentType, request string, body []byte) error {
	var err error
	if a.Structured() && json.Valid(body) {
		err = a.AnswerJSON(body)
	} else {
		_, err = a.Out.Write(body)
	}
	if err != nil {
		return err
	}
	if f, ok := a.Out.(*os.File); ok && app.IsTerminal(f) && len(body) > 0 && body[len(body)-1] != '\n' {
		_, _ = fmt.Fprintln(f)
	}
	if status >= 200 && status < 300 {
		return nil
	}
	text := fmt.Sprintf("the endpoint answered %d", status)
	if request != "" {
		text += ", request " + show.Text(request)
	}
	e := &app.Exit{Code: app.ExitRefused, Message: text}
	switch {
	case status == 401 || status == 403:
		e.Code = app.ExitDenied
		e.Message += "\n  → it opens to its own key or token: redoubt endpoint get-credentials or get-token; or leave --key-stdin away to score by your roles"
	case status == 504 || status == 408:
		e.Code = app.ExitTimeout
	case status >= 500 && !strings.Contains(contentType, "json"):
		e.Message += "\n  → the log of its host: redoubt deployment logs"
	}
	return e
}
