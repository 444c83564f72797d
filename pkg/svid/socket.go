package svid

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials"

	"github.com/redoubt-ml/redoubt/pkg/fault"
)

const (
	socketName = "agent.sock"
	// maxSocketPath is Linux's bound on the path of a unix socket, less its final zero byte.
	maxSocketPath = 107
)

// socket is a listener in a folder that nobody else can write to.
type socket struct {
	path     string
	listener *net.UnixListener
	tempDir  string // to be removed with it, when the wanted path was too long
}

func listenSocket(dir string) (*socket, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fault.Internal(err, "the folder of the Workload API's socket could not be found")
	}
	s := &socket{path: filepath.Join(dir, socketName)}
	if len(s.path) > maxSocketPath {
		if err := s.shorten(); err != nil {
			return nil, err
		}
	} else if err := privateDir(dir); err != nil {
		return nil, err
	}
	if err := removeStale(s.path); err != nil {
		return nil, err
	}
	s.listener, err = net.ListenUnix("unix", &net.UnixAddr{Name: s.path, Net: "unix"})
	if err == nil {
		err = os.Chmod(s.path, 0o600)
	}
	if err != nil {
		s.remove()
		return nil, fault.Internal(err, "the Workload API's socket could not be made")
	}
	return s, nil
}

// shorten moves the socket to a folder of its own, 0700, below a shorter one.
func (s *socket) shorten() error {
	for _, base := range []string{os.TempDir(), "/tmp"} {
		dir, err := os.MkdirTemp(base, "redoubt-") // 0700
		if err != nil {
			continue
		}
		if path := filepath.Join(dir, socketName); len(path) <= maxSocketPath {
			s.path, s.tempDir = path, dir
			return nil
		}
		_ = os.Remove(dir)
	}
	return fault.FailedPrecondition("the path of the data folder is too long for a socket, and so is TMPDIR: set TMPDIR to a short path that can be written")
}

// remove closes the listener, which unlinks the socket, and its folder if that was made for it.
func (s *socket) remove() {
	if s.listener != nil {
		_ = s.listener.Close()
	}
	if s.tempDir != "" {
		_ = os.Remove(s.tempDir)
	}
}

// removeStale makes room at path: only for a socket of ours at which nobody answers.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fault.Internal(err, "the Workload API's socket could not be made")
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if info.Mode()&fs.ModeSocket == 0 || !ok || int(st.Uid) != os.Geteuid() {
		return fault.FailedPrecondition("in the place of the Workload API's socket is something else: remove it")
	}
	d := net.Dialer{Timeout: time.Second}
	conn, err := d.Dial("unix", path)
	if err == nil {
		_ = conn.Close()
		return fault.FailedPrecondition("another process serves this workload already: stop it first")
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return fault.Internal(err, "the Workload API's socket is there and cannot be tried")
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fault.Internal(err, "the old socket of the Workload API could not be removed")
	}
	return nil
}

// peerCreds asks the kernel who calls (SO_PEERCRED): entitled are the processes that run under our own user id. Others are told so at each
// call, since a client of the standard takes a connection that closes for a server that is away.
type peerCreds struct{ log *slog.Logger }

// peerInfo is what the kernel said of a caller.
type peerInfo struct {
	credentials.CommonAuthInfo
	uid      uint32
	pid      int32
	entitled bool
}

// AuthType implements credentials.AuthInfo.
func (peerInfo) AuthType() string { return "peercred" }

func (c *peerCreds) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	info, err := c.admit(conn)
	if err != nil {
		c.log.Warn("a caller of the Workload API was refused", "error", err)
		_ = conn.Close()
		return nil, nil, err
	}
	return conn, info, nil
}

func (c *peerCreds) admit(conn net.Conn) (peerInfo, error) {
	u, ok := conn.(*net.UnixConn)
	if !ok {
		return peerInfo{}, fault.PermissionDenied("the Workload API takes local callers only")
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return peerInfo{}, err
	}
	var cred *unix.Ucred
	var cerr error
	if err := raw.Control(func(fd uintptr) {
		cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return peerInfo{}, err
	}
	if cerr != nil {
		return peerInfo{}, cerr
	}
	info := peerInfo{CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}} // it never leaves the kernel
	if info.entitled = sameUser(cred, uint32(os.Geteuid())); !info.entitled {
		c.log.Warn("a caller of the Workload API runs under another user id and gets nothing")
	}
	if cred != nil {
		info.uid, info.pid = cred.Uid, cred.Pid
	}
	return info, nil
}

func sameUser(cred *unix.Ucred, own uint32) bool { return cred != nil && cred.Uid == own }

func (c *peerCreds) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("svid: peerCreds is for servers")
}

func (c *peerCreds) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "peercred"}
}

func (c *peerCreds) Clone() credentials.TransportCredentials { return &peerCreds{log: c.log} }

func (c *peerCreds) OverrideServerName(string) error { return nil }
