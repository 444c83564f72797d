package e2e

import (
	"bufio"
	"context"
	"io"
	"strings"
	"testing"

	"github.com/redoubt-ml/redoubt/internal/cli"
)

// B1 G3: whoever may score needs no key, and the log tells what was asked and who was refused.
func TestScoringByRoleAndItsLog(t *testing.T) {
	x := serves(t, "clilog")
	body := x.dir + "/body.json"
	x.predicts(x.ok("endpoint", "score", "twice", "--file", body))
	x.has(x.ok("endpoint", "score", "twice", "-f", body, "-o", "yaml"), "predictions:\n")
	out, said := x.types(2, `{"data": "fail"}`, "endpoint", "score", "twice", "-f", "-")
	x.has(out, "asked to")
	x.has(said, "500")
	x.types(3, "rdk_none\n", "endpoint", "score", "twice", "-f", body, "--key-stdin")

	// The log comes a moment later than the answer.
	x.until("the scoring log has them", func() bool {
		out := x.ok("endpoint", "logs", "twice")
		return strings.Contains(out, "role") && strings.Contains(out, "401") && strings.Contains(out, "500")
	})
	if out := x.ok("endpoint", "logs", "twice", "--status", "4xx"); strings.Contains(out, "role") || !strings.Contains(out, "401") {
		t.Errorf("got\n%s", out)
	}
	x.has(x.ok("endpoint", "logs", "twice", "--deployment", "blue", "--since", "1h", "--limit", "1", "-o", "yaml"), "requests:\n", "nextPageToken:")
	x.types(1, "", "endpoint", "logs", "twice", "--status", "2x")
	x.types(1, "", "endpoint", "logs", "twice", "-f", "--status", "200")
}

// G3: the log as it comes.
func TestScoringLogIsFollowed(t *testing.T) {
	x := serves(t, "clifollow")
	ctx, stop := context.WithCancel(t.Context())
	out, in := io.Pipe()
	ended := make(chan int, 1)
	go func() {
		code := cli.Main(ctx, []string{"endpoint", "logs", "twice", "-f", "-o", "json"}, strings.NewReader(""), in, io.Discard)
		_ = in.Close()
		ended <- code
	}()
	// It tells of what is stored from when it has begun on, which nobody says: so it is asked for again until it is told.
	told := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(out).ReadString('\n')
		told <- line
		_, _ = io.Copy(io.Discard, out)
	}()
	line := ""
	x.until("a request is told", func() bool {
		x.ok("endpoint", "score", "twice", "--file", x.dir+"/body.json")
		select {
		case line = <-told:
			return true
		default:
			return false
		}
	})
	x.has(line, `"auth":"role"`, `"statusCode":200`, `"deployment":"blue"`)
	stop()
	if code := <-ended; code != 1 {
		t.Errorf("interrupted, it ends with %d", code)
	}
}

// until repeats a look until it finds, as long as the test may take.
func (x *terminal) until(what string, found func() bool) {
	x.t.Helper()
	ctx := x.t.Context()
	if end, ok := x.t.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, end)
		defer cancel()
	}
	for !found() {
		if ctx.Err() != nil {
			x.t.Fatalf("it never is so: %s", what)
		}
	}
}
