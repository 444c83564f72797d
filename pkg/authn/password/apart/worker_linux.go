package apart

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Supported says whether this system can have workers.
const Supported = true

func possible() error {
	if !hooked.Load() {
		return errors.New("apart: a program that has hashes computed apart calls apart.Maybe first thing in main")
	}
	return nil
}

// worker is the parent's end of one process.
type worker struct {
	conn  net.Conn
	cmd   *exec.Cmd
	over  chan struct{} // closed when the process is gone
	once  sync.Once
	timer *time.Timer // of an idle one
}

// program is this one, also where another has taken its place on the disk.
var program = "/proc/self/exe"

// start starts a worker and waits until it is confined.
func start(lanes uint8, patience time.Duration) (*worker, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socket pair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "worker"), os.NewFile(uintptr(pair[1]), "worker")
	defer func() { _ = theirs.Close() }()
	conn, err := net.FileConn(ours)
	_ = ours.Close()
	if err != nil {
		return nil, err
	}
	w := &worker{conn: conn, over: make(chan struct{})}
	w.cmd = &exec.Cmd{
		Path: program, Args: []string{argv0}, Dir: "/", ExtraFiles: []*os.File{theirs},
		// One thread computes, or as many as one hash has lanes; a collection follows each hash, and there is none else.
		Env:         []string{"GOMAXPROCS=" + strconv.Itoa(int(lanes)), "GOGC=off"},
		SysProcAttr: &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setsid: true},
	}
	started := make(chan error, 1)
	go w.own(started)
	if err := <-started; err != nil {
		_ = conn.Close()
		return nil, err
	}
	_ = conn.SetDeadline(time.Now().Add(patience))
	switch kind, text, err := hear(conn); {
	case err != nil:
		w.end()
		return nil, fmt.Errorf("it said nothing: %w", err)
	case kind != saidReady:
		w.end()
		return nil, fmt.Errorf("it cannot confine itself: %s", text)
	}
	return w, nil
}

// own starts the process and waits for it. The death signal comes when the starting thread ends, not the process, so this goroutine keeps its
// thread to itself for as long as the worker lives.
func (w *worker) own(started chan<- error) {
	runtime.LockOSThread()
	err := w.cmd.Start()
	started <- err
	if err == nil {
		_ = w.cmd.Wait()
	}
	close(w.over)
}

// do has one hash computed. After an error the worker is of no use.
func (w *worker) do(j Job, patience time.Duration) ([]byte, error) {
	_ = w.conn.SetDeadline(time.Now().Add(patience))
	order := j.appendTo(make([]byte, 0, jobHeader+MaxSalt+MaxPassword))
	_, err := w.conn.Write(order)
	clear(order)
	if err != nil {
		return nil, err
	}
	kind, text, err := hear(w.conn)
	switch {
	case err != nil:
		return nil, fmt.Errorf("it ended, or said nothing in time: %w", err)
	case kind != saidKey || len(text) != int(j.KeyBytes):
		return nil, errors.New("it answered wrongly")
	}
	return text, nil
}

// gone says whether the process has ended.
func (w *worker) gone() bool {
	select {
	case <-w.over:
		return true
	default:
		return false
	}
}

// end kills the process, and returns when it is gone.
func (w *worker) end() {
	w.once.Do(func() {
		_ = w.cmd.Process.Kill()
		_ = w.conn.Close()
	})
	<-w.over
}
