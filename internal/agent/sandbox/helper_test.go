//go:build linux

package sandbox_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/redoubt-ml/redoubt/internal/agent/sandbox"
)

// helper is what the test binary does as a program in a sandbox, or beside one.
func helper(name string, args []string) int {
	helpers := map[string]func(args []string) error{
		"inside": inside, "get": get, "print": printBytes, "wait": wait, "check": check, "isolate": isolate, "agent": agent,
		"attack": attack, "fill": fill, "empty": emptyFiles, "touch": touch, "family": family, "reserve": reserve,
		"open": openMany, "processes": processes, "bomb": bomb,
	}
	f, ok := helpers[name]
	if !ok {
		fmt.Println("no such helper:", name)
		return 2
	}
	if err := f(args); err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

// inside says what it finds, and fails for what should not be there.
func inside([]string) error {
	fmt.Println("env", strings.Join(os.Environ(), " "))
	var errs []error
	expect := func(what string, got, want any) {
		if got != want {
			errs = append(errs, fmt.Errorf("%s is %v, want %v", what, got, want))
		}
	}
	dir, _ := os.Getwd()
	host, _ := os.Hostname()
	sid, _ := unix.Getsid(0)
	expect("working folder", dir, "/work")
	expect("host name", host, "run")
	expect("session", sid, os.Getpid())
	expect("uid", os.Getuid(), 1000)
	expect("gid", os.Getgid(), 1000)
	if os.Getpid() == 1 {
		errs = append(errs, errors.New("this is process 1"))
	}
	text, err := os.ReadFile("link")
	expect("file behind a link", string(text), "x")
	errs = append(errs, err, os.WriteFile("data/x", []byte("mine"), 0o600), os.Remove("link"))
	status, err := os.ReadFile("/proc/self/status")
	errs = append(errs, err)
	for _, line := range []string{"CapInh:\t0000000000000000", "CapPrm:\t0000000000000000", "CapEff:\t0000000000000000",
		"CapBnd:\t0000000000000000", "CapAmb:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"} {
		if !strings.Contains(string(status), line+"\n") {
			errs = append(errs, fmt.Errorf("no line %q in the status", line))
		}
	}
	interfaces, err := net.Interfaces()
	errs = append(errs, err)
	if len(interfaces) != 1 || interfaces[0].Name != "lo" {
		errs = append(errs, fmt.Errorf("interfaces are %v", interfaces))
	}
	for fd := 3; fd < 256; fd++ {
		// Go's own poller may have come to be by now; what was inherited is no such thing.
		if target, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd)); err == nil && !strings.HasPrefix(target, "anon_inode:") {
			errs = append(errs, fmt.Errorf("descriptor %d is %s", fd, target))
		}
	}
	for _, sealed := range []string{"/", "/etc", "/usr", "/dev", "/sys/devices/system/cpu"} {
		if err := os.WriteFile(filepath.Join(sealed, "x"), nil, 0o600); err == nil {
			errs = append(errs, fmt.Errorf("%s can be written", sealed))
		}
	}
	for _, path := range []string{"/work/w", "/outputs/o", "/scratch/s", "/tmp/t", "/dev/shm/m", "/dev/null"} {
		errs = append(errs, os.WriteFile(path, []byte("x"), 0o600))
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	errs = append(errs, err)
	roots := 0
	for mount := range strings.Lines(string(mounts)) {
		switch at := strings.Fields(mount)[4]; {
		case at == "/":
			roots++
		case !slices.Contains([]string{"usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "nix", "gnu", "etc", "sys", "dev", "proc",
			"work", "outputs", "scratch", "tmp"}, strings.Split(at, "/")[1]), strings.HasPrefix(at, "/sys/fs"), strings.HasPrefix(at, "/dev/pts"):
			errs = append(errs, fmt.Errorf("%s is mounted", at))
		}
	}
	expect("roots", roots, 1)
	// What Landlock alone forbids, from the version on that can.
	version, _, _ := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if int(version) >= 1 {
		expect("writing to /proc", errors.Is(os.WriteFile("/proc/self/comm", []byte("x"), 0), fs.ErrPermission), true)
	}
	if int(version) >= 6 {
		expect("a signal to process 1", unix.Kill(1, 0), error(unix.EPERM))
	}
	pids, _ := filepath.Glob("/proc/[0-9]*")
	if len(pids) != 1 {
		errs = append(errs, fmt.Errorf("processes are seen: %v", pids))
	}
	return errors.Join(errs...)
}

func get(args []string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, args[0], nil)
	if err != nil {
		return err
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	_, err = io.Copy(os.Stdout, answer.Body)
	return err
}

// printBytes prints as many bytes as it is told, in one line.
func printBytes(args []string) error {
	left, err := strconv.Atoi(args[0])
	chunk := []byte(strings.Repeat("x", 1<<16))
	for left > 0 && err == nil {
		n := min(left, len(chunk))
		_, err = os.Stdout.Write(chunk[:n])
		left -= n
	}
	return err
}

// wait says that it is there, and where its secret lies in memory, and waits to be killed.
func wait([]string) error {
	secret := []byte("the victim's secret")
	fmt.Printf("%d %d\n", os.Getpid(), uintptr(unsafe.Pointer(&secret[0])))
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGUSR1)
	<-signals
	fmt.Println(string(secret))
	return nil
}

func check([]string) error {
	err := sandbox.Check(context.Background())
	if err == nil {
		return errors.New("it can isolate")
	}
	fmt.Println(err)
	return nil
}

func isolate([]string) error { return sandbox.Check(context.Background()) }

// agent starts a run, says its process 1, and lives until it is killed.
func agent(args []string) error {
	p, err := sandbox.Start(context.Background(), sandbox.Config{
		Command: []string{"sh", "-c", "sleep 1000 & sleep 1000"}, Env: sandbox.BaseEnv(), Limits: sandbox.Limits{DiskBytes: 1 << 20},
	})
	if err != nil {
		return err
	}
	fmt.Println(p.Pid())
	_, _ = p.Wait(context.Background())
	return errors.New("the run ended first")
}

// fill writes files below each folder until the disk is full.
func fill(args []string) error {
	total := int64(0)
	chunk := make([]byte, 1<<20)
	for _, dir := range args {
		f, err := os.Create(filepath.Join(dir, "big"))
		if err != nil {
			fmt.Println(dir, "cannot be written:", err)
			continue
		}
		for err == nil {
			var n int
			n, err = f.Write(chunk)
			total += int64(n)
		}
		if !errors.Is(err, unix.ENOSPC) {
			return fmt.Errorf("%s: %w", dir, err)
		}
		f.Close()
	}
	fmt.Println(total)
	return nil
}

// emptyFiles makes empty files until no more can be.
func emptyFiles(args []string) error {
	for i := 0; ; i++ {
		f, err := os.OpenFile(fmt.Sprintf("%s/%d", args[0], i), os.O_CREATE|os.O_WRONLY, 0o600)
		if errors.Is(err, unix.ENOSPC) {
			fmt.Println(i)
			return nil
		}
		if err != nil {
			return err
		}
		f.Close()
	}
}

// touch takes memory, in bytes, shared when told so, and waits.
func touch(args []string) error {
	size, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	kind := unix.MAP_PRIVATE
	if len(args) > 1 {
		kind = unix.MAP_SHARED
	}
	memory, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|kind)
	if err != nil {
		return err
	}
	for i := 0; i < size; i += 4096 {
		memory[i] = 1
	}
	fmt.Println("touched")
	return wait(nil)
}

// family has children touch memory, and waits.
func family(args []string) error {
	for range 4 {
		cmd := exec.Command("/proc/self/exe", append([]string{"helper:touch"}, args...)...)
		if err := cmd.Start(); err != nil {
			return err
		}
	}
	return wait(nil)
}

// reserve reserves address space without using it.
func reserve(args []string) error {
	size, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	_, err = unix.Mmap(-1, 0, size, unix.PROT_NONE, unix.MAP_ANON|unix.MAP_PRIVATE|unix.MAP_NORESERVE)
	return err
}

// openMany opens descriptors until no more can be.
func openMany([]string) error {
	for i := 0; i < 1<<16; i++ {
		if _, err := unix.Open("/dev/null", unix.O_RDONLY, 0); err != nil {
			fmt.Println(i, err)
			return nil
		}
	}
	return errors.New("no end")
}

// processes starts children until no more can be, or as many as it is told, and says how many there were.
func processes(args []string) error {
	most, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	for i := range most {
		if err := exec.Command("sleep", "1000").Start(); err != nil {
			fmt.Println(i, err)
			return nil
		}
	}
	fmt.Println(most)
	return nil
}

// bomb starts processes for ever, and goes on when it cannot.
func bomb([]string) error {
	for {
		if err := exec.Command("sleep", "1000").Start(); err != nil {
			time.Sleep(time.Millisecond)
		}
	}
}

// line reads one line that a helper writes.
func line(r io.Reader) (string, error) {
	text, err := bufio.NewReader(r).ReadString('\n')
	return strings.TrimSpace(text), err
}
