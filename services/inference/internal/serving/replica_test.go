package serving

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/redoubt-ml/redoubt/pkg/svid"
	"github.com/redoubt-ml/redoubt/services/inference/internal/serving/pool"
)

// TestWhoMayBringWorkers is the table of the replica listener: one run, of one workspace, that was expected.
func TestWhoMayBringWorkers(t *testing.T) {
	l := newLab(t)
	l.Expect("run_1", workspace, "dep_1")
	l.Expect("run_2", "ws_2", "dep_1")
	foreign, err := svid.NewAuthority(td, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	path := func(p string) spiffeid.ID { return spiffeid.RequireFromPath(td, p) }
	for _, c := range []struct {
		name   string
		ca     *svid.Authority
		id     spiffeid.ID
		protos []string
		hello  string
		ok     bool
	}{
		{"right", l.ca, path("/workspace/ws_1/run/run_1"), []string{pool.Protocol}, "{\"worker\":3}\n", true},
		{"of another workspace", l.ca, path("/workspace/ws_1/run/run_2"), []string{pool.Protocol}, "{\"worker\":0}\n", false},
		{"not expected", l.ca, path("/workspace/ws_1/run/run_3"), []string{pool.Protocol}, "{\"worker\":0}\n", false},
		{"a service", l.ca, path("/service/compute"), []string{pool.Protocol}, "{\"worker\":0}\n", false},
		{"an agent", l.ca, path("/agent/run_1"), []string{pool.Protocol}, "{\"worker\":0}\n", false},
		{"an endpoint", l.ca, path("/workspace/ws_1/endpoint/run_1"), []string{pool.Protocol}, "{\"worker\":0}\n", false},
		{"another root", foreign, path("/workspace/ws_1/run/run_1"), []string{pool.Protocol}, "{\"worker\":0}\n", false},
		{"another protocol", l.ca, path("/workspace/ws_1/run/run_1"), []string{"h2"}, "{\"worker\":0}\n", false},
		{"no protocol", l.ca, path("/workspace/ws_1/run/run_1"), nil, "{\"worker\":0}\n", false},
		{"no number", l.ca, path("/workspace/ws_1/run/run_1"), []string{pool.Protocol}, "{}\n", false},
		{"a number too high", l.ca, path("/workspace/ws_1/run/run_1"), []string{pool.Protocol}, "{\"worker\":256}\n", false},
		{"a negative number", l.ca, path("/workspace/ws_1/run/run_1"), []string{pool.Protocol}, "{\"worker\":-1}\n", false},
		{"no JSON", l.ca, path("/workspace/ws_1/run/run_1"), []string{pool.Protocol}, "GET / HTTP/1.1\r\n\r\n", false},
		{"a long line", l.ca, path("/workspace/ws_1/run/run_1"), []string{pool.Protocol}, "{\"worker\":0" + strings.Repeat(" ", 100) + "}\n", false},
		{"a line without end", l.ca, path("/workspace/ws_1/run/run_1"), []string{pool.Protocol}, strings.Repeat(" ", 20<<10), false},
		{"more than the line", l.ca, path("/workspace/ws_1/run/run_1"), []string{pool.Protocol}, "{\"worker\":0}\nHTTP/1.1 200 OK\r\n", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			said := ""
			conn, err := l.dial(l.certificate(c.ca, c.id), c.protos...)
			if err == nil {
				defer conn.Close()
				_ = conn.SetDeadline(time.Now().Add(longTime))
				_, _ = io.WriteString(conn, c.hello)
				said, _ = bufio.NewReader(conn).ReadString('\n')
			}
			if (said == "ok\n") != c.ok {
				t.Errorf("said %q, %v", said, err)
			}
			if c.ok {
				l.ready("run_1", 1)
				_ = conn.Close()
				l.ready("run_1", 0)
			} else if l.Ready("run_1")+l.Ready("run_2")+l.Ready("run_3") > 0 {
				t.Error("it is in the pool")
			}
		})
	}
	if c, err := tls.Dial("tcp", l.replica, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{pool.Protocol}}); err == nil {
		_ = c.SetDeadline(time.Now().Add(longTime))
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("no certificate was asked for")
		}
		_ = c.Close()
	}
}

func TestMostWorkers(t *testing.T) {
	l := newLab(t)
	l.Expect("run_1", workspace, "dep_1")
	a := l.newAgent("run_1")
	for n := range 24 {
		if _, _, err := a.connect(n); err != nil {
			t.Fatal(err)
		}
	}
	l.ready("run_1", 24)
	c, _, err := a.connect(24) // it may read "ok" before it is turned away
	if err == nil {
		_ = c.SetDeadline(time.Now().Add(longTime))
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("the 25th is taken")
		}
	}
	if l.Ready("run_1") != 24 {
		t.Errorf("%d", l.Ready("run_1"))
	}
	l.Forget("run_1")
	l.ready("run_1", 0)
	if _, _, err := a.connect(0); err == nil {
		t.Error("forgotten, and taken")
	}
}

// TestUnaskedAnswers: a worker that speaks before it is asked cannot put its words into another's request.
func TestUnaskedAnswers(t *testing.T) {
	l := newLab(t)
	l.Expect("run_1", workspace, "dep_ep_1")
	l.Set(simple("ep_1", "run_1"))
	a := l.newAgent("run_1")
	a.work(0, echo)
	l.ready("run_1", 1)
	c, _, err := a.connect(1)
	if err != nil {
		t.Fatal(err)
	}
	l.ready("run_1", 2)
	fmt.Fprint(c, "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged")
	eventually(t, func() bool { return l.Ready("run_1") == 1 })
	if got := l.score(); got.body != "{}" {
		t.Errorf("%v", got)
	}
	// Behind an answer, too.
	twice := l.newAgent("run_1")
	twice.work(2, func(w *bufio.Writer, _ *http.Request, _ []byte) {
		reply(w, 200, "", []byte("mine"))
		reply(w, 200, "", []byte("forged"))
	})
	l.ready("run_1", 2)
	if got := l.score(); got.body != "mine" {
		t.Errorf("%v", got)
	}
	for range 3 {
		if got := l.score(); got.body != "{}" {
			t.Errorf("%v", got)
		}
	}
}
