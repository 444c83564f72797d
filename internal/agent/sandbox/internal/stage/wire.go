//go:build linux

package stage

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/redoubt-ml/redoubt/internal/agent/sandbox/internal/rootfs"
)

// The names that make a process a stage instead of the program that it is. They are argument 0.
const (
	InitName     = "redoubt-run-init"
	launcherName = "redoubt-run-launch"
)

// UID and GID are what the run's user is called inside.
const (
	UID = 1000
	GID = 1000
)

// Capabilities are what the init needs, and all that it is given: mounts, the loopback device and low ports, giving up
// capabilities, and seeing and ending the run's processes whatever they made of themselves.
var Capabilities = []uintptr{unix.CAP_SYS_ADMIN, unix.CAP_NET_ADMIN, unix.CAP_NET_BIND_SERVICE, unix.CAP_SETPCAP, unix.CAP_SYS_PTRACE, unix.CAP_KILL}

// Setup is the agent's first message.
type Setup struct {
	Entries []rootfs.Entry
	// Files stand in rootfs.Platform, by name.
	Files map[string][]byte
	// Opened says that the descriptors of the entries' trees (but for links), then of the volume, come with this message.
	// Otherwise the init opens the trees and makes the volume itself, and hands the volume out.
	Opened     bool
	VolumeSize int64
	Port       uint16
	Command    Command
	// MemoryBytes is what all processes of the run may hold together.
	MemoryBytes int64
}

// Command is what the launcher is to become. Arguments and environment are bytes: they need not be text.
type Command struct {
	Args            [][]byte
	Env             [][]byte
	Limits          Limits
	RequireLandlock bool
	// Probe ends the launcher with status 0 where it would execute the command.
	Probe bool
}

// Limits are of one process, but for Processes.
type Limits struct {
	AddressBytes, FileBytes uint64
	OpenFiles               uint64
	CPUSeconds              uint64 // 0: none
	Processes               uint64 // of the run, threads counted; the init's own are added by the init
}

// Ready is the init's first answer. With it come the listener's descriptor and, unless the agent opened it, the volume's.
type Ready struct {
	Problem string // what failed; empty when all is ready
}

// Go is the agent's second message: execute.
type Go struct{}

// Execute begins the Problem of a command that is there but cannot be executed.
const Execute = "execute: "

// Started is the init's second answer.
type Started struct {
	NotFound bool   // there is no such command
	Problem  string // what failed; empty when the command runs
	Landlock int    // version that applies, 0 for none
}

// Ended is the init's last message.
type Ended struct {
	Status     uint32 // as wait(2) gives it
	Memory     bool   // it was killed since the run went over MemoryBytes
	CPU        time.Duration
	PeakMemory int64 // highest count seen, bytes
}

// maxMessage bounds a message: arguments and environment are at most a few megabytes (ARG_MAX).
const maxMessage = 8 << 20

// Conn carries messages and descriptors between the agent and the init. One goroutine sends, one receives.
type Conn struct{ unix *net.UnixConn }

// NewConn takes over f, one end of a stream socket pair.
func NewConn(f *os.File) (Conn, error) {
	defer func() { _ = f.Close() }()
	conn, err := net.FileConn(f)
	if err != nil {
		return Conn{}, err
	}
	uc, ok := conn.(*net.UnixConn)
	if !ok {
		_ = conn.Close()
		return Conn{}, errors.New("not a unix socket")
	}
	return Conn{uc}, nil
}

// Close closes the socket. The other end reads io.EOF.
func (c Conn) Close() error { return c.unix.Close() }

// Send sends message, with descriptors, which stay open here.
func (c Conn) Send(message any, fds ...int) error {
	body, err := json.Marshal(message)
	if err != nil {
		return err
	}
	if len(body) > maxMessage {
		return fmt.Errorf("a message of %d bytes is over the limit of %d", len(body), maxMessage)
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	head := binary.BigEndian.AppendUint32(nil, uint32(len(body)))
	if _, _, err := c.unix.WriteMsgUnix(head, rights, nil); err != nil {
		return err
	}
	_, err = c.unix.Write(body)
	return err
}

// Receive reads one message into message, and gives the descriptors that came with it, to be closed by the caller.
func (c Conn) Receive(message any) ([]int, error) {
	head := make([]byte, 4)
	oob := make([]byte, unix.CmsgSpace(4*253)) // the kernel passes at most 253
	n, oobn, flags, _, err := c.unix.ReadMsgUnix(head, oob)
	if err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, io.EOF
	}
	fds, err := descriptors(oob[:oobn])
	if err == nil && flags&unix.MSG_CTRUNC != 0 {
		err = errors.New("descriptors were lost")
	}
	if err == nil {
		err = c.body(head, n, message)
	}
	if err != nil {
		closeAll(fds)
		return nil, err
	}
	return fds, nil
}

func (c Conn) body(head []byte, n int, message any) error {
	if _, err := io.ReadFull(c.unix, head[n:]); err != nil {
		return err
	}
	size := binary.BigEndian.Uint32(head)
	if size > maxMessage {
		return fmt.Errorf("a message of %d bytes is over the limit of %d", size, maxMessage)
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(c.unix, body); err != nil {
		return err
	}
	return json.Unmarshal(body, message)
}

func descriptors(oob []byte) ([]int, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var fds []int
	for _, m := range messages {
		got, err := unix.ParseUnixRights(&m)
		if err != nil {
			closeAll(fds)
			return nil, err
		}
		fds = append(fds, got...)
	}
	return fds, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}
