//go:build linux

// Package ledger keeps which runs' commands were started on this machine, as the kernel tells of it: an account outside of the
// installation, so that a run that was carried out twice shows.
//
// It owns a netlink socket to the kernel's process connector.
//
// Trust boundary: the kernel's word, and the arguments of the started process. Only a process whose arguments hold a marker counts.
//
// Invariants: a start is noted once, under the process that made it; what is noted stays.
//
// Failure: a message that was lost, for want of room, is an error of Err: an account with holes proves nothing.
package ledger

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"regexp"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	cnIdxProc, cnValProc = 1, 1
	listen               = 1
	eventExec            = 2
	// header is that of netlink and that of the connector, after which the event comes.
	header  = 16 + 20
	bufSize = 4 << 20
)

// Ledger is safe for concurrent use.
type Ledger struct {
	fd     int
	marker *regexp.Regexp
	done   chan struct{}

	mu     sync.Mutex
	starts map[string][]int // marker → processes
	err    error
}

// Open starts the account. Of each process that is started, the first match of marker's first group in its arguments is what is counted.
func Open(marker *regexp.Regexp) (*Ledger, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_CONNECTOR)
	if err != nil {
		return nil, fmt.Errorf("the kernel's process connector: %w", err)
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, bufSize)
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 200_000})
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: cnIdxProc, Pid: uint32(os.Getpid())}); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("the kernel's process connector: %w", err)
	}
	b := make([]byte, header+4)
	binary.NativeEndian.PutUint32(b, uint32(len(b)))      // netlink: length
	binary.NativeEndian.PutUint16(b[4:], unix.NLMSG_DONE) // and type
	binary.NativeEndian.PutUint32(b[16:], cnIdxProc)
	binary.NativeEndian.PutUint32(b[20:], cnValProc)
	binary.NativeEndian.PutUint16(b[32:], 4) // the connector's: length of what follows
	binary.NativeEndian.PutUint32(b[header:], listen)
	if err := unix.Sendto(fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("the kernel's process connector: %w", err)
	}
	l := &Ledger{fd: fd, marker: marker, done: make(chan struct{}), starts: make(map[string][]int)}
	go l.read()
	return l, nil
}

// Close ends the account.
func (l *Ledger) Close() {
	close(l.done)
}

// Starts are the numbers of the processes that were started under this marker.
func (l *Ledger) Starts(marker string) []int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]int(nil), l.starts[marker]...)
}

// Err says why the account has holes, or nil.
func (l *Ledger) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

func (l *Ledger) read() {
	defer func() { _ = unix.Close(l.fd) }()
	buf := make([]byte, 64<<10)
	for {
		select {
		case <-l.done:
			return
		default:
		}
		n, _, err := unix.Recvfrom(l.fd, buf, 0)
		switch {
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			l.mu.Lock()
			l.err = fmt.Errorf("the kernel's process connector: %w", err)
			l.mu.Unlock()
			if errors.Is(err, unix.ENOBUFS) {
				continue
			}
			return
		}
		// proc_event: what, cpu, timestamp (8), then process_pid and process_tgid.
		if ev := buf[:n]; n >= header+24 && binary.NativeEndian.Uint32(ev[header:]) == eventExec {
			l.started(int(binary.NativeEndian.Uint32(ev[header+20:])))
		}
	}
}

func (l *Ledger) started(pid int) {
	args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return // it has ended: no command that is looked for is so short
	}
	m := l.marker.FindSubmatch(bytes.ReplaceAll(args, []byte{0}, []byte{' '}))
	if len(m) < 2 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	key := string(m[1])
	for _, p := range l.starts[key] {
		if p == pid { // the same process, which has become another program
			return
		}
	}
	l.starts[key] = append(l.starts[key], pid)
}
