package serving

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/redoubt-ml/redoubt/gen/inference"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
)

// nolog is a Log that costs nothing.
type nolog struct{}

func (nolog) Append(*telemetryv1.ScoringRequest) {}

// benched is an endpoint with workers that answer at once, without the cost of an HTTP library.
func benched(b *testing.B, workers int, body string) *lab {
	l := newLab(b, func(c *Config) { c.Log = nolog{} })
	l.Expect("run_1", workspace, "dep_ep_1")
	a := l.newAgent("run_1")
	answer := []byte(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body))
	for n := range workers {
		c, r, err := a.connect(n)
		if err != nil {
			b.Fatal(err)
		}
		a.wg.Go(func() {
			for {
				length := 0
				for {
					line, err := r.ReadSlice('\n')
					if err != nil {
						return
					}
					if len(line) == 2 {
						break
					}
					_, _ = fmt.Sscanf(string(line), "Content-Length: %d", &length)
				}
				if _, err := r.Discard(length); err != nil {
					return
				}
				if _, err := c.Write(answer); err != nil {
					return
				}
			}
		})
	}
	l.Set(simple("ep_1", "run_1"))
	l.ready("run_1", workers)
	return l
}

// BenchmarkScore is one keep-alive connection per goroutine, with a client that costs little: what is measured is the way of a request.
func BenchmarkScore(b *testing.B) {
	for name, body := range map[string]string{"small": `{"data":[[5.1,3.5,1.4,0.2]]}`, "64k": strings.Repeat("x", 64<<10)} {
		b.Run(name, func(b *testing.B) {
			l := benched(b, 8, `[0]`)
			req := []byte("POST /endpoints/ep_1/score HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer primary\r\nContent-Type: application/json\r\nContent-Length: " + fmt.Sprint(len(body)) + "\r\n\r\n" + body)
			b.ReportAllocs()
			b.SetBytes(int64(len(body)))
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				c, err := tls.Dial("tcp", l.addr, l.tls("http/1.1"))
				if err != nil {
					b.Error(err)
					return
				}
				defer c.Close()
				r := bufio.NewReader(c)
				for pb.Next() {
					if _, err := c.Write(req); err != nil {
						b.Error(err)
						return
					}
					if !drain(b, r) {
						return
					}
				}
			})
		})
	}
}

// drain reads one answer.
func drain(b *testing.B, r *bufio.Reader) bool {
	length := 0
	for first := true; ; first = false {
		line, err := r.ReadSlice('\n')
		if err != nil || first && !strings.HasPrefix(string(line), "HTTP/1.1 200") {
			b.Errorf("%q %v", line, err)
			return false
		}
		if len(line) == 2 {
			break
		}
		if strings.HasPrefix(string(line), "Content-Length: ") {
			_, _ = fmt.Sscanf(string(line), "Content-Length: %d", &length)
		}
	}
	_, err := r.Discard(length)
	return err == nil
}

func BenchmarkScoreHTTP2(b *testing.B) {
	l := benched(b, 8, `[0]`)
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			r, err := http.NewRequestWithContext(context.Background(), "POST", "https://"+l.addr+"/endpoints/ep_1/score", strings.NewReader(`{"data":[[5.1,3.5,1.4,0.2]]}`))
			if err != nil {
				b.Error(err)
				return
			}
			r.Header.Set("Authorization", "Bearer primary")
			resp, err := l.h2.Do(r)
			if err != nil {
				b.Error(err)
				return
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
	})
}

func BenchmarkOIPByGRPC(b *testing.B) {
	l := benched(b, 8, `[[0.1,0.2]]`)
	oip := inference.NewGRPCInferenceServiceClient(l.grpc())
	ctx := outgoing(b, "authorization", "Bearer primary", "redoubt-endpoint", "ep_1")
	in := fp32([]int64{1, 4}, 5.1, 3.5, 1.4, 0.2)
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := oip.ModelInfer(ctx, in); err != nil {
				b.Error(err)
				return
			}
		}
	})
}
