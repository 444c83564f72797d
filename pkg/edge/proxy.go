package edge

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
)

const (
	// proxyV2 begins a header of version 2.
	proxyV2 = "\r\n\r\n\x00\r\nQUIT\n"
	// mostV1 is how long a line of version 1 may be, its end included.
	mostV1 = 107
	// mostV2 is how much may follow the fixed part of version 2: the addresses, and what load balancers say besides.
	mostV2 = 4096
)

var errProxy = errors.New("edge: no PROXY header, or a wrong one")

// readProxy reads the header of the PROXY protocol, version 1 or 2, and not a byte more. It gives the client's address, or the zero one
// where the proxy speaks for itself.
func readProxy(r io.Reader) (netip.AddrPort, error) {
	head := make([]byte, len(proxyV2), mostV1)
	if _, err := io.ReadFull(r, head); err != nil {
		return netip.AddrPort{}, fmt.Errorf("%w: %w", errProxy, err)
	}
	switch {
	case string(head) == proxyV2:
		return readV2(r)
	case !bytes.HasPrefix(head, []byte("PROXY ")):
		return netip.AddrPort{}, errProxy
	}
	for !bytes.HasSuffix(head, []byte("\n")) { // one by one: what follows is TLS's
		if len(head) == mostV1 {
			return netip.AddrPort{}, errProxy
		}
		head = head[:len(head)+1]
		if _, err := io.ReadFull(r, head[len(head)-1:]); err != nil {
			return netip.AddrPort{}, fmt.Errorf("%w: %w", errProxy, err)
		}
	}
	line, ok := strings.CutSuffix(string(head), "\r\n")
	if !ok {
		return netip.AddrPort{}, errProxy
	}
	return parseV1(line)
}

// parseV1 reads "PROXY TCP4 source destination port port", or "PROXY UNKNOWN" and whatever follows.
func parseV1(line string) (netip.AddrPort, error) {
	f := strings.Split(line, " ")
	if f[1] == "UNKNOWN" {
		return netip.AddrPort{}, nil
	}
	if len(f) != 6 || f[1] != "TCP4" && f[1] != "TCP6" {
		return netip.AddrPort{}, errProxy
	}
	var addrs [2]netip.Addr
	for i := range addrs {
		a, err := netip.ParseAddr(f[2+i])
		if err != nil || a.Is4() != (f[1] == "TCP4") || a.Zone() != "" {
			return netip.AddrPort{}, errProxy
		}
		addrs[i] = a
	}
	var ports [2]uint16
	for i := range ports {
		p, err := strconv.ParseUint(f[4+i], 10, 16)
		if err != nil || strconv.FormatUint(p, 10) != f[4+i] {
			return netip.AddrPort{}, errProxy
		}
		ports[i] = uint16(p)
	}
	return netip.AddrPortFrom(addrs[0].Unmap(), ports[0]), nil
}

// readV2 reads what follows the signature.
func readV2(r io.Reader) (netip.AddrPort, error) {
	var fixed [4]byte
	if _, err := io.ReadFull(r, fixed[:]); err != nil {
		return netip.AddrPort{}, fmt.Errorf("%w: %w", errProxy, err)
	}
	n := int(binary.BigEndian.Uint16(fixed[2:]))
	if n > mostV2 {
		return netip.AddrPort{}, errProxy
	}
	rest := make([]byte, n)
	if _, err := io.ReadFull(r, rest); err != nil {
		return netip.AddrPort{}, fmt.Errorf("%w: %w", errProxy, err)
	}
	const (
		local, proxy   = 0x20, 0x21
		unspec         = 0x00
		tcp4, tcp6     = 0x11, 0x21
		bytes4, bytes6 = 4, 16
	)
	var size int
	switch {
	case fixed[0] == local, fixed[0] == proxy && fixed[1] == unspec:
		return netip.AddrPort{}, nil
	case fixed[0] == proxy && fixed[1] == tcp4:
		size = bytes4
	case fixed[0] == proxy && fixed[1] == tcp6:
		size = bytes6
	default:
		return netip.AddrPort{}, errProxy
	}
	if n < 2*size+4 {
		return netip.AddrPort{}, errProxy
	}
	a, _ := netip.AddrFromSlice(rest[:size])
	return netip.AddrPortFrom(a.Unmap(), binary.BigEndian.Uint16(rest[2*size:])), nil
}
