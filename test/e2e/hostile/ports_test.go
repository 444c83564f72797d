//go:build linux

package hostile

import (
	"bufio"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redoubt-ml/redoubt/internal/node"
)

// D10: the installation listens where it says, on loopback, and nowhere else; an agent and its run listen nowhere on the machine.
func TestPorts(t *testing.T) {
	var want []string
	for _, p := range ports {
		want = append(want, p.Addr)
	}
	slices.Sort(want)
	if got := listening(t, os.Getpid()); !slices.Equal(got, want) {
		t.Errorf("open are %v, documented %v", got, want)
	}
	l := newLab(t, "ports")
	r := l.submit(t, nil, map[string]string{"wait.py": "import time\ntime.sleep(600)\n"}, "python3", "wait.py")
	defer l.end(t, r)
	agent := 0
	eventually(t, "the run's command", func() error {
		b, err := os.ReadFile(filepath.Join(mesh.Dir, "compute", "runs", r.GetUid(), "agent.pid"))
		if err != nil {
			return err
		}
		if _, err := fmt.Sscan(string(b), &agent); err != nil {
			return err
		}
		for _, pid := range descendants(agent) {
			if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err == nil && strings.Contains(string(b), "wait.py") {
				return nil
			}
		}
		return errors.New("not there yet")
	})
	for _, pid := range append(descendants(agent), agent) {
		if got := listening(t, pid); len(got) != 0 {
			t.Errorf("process %d of the run listens on %v", pid, got)
		}
	}
	if got := listening(t, os.Getpid()); !slices.Equal(got, want) {
		t.Errorf("while a run goes, open are %v, documented %v", got, want)
	}
	// The search finds what is open.
	extra, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "[::1]:0")
	if err != nil {
		if extra, err = (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
	}
	defer func() { _ = extra.Close() }()
	if got := listening(t, os.Getpid()); !slices.Contains(got, extra.Addr().String()) {
		t.Errorf("an open port %s is not found: %v", extra.Addr(), got)
	}
}

// listening gives the addresses at which a process listens by TCP or UDP in this network, sorted.
func listening(t *testing.T, pid int) []string {
	t.Helper()
	own := make(map[string]bool)
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		if to, err := os.Readlink(link); err == nil && strings.HasPrefix(to, "socket:[") {
			own[strings.Trim(to, "socket:[]")] = true
		}
	}
	var out []string
	for _, table := range []struct{ file, state string }{{"tcp", "0A"}, {"tcp6", "0A"}, {"udp", "07"}, {"udp6", "07"}} {
		f, err := os.Open("/proc/self/net/" + table.file)
		if errors.Is(err, os.ErrNotExist) {
			continue // no IPv6 here
		} else if err != nil {
			t.Fatal(err)
		}
		for lines := bufio.NewScanner(f); lines.Scan(); {
			c := strings.Fields(lines.Text())
			if len(c) > 9 && c[3] == table.state && own[c[9]] {
				out = append(out, address(t, c[1]))
			}
		}
		_ = f.Close()
	}
	slices.Sort(out)
	return out
}

// address reads one as the kernel prints it: words of 32 bits in the machine's order, and the port.
func address(t *testing.T, s string) string {
	t.Helper()
	host, port, ok := strings.Cut(s, ":")
	b, err := hex.DecodeString(host)
	n, perr := strconv.ParseUint(port, 16, 16)
	if !ok || err != nil || perr != nil {
		t.Fatalf("not an address: %q", s)
	}
	for i := 0; i+4 <= len(b); i += 4 {
		slices.Reverse(b[i : i+4])
	}
	return net.JoinHostPort(net.IP(b).String(), strconv.FormatUint(n, 10))
}

// D10: every port speaks TLS 1.3 with a hybrid key exchange, to those with a certificate of the mesh or of etcd's. Only the gateway and the
// scoring listener are for anyone, and take TLS 1.2 too, with forward secrecy and authenticated encryption.
func TestTransport(t *testing.T) {
	for _, p := range ports {
		public := p.Name == "gateway" || p.Name == "inference-scoring"
		t.Run(p.Name, func(t *testing.T) {
			for what, text := range map[string]string{
				"HTTP": "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/2": "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00", "a line": "hello\r\n",
			} {
				if got := plain(t, p.Addr, text); usable(got) {
					t.Errorf("%s in plain text is answered with %q", what, got)
				}
			}
			for _, version := range []uint16{tls.VersionTLS10, tls.VersionTLS11, tls.VersionTLS12} {
				_, err := handshake(t, p.Addr, &tls.Config{MinVersion: version, MaxVersion: version})
				if public && version == tls.VersionTLS12 {
					weak := []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA, tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA, tls.TLS_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA}
					if _, err2 := handshake(t, p.Addr, &tls.Config{MinVersion: version, MaxVersion: version, CipherSuites: weak}); err != nil || err2 == nil {
						t.Errorf("TLS 1.2: %v, with weak ciphers: %v", err, err2)
					}
					continue
				}
				if err == nil || !strings.Contains(err.Error(), "protocol version") {
					t.Errorf("%s: %v", tls.VersionName(version), err)
				}
			}
			state, err := handshake(t, p.Addr, &tls.Config{MinVersion: tls.VersionTLS13})
			if state.Version != tls.VersionTLS13 || state.CurveID != tls.X25519MLKEM768 {
				t.Errorf("TLS 1.3: %s, %s, %v", tls.VersionName(state.Version), state.CurveID, err)
			}
			if public {
				if err != nil {
					t.Errorf("without a certificate: %v", err)
				}
			} else if err == nil || !strings.Contains(err.Error(), "certificate required") {
				t.Errorf("without a certificate: %v", err)
			}
		})
	}
}

// usable reports whether an answer is more than a refusal: a TLS alert, HTTP's 400, or nothing.
func usable(answer []byte) bool {
	return len(answer) > 0 && answer[0] != 0x15 && !strings.HasPrefix(string(answer), "HTTP/1.0 400") && !strings.HasPrefix(string(answer), "HTTP/1.1 400")
}

func plain(t *testing.T, addr, text string) []byte {
	t.Helper()
	c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(2 * time.Second))
	if _, err := io.WriteString(c, text); err != nil {
		return nil
	}
	b, _ := io.ReadAll(io.LimitReader(c, 4096)) // reset and timeout are refusals too
	return b
}

// handshake also reads: in TLS 1.3 a client learns only then that its certificate was wanted.
func handshake(t *testing.T, addr string, cfg *tls.Config) (tls.ConnectionState, error) {
	t.Helper()
	raw, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = raw.Close() }()
	_ = raw.SetDeadline(time.Now().Add(5 * time.Second))
	cfg.InsecureSkipVerify = true // which versions are spoken is asked, nothing is sent
	// What one port or another speaks. The one of certificates is for plain HTTP clients, and takes no HTTP/2.
	cfg.NextProtos = []string{"h2", "redoubt-replica/1"}
	if slices.ContainsFunc(ports, func(p node.Port) bool { return p.Addr == addr && p.Name == "identity-mtls" }) {
		cfg.NextProtos = []string{"http/1.1"}
	}
	c := tls.Client(raw, cfg)
	if err := c.HandshakeContext(t.Context()); err != nil {
		return tls.ConnectionState{}, err
	}
	_, err = c.Read(make([]byte, 1)) // a server of HTTP/2 speaks first
	return c.ConnectionState(), err
}
