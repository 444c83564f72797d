"""What a hostile training script might try against the platform that runs it. Python's standard library only.

argv[1] is JSON: where things are. Each attack either gets what it wants or ends in an exception; result.json says which. It is
run twice: as a run, where nothing may work, and as a plain child of the test, where most of it must, since an attack that
works nowhere shows nothing.
"""

import ctypes
import errno
import http.client
import json
import mmap
import os
import signal
import socket
import struct
import sys
import time

T = json.loads(sys.argv[1])
INSIDE = "MLFLOW_RUN_ID" in os.environ
OUT = os.environ.get("REDOUBT_OUTPUTS") or T["out"]
SCRATCH = "/scratch" if INSIDE else T["out"]
libc = ctypes.CDLL(None, use_errno=True)
ATTACKS = {}


class Refused(Exception):
    """The attack was answered, with a refusal."""


def attack(name):
    def keep(f):
        ATTACKS[name] = f
        return f
    return keep


def read(path, at_least=1):
    with open(path, "rb") as f:
        b = f.read(4096)
    if len(b) < at_least:
        raise Refused("nothing is there")
    return b


def call(number_or_name, *args):
    f = getattr(libc, number_or_name)
    ctypes.set_errno(0)
    r = f(*args)
    if r == -1 or r == -1 & 0xFFFFFFFF:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return r


def dial(family, address):
    with socket.socket(family, socket.SOCK_STREAM) as s:
        s.settimeout(2)
        s.connect(address)


def in_child(f):
    """Does f in a process of its own, for what cannot be taken back. Its exit code is an errno."""
    pid = os.fork()
    if pid == 0:
        code = 0
        try:
            f()
        except OSError as e:
            code = e.errno or 255
        except BaseException:
            code = 255
        os._exit(code)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code != 0:
        raise Refused("errno %d" % code)


# --- files of the installation -------------------------------------------------------------------------------------------

for what, path in T["folders"].items():
    attack("list " + what)(lambda path=path: os.listdir(path) or _none())
    attack("write into " + what)(lambda path=path: _touch(os.path.join(path, "hostile")))
for what, path in T["files"].items():
    attack("read " + what)(lambda path=path: read(path))
for what, pid in T["pids"].items():
    attack("read a file of the state by the root of " + what)(lambda pid=pid: read("/proc/%d/root%s" % (pid, T["files"]["the seal's key"])))
attack("read a file of the state by the root of process 1")(lambda: read("/proc/1/root" + T["files"]["the seal's key"]))
attack("read a file of the state past the root")(lambda: read("/../../.." + T["files"]["the seal's key"]))


def _none():
    raise Refused("empty")


def _touch(path):
    with open(path, "w") as f:
        f.write("x")
    os.unlink(path)


# --- processes -------------------------------------------------------------------------------------------------------------

for what, pid in T["pids"].items():
    attack("environment of " + what)(lambda pid=pid: read("/proc/%d/environ" % pid))
    attack("command line of " + what)(lambda pid=pid: read("/proc/%d/cmdline" % pid))
    attack("memory map of " + what)(lambda pid=pid: read("/proc/%d/maps" % pid))
    attack("descriptors of " + what)(lambda pid=pid: os.listdir("/proc/%d/fd" % pid) or _none())
    attack("program of " + what)(lambda pid=pid: os.readlink("/proc/%d/exe" % pid))
    attack("memory of " + what)(lambda pid=pid: memory(pid))
    attack("signal to " + what)(lambda pid=pid: os.kill(pid, 0))
    attack("handle on " + what)(lambda pid=pid: os.close(os.pidfd_open(pid)))


def memory(pid):
    with open("/proc/%d/maps" % pid) as f:
        start = int(f.readline().split("-")[0], 16)
    with open("/proc/%d/mem" % pid, "rb", buffering=0) as f:
        f.seek(start)
        if len(f.read(16)) != 16:
            raise Refused("nothing is there")


@attack("find a process that is none of the run's")
def find_foreign():
    # Inside, all that is seen is process 1, which set the sandbox up, and what this script started.
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) not in (1, os.getpid(), os.getppid()):
            try:
                with open("/proc/%s/cmdline" % entry, "rb") as f:
                    if f.read(1):
                        return
            except OSError:
                pass
    raise Refused("none")


@attack("environment of process 1")
def init_environment():
    b = read("/proc/1/environ")
    if INSIDE and not any(word in b for word in (b"TOKEN", b"KEY", b"/root", T["state"].encode())):
        raise Refused("nothing in it")


@attack("a descriptor that was left open")
def descriptors():
    for fd in os.listdir("/proc/self/fd"):
        try:
            to = os.readlink("/proc/self/fd/" + fd)
        except OSError:
            continue
        if int(fd) > 2 and not to.startswith(("/proc/", "/work/attack.py")):
            return
    raise Refused("none")


@attack("trace a process")
def trace():
    def body():
        libc.ptrace.argtypes = [ctypes.c_long] * 4
        call("ptrace", 16, T["pids"]["a bystander"], 0, 0)  # PTRACE_ATTACH
        os.waitpid(T["pids"]["a bystander"], 0x40000000)
        call("ptrace", 17, T["pids"]["a bystander"], 0, 0)  # PTRACE_DETACH
    in_child(body)


@attack("read another process's memory by a system call")
def peek():
    pid = T["pids"]["a bystander"]
    with open("/proc/%d/maps" % pid) as f:
        start = int(f.readline().split("-")[0], 16)
    buf = ctypes.create_string_buffer(8)
    local = struct.pack("PN", ctypes.addressof(buf), 8)
    remote = struct.pack("PN", start, 8)
    call("process_vm_readv", pid, local, ctypes.c_ulong(1), remote, ctypes.c_ulong(1), ctypes.c_ulong(0))


@attack("kill a process that is not the run's")
def kill():
    os.kill(T["pids"]["a victim"], signal.SIGKILL)
    for _ in range(200):
        try:
            with open("/proc/%d/stat" % T["pids"]["a victim"]) as f:
                if f.read().rsplit(")", 1)[1].split()[0] == "Z":
                    return
        except OSError:
            return
        time.sleep(0.01)
    raise Refused("it lives")


# --- the kernel ------------------------------------------------------------------------------------------------------------

@attack("join the network of another run")
def join_network():
    def body():
        fd = os.open("/proc/%d/ns/net" % T["pids"]["another run"], os.O_RDONLY)
        call("setns", fd, 0x40000000)
        dial(socket.AF_INET, ("127.0.0.1", T["endpoint"]))
    in_child(body)


@attack("mount")
def mount():
    in_child(lambda: (call("unshare", 0x00020000), call("mount", b"x", b"/tmp", b"tmpfs", ctypes.c_ulong(0), None)))


attack("namespaces of one's own")(lambda: in_child(lambda: call("unshare", 0x10000000 | 0x00020000)))
attack("another root")(lambda: in_child(lambda: os.chroot("/tmp")))
attack("become root")(lambda: in_child(lambda: os.setresuid(0, 0, 0)))
attack("the machine's passwords")(lambda: read("/etc/shadow"))
attack("the kernel's settings")(lambda: os.close(os.open("/proc/sys/kernel/core_pattern", os.O_WRONLY)))
attack("the kernel's log")(lambda: os.close(os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)))
attack("control groups")(lambda: os.listdir("/sys/fs/cgroup") or _none())
attack("raw packets")(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close())
attack("higher priority")(lambda: in_child(lambda: os.nice(-5)))
attack("a device")(lambda: in_child(lambda: os.mknod(os.path.join(SCRATCH, "disk"), 0o060600, os.makedev(8, 0))))


# --- sockets and the network -------------------------------------------------------------------------------------------------

for what, path in T["sockets"].items():
    attack("connect to " + what)(lambda path=path: dial(socket.AF_UNIX, "\0" + path[1:] if path[0] == "@" else path))
for what, port in T["ports"].items():
    attack("connect to the port of " + what)(lambda port=port: dial(socket.AF_INET, ("127.0.0.1", port)))

for what, (host, port) in T.get("hosts", {}).items():
    attack("connect to " + what)(lambda host=host, port=port: dial(socket.AF_INET, (host, port)))


@attack("a route to the network")
def route():
    # Connecting a datagram socket sends nothing: it only asks whether there is a way.
    for family, address in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with socket.socket(family, socket.SOCK_DGRAM) as s:
            try:
                s.connect((address, 9))
                return
            except OSError as e:
                if e.errno not in (errno.ENETUNREACH, errno.EADDRNOTAVAIL):
                    raise
    raise Refused("no route")


@attack("a connection to the network")
def connect_out():
    if not INSIDE:
        return route()
    with socket.socket() as s:
        s.settimeout(5)
        began = time.monotonic()
        try:
            s.connect(("192.0.2.1", 80))
        except OSError as e:
            if e.errno == errno.ENETUNREACH and time.monotonic() - began < 1:
                raise Refused("no route")
            return  # a timeout: there is a way out


# --- the run's own endpoint --------------------------------------------------------------------------------------------------

def metric(run, **more):
    return json.dumps(dict({"run_id": run, "key": "hostile", "value": 1.0, "timestamp": 0, "step": 0}, **more)).encode()


def post(body, path="/api/2.0/mlflow/runs/log-metric", method="POST", headers=None):
    c = http.client.HTTPConnection("127.0.0.1", T["endpoint"], timeout=20)
    try:
        c.request(method, path, body, headers or {})
        r = c.getresponse()
        r.read()
        if r.status == 200:
            return
        raise Refused("HTTP %d" % r.status)
    finally:
        c.close()


def raw(*parts):
    """Sends bytes as they are. Anything but a success is a refusal."""
    with socket.socket() as s:
        s.settimeout(20)
        s.connect(("127.0.0.1", T["endpoint"]))
        try:
            for p in parts:
                s.sendall(p)
        except (BrokenPipeError, ConnectionResetError):
            pass
        try:
            answer = s.recv(4096)
        except ConnectionResetError:
            answer = b""
    if b" 200 " not in answer.split(b"\r\n")[0]:
        raise Refused(answer.split(b"\r\n")[0].decode("latin-1") or "closed")


if INSIDE:
    OWN = os.environ["MLFLOW_RUN_ID"]
    HEAD = b"POST /api/2.0/mlflow/runs/log-metric HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n" % T["endpoint"]
    BODY = metric(OWN)
    attack("endpoint: another run's id")(lambda: post(metric(T["other_run"])))
    attack("endpoint: two ids")(lambda: post(metric(OWN, run_uuid=T["other_run"])))
    attack("endpoint: no id")(lambda: post(metric("")))
    attack("endpoint: another run's name as an id")(lambda: post(metric(T["other_run_name"])))
    attack("endpoint: another host")(lambda: post(metric(OWN), headers={"Host": "gateway"}))
    attack("endpoint: a body too large")(lambda: post(metric(OWN, note="x" * (2 << 20))))
    attack("endpoint: headers too large")(lambda: post(metric(OWN), headers={"X-Long": "x" * (64 << 10)}))
    attack("endpoint: not HTTP")(lambda: raw(b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n"))
    attack("endpoint: two lengths")(lambda: raw(HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef"))
    attack("endpoint: a negative length")(lambda: raw(HEAD + b"Content-Length: -1\r\n\r\n"))
    attack("endpoint: length and chunks that differ")(lambda: raw(HEAD + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n"))
    attack("endpoint: an endless body")(lambda: raw(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *([b"10000\r\n" + b" " * 65536 + b"\r\n"] * 40)))
    attack("endpoint: a proxy's request")(lambda: raw(b"GET http://169.254.169.254/ HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n"))
    attack("endpoint: a tunnel")(lambda: raw(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" % T["ports"]["gateway"]))
    attack("endpoint: a path above")(lambda: post(metric(OWN), path="/api/2.0/mlflow/runs/../../../../etc/passwd"))
    attack("endpoint: files")(lambda: post(None, path="/", method="GET"))
    attack("endpoint: another method of MLflow")(lambda: post(b'{"run_id": "%s"}' % OWN.encode(), path="/api/2.0/mlflow/runs/delete"))
    attack("endpoint: deep JSON")(lambda: post(b"[" * 200000))
    attack("endpoint: a key with a zero byte")(lambda: post(metric(OWN, key="a\0b")))
    attack("endpoint: a key too long")(lambda: post(metric(OWN, key="k" * 251)))
    attack("endpoint: a value that is no number")(lambda: post(metric(OWN, value={"a": 1})))


# --- limits ------------------------------------------------------------------------------------------------------------------

@attack("more processes than allowed")
def fork_bomb():
    children = []
    try:
        for _ in range(T["processes"] + 50):
            pid = os.fork()
            if pid == 0:
                signal.pause()
                os._exit(0)
            children.append(pid)
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


@attack("more disk than allowed")
def disk():
    path = os.path.join(SCRATCH, "filler")
    try:
        with open(path, "wb", buffering=0) as f:
            for _ in range(T["disk_mib"] + 16):
                if f.write(b"x" * (1 << 20)) != 1 << 20:
                    raise Refused("full")
    except OSError as e:
        raise Refused("full") if e.errno == errno.ENOSPC else e
    finally:
        if os.path.exists(path):
            os.unlink(path)


attack("more address space than allowed")(lambda: mmap.mmap(-1, T["address_mib"] << 20).close())


@attack("more open files than allowed")
def open_files():
    files = []
    try:
        for _ in range(4096):
            files.append(os.open("/dev/null", os.O_RDONLY))
    finally:
        for f in files:
            os.close(f)


# --- outputs -----------------------------------------------------------------------------------------------------------------

def hostile_outputs():
    """Leaves what an upload should not follow. The test looks at what became of it."""
    made = []

    def make(name, f):
        try:
            f()
            made.append(name)
        except OSError as e:
            print("could not make", ascii(name), e)

    def file(name):
        with open(os.path.join(os.fsencode(OUT), name), "wb") as f:
            f.write(b"hostile")
    os.makedirs(OUT + "/deep/" + "/".join("d%d" % i for i in range(80)))
    make("a link to passwords", lambda: os.symlink("/etc/passwd", OUT + "/passwd"))
    make("a link to the seal", lambda: os.symlink(T["files"]["the seal's key"], OUT + "/seal"))
    make("a link upwards", lambda: os.symlink("../../../../../etc", OUT + "/etc"))
    make("a link to all", lambda: os.symlink("/", OUT + "/root"))
    make("a link to memory", lambda: os.symlink("/proc/self/mem", OUT + "/mem"))
    make("a pipe", lambda: os.mkfifo(OUT + "/pipe"))
    make("a socket", lambda: socket.socket(socket.AF_UNIX).bind(OUT + "/socket"))
    for name in (b"new\nline", b"back\\slash", b"esc\x1b[31m", b"not\xffutf8", b"del\x7f", b"..\\..\\evil", "nfd-e\u0301".encode()):
        make(ascii(name), lambda name=name: file(name))
    make("a locked file", lambda: (file(b"locked"), os.chmod(OUT + "/locked", 0)))
    make("a plain file", lambda: file(b"plain"))
    return made


def main():
    began = time.monotonic()
    seen = [int(p) for p in os.listdir("/proc") if p.isdigit()]
    results = {}
    for name, f in ATTACKS.items():
        print("%.1f s: %s" % (time.monotonic() - began, name), flush=True)
        try:
            f()
            results[name] = {"result": "OK"}
        except (Refused, OSError, ValueError, MemoryError, http.client.HTTPException) as e:
            results[name] = {"result": "BLOCKED", "why": "%s: %s" % (type(e).__name__, e)}
    made = hostile_outputs() if INSIDE else []
    if INSIDE:
        post(metric(OWN, key="still-alive"))  # the endpoint works after all that
    with open(os.path.join(OUT, "result.json"), "w") as f:
        json.dump({"attacks": results, "outputs": made, "environment": dict(os.environ), "highest_pid": max(seen), "user": os.getuid()}, f)
    if INSIDE:
        block = b"x" * (1 << 20)
        for _ in range(100):
            os.write(1, block)


main()
