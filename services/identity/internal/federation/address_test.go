package federation

import (
	"net/netip"
	"testing"
)

// What is dialled is an address of the public internet, however it is written.
func TestPublic(t *testing.T) {
	for _, a := range []string{
		"127.0.0.1", "127.9.9.9", "::1", "0.0.0.0", "0.1.2.3", "::", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254", "fe80::1", "fe80::1%eth0",
		"fc00::1", "fd12:3456::1", "224.0.0.1", "239.1.1.1", "ff02::1", "255.255.255.255", "240.0.0.1", "100.64.0.1", "192.0.0.8", "198.18.0.1", "192.0.2.1", "203.0.113.9",
		"::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "::10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a00:1", "64:ff9b:1::1", "2002:7f00:1::", "2002:a00:1::1",
		"2001::1", "2001:db8::1", "fec0::1", "100::1", "5f00::1", "3fff::1",
	} {
		if public(netip.MustParseAddr(a)) {
			t.Errorf("%s is taken for public", a)
		}
	}
	for _, a := range []string{"1.1.1.1", "8.8.8.8", "172.32.0.1", "100.63.255.255", "::ffff:8.8.8.8", "2606:4700:4700::1111", "2a00:1450:4001:80e::200e"} {
		if !public(netip.MustParseAddr(a)) {
			t.Errorf("%s is not taken for public", a)
		}
	}
	if public(netip.Addr{}) || guard("tcp", "nonsense", nil) == nil || guard("tcp", "127.0.0.1:443", nil) == nil || guard("tcp", "8.8.8.8:443", nil) != nil {
		t.Error("the guard lets through what it does not know, or nothing")
	}
}
