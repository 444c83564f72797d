//go:build linux

// Package netns makes a network of hosts on one machine: each host a network namespace with one address, all of them on a bridge in a
// namespace of its own. Nothing of it touches the machine's own interfaces, and nothing that is sent on it leaves it.
//
// It owns the namespaces whose names begin with Prefix, the processes in them, the mounts and files below Root, and the lock that lets one
// network be there at a time.
//
// Trust boundary: none. It runs as root for tests, and starts what it is told.
//
// Invariants: Open first removes what an earlier network has left, however it ended; Close removes everything. A Cut holds for both
// directions until it is healed; packets are dropped without a word, as in a network that has broken.
//
// Failure: what needs root, or a program of iproute2 and nftables that is missing, is said by Check; every other error is that program's.
package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Two networks that have different names, of letters in FAULT_NAME, may be there beside each other.
var (
	// Prefix of all names of namespaces.
	Prefix = "rfault" + os.Getenv("FAULT_NAME") + "-"
	// Root is the folder below which everything lies that a network's hosts keep.
	Root = "/run/redoubt-fault" + os.Getenv("FAULT_NAME")

	lan = Prefix + "lan"
)

const (
	subnet  = "10.77.0."
	maxHost = 200
	folder  = "/run/netns"
)

// Check says what is missing on this machine, or "".
func Check() string {
	if os.Geteuid() != 0 {
		return "it needs root, for network namespaces and size-limited file systems"
	}
	for _, p := range []string{"ip", "nft"} {
		if _, err := exec.LookPath(p); err != nil {
			return "it needs the program " + p + " (Debian: iproute2, nftables)"
		}
	}
	return ""
}

// Network is a bridge and the hosts on it.
type Network struct {
	lock *os.File

	mu    sync.Mutex
	hosts []*Host
	cuts  map[[2]string]bool // addresses, in order
}

// Host is one namespace.
type Host struct {
	// Name without Prefix, and Addr on the network: an IPv4 address.
	Name, Addr string
	net        *Network
}

// Open makes a network without hosts, after it has removed the remains of an earlier one. It fails where another one is in use.
func Open() (*Network, error) {
	if err := os.MkdirAll(Root, 0o755); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(Root+".lock", os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = lock.Close()
		return nil, errors.New("another network of this kind is in use on this machine")
	}
	n := &Network{lock: lock, cuts: make(map[[2]string]bool)}
	if err := reap(); err != nil {
		_ = lock.Close()
		return nil, err
	}
	if err := os.MkdirAll(Root, 0o755); err != nil {
		_ = lock.Close()
		return nil, err
	}
	err = run("ip", "netns", "add", lan)
	for _, args := range [][]string{{"link", "set", "lo", "up"}, {"link", "add", "br0", "type", "bridge"}, {"link", "set", "br0", "up"}} {
		if err == nil {
			err = run("ip", append([]string{"-n", lan}, args...)...)
		}
	}
	if err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

// Close ends every process on the network and removes everything.
func (n *Network) Close() error {
	err := reap()
	_ = n.lock.Close() // with it the lock
	return err
}

// AddHost makes a host with the next address.
func (n *Network) AddHost(name string) (*Host, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.hosts) >= maxHost {
		return nil, errors.New("the network is full")
	}
	number := strconv.Itoa(10 + len(n.hosts))
	h := &Host{Name: name, Addr: subnet + number, net: n}
	ns, port := Prefix+name, "p"+number
	for _, args := range [][]string{
		{"netns", "add", ns},
		{"link", "add", port, "netns", lan, "type", "veth", "peer", "name", "eth0", "netns", ns},
		{"-n", lan, "link", "set", port, "master", "br0", "up"},
		{"-n", ns, "addr", "add", h.Addr + "/24", "dev", "eth0"},
		{"-n", ns, "link", "set", "lo", "up"},
		{"-n", ns, "link", "set", "eth0", "up"},
	} {
		if err := run("ip", args...); err != nil {
			return nil, fmt.Errorf("host %s: %w", name, err)
		}
	}
	n.hosts = append(n.hosts, h)
	return h, nil
}

// Cut drops everything between two hosts.
func (n *Network) Cut(a, b *Host) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cuts[pair(a, b)] = true
	return n.apply()
}

// Heal lets everything through again.
func (n *Network) Heal() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.cuts)
	return n.apply()
}

func pair(a, b *Host) [2]string {
	p := [2]string{a.Addr, b.Addr}
	slices.Sort(p[:])
	return p
}

// apply replaces all rules in one transaction.
func (n *Network) apply() error {
	var b strings.Builder
	b.WriteString("table bridge cuts {}\ndelete table bridge cuts\ntable bridge cuts {\n chain c {\n  type filter hook forward priority 0; policy accept;\n")
	for p := range n.cuts {
		fmt.Fprintf(&b, "  ip saddr %s ip daddr %s drop\n  ip saddr %s ip daddr %s drop\n", p[0], p[1], p[1], p[0])
	}
	b.WriteString(" }\n}\n")
	cmd := exec.Command("ip", "netns", "exec", lan, "nft", "-f", "-") //nolint:noctx // ends by itself
	cmd.Stdin = strings.NewReader(b.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("nft: %w: %s", err, out)
	}
	return nil
}

// Command is a command that runs on the host. It has the process id that the command itself has.
func (h *Host) Command(name string, args ...string) *exec.Cmd {
	return exec.Command("ip", append([]string{"netns", "exec", Prefix + h.Name, name}, args...)...) //nolint:noctx // whoever starts it ends it
}

// Dial connects from the host. The address has to be numeric.
func (h *Host) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	var conn net.Conn
	err := h.inside(func() (err error) {
		conn, err = (&net.Dialer{}).DialContext(ctx, network, addr)
		return err
	})
	return conn, err
}

// inside runs f on a thread that is in the host's namespace. A thread that cannot be brought back is given up.
func (h *Host) inside(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		own, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			done <- err
			return
		}
		defer func() { _ = own.Close() }()
		ns, err := os.Open(filepath.Join(folder, Prefix+h.Name))
		if err != nil {
			done <- err
			return
		}
		defer func() { _ = ns.Close() }()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		err = f()
		if unix.Setns(int(own.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// reap removes whatever a network has left: processes, mounts, namespaces, files.
func reap() error {
	names, err := namespaces()
	if err != nil {
		return err
	}
	for range 50 { // what is killed may start something in its last moment
		left := 0
		for _, ns := range names {
			out, err := exec.Command("ip", "netns", "pids", ns).Output() //nolint:noctx // ends by itself
			if err != nil {
				continue
			}
			for _, f := range strings.Fields(string(out)) {
				if pid, err := strconv.Atoi(f); err == nil && pid > 1 && pid != os.Getpid() {
					left++
					_ = syscall.Kill(pid, syscall.SIGKILL)
				}
			}
		}
		if left == 0 {
			break
		}
		time.Sleep(20 * time.Millisecond) // the kernel's own work
	}
	var failed []error
	for _, ns := range names {
		failed = append(failed, run("ip", "netns", "delete", ns))
	}
	b, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return err
	}
	for _, line := range slices.Backward(strings.Split(string(b), "\n")) {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[1], Root+"/") {
			failed = append(failed, unix.Unmount(f[1], unix.MNT_DETACH))
		}
	}
	if err := errors.Join(failed...); err != nil {
		return err
	}
	return os.RemoveAll(Root)
}

func namespaces() ([]string, error) {
	entries, err := os.ReadDir(folder)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	var out []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), Prefix) {
			out = append(out, e.Name())
		}
	}
	return out, err
}

// Disk mounts a file system of this size, in memory, at a folder below Root.
func Disk(path string, bytes int64) error {
	if !strings.HasPrefix(path, Root+"/") {
		return fmt.Errorf("%s does not lie below %s", path, Root)
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return err
	}
	return unix.Mount("redoubt-fault", path, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("size=%d,mode=0700", bytes))
}

// ballast fills a disk.
const ballast = "ballast"

// Fill leaves no byte free on the disk at path.
func Fill(path string) error {
	f, err := os.OpenFile(filepath.Join(path, ballast), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	size := int64(0)
	for step := int64(64 << 20); step >= 4096; {
		if err := unix.Fallocate(int(f.Fd()), 0, size, step); errors.Is(err, unix.ENOSPC) {
			step /= 2
		} else if err != nil {
			return err
		} else {
			size += step
		}
	}
	return nil
}

// Free takes the ballast away.
func Free(path string) error {
	err := os.Remove(filepath.Join(path, ballast))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

func run(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil { //nolint:noctx // ends by itself
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
