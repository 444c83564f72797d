"""The scoring host of a replica: a parent that runs no code of the user's, and workers that do.

It needs Python 3.9 or later and nothing beside the standard library. The agent starts it in the run's sandbox.

The parent forks the workers and watches them. A worker imports the entry script, calls init() once, dials the run's endpoint, asks
for an upgrade, and from then on answers one HTTP request after the other on that connection. What it is doing stands in memory that it
shares with the parent, so a worker that hangs needs to do nothing to be found: past its deadline it is killed and started again. One
that dies is started again too, slower each time. When init() has failed three times and nothing serves, the host ends and says why.

SIGTERM drains: an idle worker ends at once, a busy one after its answer.
"""

import atexit
import gc
import importlib.util
import json
import mmap
import os
import select
import signal
import socket
import struct
import sys
import time
import traceback

MAX_HEAD = 64 << 10  # bytes of a request line with headers
KILL_GRACE = 0.5  # seconds past its deadline, for a worker that is almost done
INIT_TRIES = 3
FIRST_DELAY, LONGEST_DELAY, STEADY = 0.1, 10.0, 30.0  # seconds: before a restart, and after how long a life counts as good
EXIT_INIT = 3  # of a worker whose init() failed, and of a host that gave up for that
EXIT_SPENT = 4  # of a worker that shall be replaced by a fresh one
MAX_ERROR = 1024  # characters of an exception that a client is told

STARTING, READY = 1, 2


class Settings:
    """What the agent says by the environment."""

    def __init__(self, env):
        self.script = env.get("AZUREML_ENTRY_SCRIPT", "score.py")
        self.workers = int(env.get("REDOUBT_WORKERS", "1"))
        host, _, port = env["REDOUBT_SERVE_ADDRESS"].rpartition(":")
        self.address = (host, int(port))
        self.request_timeout = int(env.get("REDOUBT_REQUEST_TIMEOUT_MS", "30000")) / 1000
        self.start_timeout = int(env.get("REDOUBT_START_TIMEOUT_MS", "60000")) / 1000
        self.max_body = int(env.get("REDOUBT_MAX_BODY_BYTES", str(10 << 20)))
        # The user's own wish: a worker that leaks is replaced after so many answers. 0: never.
        try:
            self.max_requests = max(0, int(env.get("WORKER_MAX_REQUESTS", "0")))
        except ValueError:
            raise Unusable("WORKER_MAX_REQUESTS is not a number") from None


class Unusable(Exception):
    """The entry script cannot serve; the text says why."""


class Board:
    """What workers say of themselves, in shared memory: a slot for each."""

    SIZE = 2048
    TEXT = 32

    def __init__(self, slots):
        self.memory = mmap.mmap(-1, slots * self.SIZE)

    def clear(self, slot):
        start = slot * self.SIZE
        self.memory[start : start + self.SIZE] = bytes(self.SIZE)
        self.set_state(slot, STARTING)

    def set_deadline(self, slot, when):
        struct.pack_into("d", self.memory, slot * self.SIZE, when)

    def deadline(self, slot):
        return struct.unpack_from("d", self.memory, slot * self.SIZE)[0]

    def set_state(self, slot, state):
        struct.pack_into("q", self.memory, slot * self.SIZE + 8, state)

    def state(self, slot):
        return struct.unpack_from("q", self.memory, slot * self.SIZE + 8)[0]

    def set_text(self, slot, text):
        data = text.encode("utf-8", "replace")[: self.SIZE - self.TEXT]
        start = slot * self.SIZE
        self.memory[start + self.TEXT : start + self.TEXT + len(data)] = data
        struct.pack_into("q", self.memory, start + 24, len(data))

    def text(self, slot):
        start = slot * self.SIZE
        length = struct.unpack_from("q", self.memory, start + 24)[0]
        length = min(max(length, 0), self.SIZE - self.TEXT)
        return self.memory[start + self.TEXT : start + self.TEXT + length].decode("utf-8", "replace")


def say(text):
    """Writes a line of the host's own into the log."""
    try:
        sys.stderr.write("redoubt: " + text + "\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        pass


def describe(error):
    """An exception in a line, as a client and the state of the replica show it."""
    text = type(error).__name__
    try:
        if str(error):
            text += ": " + str(error)
    except Exception:  # noqa: BLE001 - __str__ is the user's
        pass
    return text[:MAX_ERROR]


# --- the parent


class Slot:
    """A worker's place, as the parent knows it."""

    def __init__(self, number):
        self.number = number
        self.pid = 0
        self.started = 0.0
        self.next_start = 0.0
        self.delay = 0.0
        self.failures = 0  # of init(), one after the other
        self.killed = ""  # why the parent killed it


class Supervisor:
    def __init__(self, settings):
        self.settings = settings
        self.board = Board(settings.workers)
        self.slots = [Slot(n) for n in range(settings.workers)]
        self.draining = False
        self.failed = ""
        self.wake_r, self.wake_w = os.pipe()
        for fd in (self.wake_r, self.wake_w):
            os.set_blocking(fd, False)

    def run(self):
        signal.set_wakeup_fd(self.wake_w, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.drain)
        while True:
            self.reap()
            now = time.monotonic()
            if self.failed:
                self.kill_all()
                say(self.failed)
                last_words(self.settings.address, self.failed)
                return EXIT_INIT
            if self.draining and not any(s.pid for s in self.slots):
                return 0
            for slot in self.slots:
                if slot.pid:
                    self.watch(slot, now)
                elif not self.draining and now >= slot.next_start:
                    self.start(slot)
            ready, _, _ = select.select([self.wake_r], [], [], 0.1)
            if ready:
                try:
                    os.read(self.wake_r, 4096)
                except BlockingIOError:
                    pass

    def drain(self, *_):
        self.draining = True
        for slot in self.slots:
            if slot.pid:
                send(os.kill, slot.pid, signal.SIGTERM)

    def start(self, slot):
        self.board.clear(slot.number)
        slot.started, slot.killed = time.monotonic(), ""
        # A signal between the fork and the worker's own handlers would reach the parent's in the wrong process.
        held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD})
        try:
            slot.pid = os.fork()
        except OSError as e:
            say("worker %d could not be started: %s" % (slot.number, e.strerror))
            slot.next_start = time.monotonic() + 1
            signal.pthread_sigmask(signal.SIG_SETMASK, held)
            return
        if slot.pid == 0:
            code = 1
            try:
                code = self.become(slot.number, held)
            except BaseException:  # noqa: BLE001 - nothing may reach the parent's frames
                traceback.print_exc()
            os._exit(code)
        signal.pthread_sigmask(signal.SIG_SETMASK, held)

    def become(self, number, held):
        """Runs in the fork: from here on it is a worker."""
        signal.set_wakeup_fd(-1)
        os.close(self.wake_r)
        os.close(self.wake_w)
        send(os.setpgid, 0, 0)
        worker = Worker(self.settings, self.board, number)
        signal.signal(signal.SIGTERM, worker.drain)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
        code = worker.run()
        try:
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        except Exception:  # noqa: BLE001 - the user's, and nobody is left to tell
            pass
        return code

    def watch(self, slot, now):
        if slot.killed:
            return
        deadline = self.board.deadline(slot.number)
        if self.board.state(slot.number) == STARTING:
            if now - slot.started > self.settings.start_timeout:
                self.kill(slot, "init() took longer than %g s" % self.settings.start_timeout)
        elif deadline and now > deadline + KILL_GRACE:
            self.kill(slot, "run() took longer than it may")

    def kill(self, slot, why):
        slot.killed = why
        send(os.killpg, slot.pid, signal.SIGKILL)
        send(os.kill, slot.pid, signal.SIGKILL)

    def kill_all(self):
        for slot in self.slots:
            if slot.pid:
                self.kill(slot, "the host ends")

    def reap(self):
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for slot in self.slots:
                if slot.pid == pid:
                    send(os.killpg, pid, signal.SIGKILL)  # what it has started ends with it
                    slot.pid = 0
                    self.ended(slot, status)

    def ended(self, slot, status):
        now = time.monotonic()
        code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)
        if self.draining:
            return
        if self.board.state(slot.number) == STARTING:
            self.init_failed(slot, code, now)
            return
        slot.failures = 0
        if code == EXIT_SPENT or slot.killed:
            if slot.killed:
                say("worker %d was ended: %s" % (slot.number, slot.killed))
            slot.delay, slot.next_start = 0.0, now
            return
        if now - slot.started > STEADY:
            slot.delay = 0.0
        slot.delay = min(max(2 * slot.delay, FIRST_DELAY), LONGEST_DELAY)
        slot.next_start = now + slot.delay
        say("worker %d %s; it is started again in %g s" % (slot.number, how(code), slot.delay))

    def init_failed(self, slot, code, now):
        slot.failures += 1
        why = slot.killed or self.board.text(slot.number) or "init() did not come to its end: the worker " + how(code)
        say("worker %d, try %d: %s" % (slot.number, slot.failures, why))
        serving = any(s.pid and self.board.state(s.number) == READY for s in self.slots)
        if slot.failures >= INIT_TRIES and not serving:
            self.failed = "the model could not be started in %d tries: %s" % (slot.failures, why)
            return
        slot.delay = min(max(2 * slot.delay, FIRST_DELAY), LONGEST_DELAY)
        slot.next_start = now + slot.delay


def send(call, *args):
    """Calls what may find that the process has gone."""
    try:
        call(*args)
    except OSError:
        pass


def how(code):
    if code >= 0:
        return "ended with exit code %d" % code
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = "a signal"
    return "was ended by signal %d (%s)" % (-code, name)


def last_words(address, text):
    """Tells the agent why the host gives up, so that the state of the replica says it."""
    body = json.dumps({"message": text}).encode()
    try:
        with socket.create_connection(address, timeout=5) as s:
            head = "POST /redoubt/host HTTP/1.1\r\nHost: %s:%d\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
            s.sendall((head % (address[0], address[1], len(body))).encode() + body)
            while s.recv(4096):
                pass
    except OSError:
        pass  # the log has it


# --- the worker


class Drained(BaseException):
    """The worker is to end, and has nothing to answer."""


class Worker:
    def __init__(self, settings, board, number):
        self.settings = settings
        self.board = board
        self.number = number
        self.draining = False
        self.starting = True
        self.connecting = False
        self.idle = None  # the connection, while it waits for a request

    def drain(self, *_):
        self.draining = True
        if self.starting:
            os._exit(0)
        if self.connecting:
            raise Drained
        if self.idle is not None:
            # A request that has arrived is still read and answered; after it comes the end.
            send(self.idle.shutdown, socket.SHUT_RD)

    def run(self):
        try:
            script = Script(self.settings.script)
            script.start()
        except BaseException as e:  # noqa: BLE001 - whatever the user's code raises
            self.board.set_text(self.number, str(e) if isinstance(e, Unusable) else "init() failed: " + describe(e))
            if not isinstance(e, Unusable):
                traceback.print_exception(type(e), e, e.__traceback__)
            return EXIT_INIT
        gc.collect()
        gc.freeze()  # what init() has made stays; there is no use in looking at it again and again
        self.starting = False
        self.board.set_state(self.number, READY)
        served = 0
        try:
            while not self.draining:
                connection = self.connect()
                while not self.draining:
                    request = self.receive(connection)
                    if request is None:
                        break
                    keep = self.answer(script, connection, request)
                    served += 1
                    if script.spent or 0 < self.settings.max_requests <= served:
                        connection.close()
                        return EXIT_SPENT
                    if not keep:
                        break
                connection.close()
        except Drained:
            pass
        return 0

    def connect(self):
        """Dials until it is connected with inference."""
        delay = 0.05
        self.connecting = True
        while True:
            if self.draining:
                raise Drained
            s = None
            try:
                s = socket.create_connection(self.settings.address, timeout=10)
                s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                s.sendall(
                    b"GET /redoubt/worker HTTP/1.1\r\nHost: %s:%d\r\nConnection: Upgrade\r\nUpgrade: redoubt-worker/1\r\nX-Redoubt-Worker: %d\r\n\r\n"
                    % (self.settings.address[0].encode(), self.settings.address[1], self.number)
                )
                s.settimeout(60)
                connection = Connection(s, self.settings.max_body)
                head = connection.head()
                if head is not None and head.startswith(b"HTTP/1.1 101 "):
                    s.settimeout(None)
                    self.connecting = False
                    return connection
                s.close()
            except (OSError, Malformed):
                if s is not None:
                    s.close()
            time.sleep(delay)
            delay = min(2 * delay, 2.0)

    def receive(self, connection):
        self.idle = connection.socket
        try:
            if self.draining or not connection.wait():
                return None
            self.idle = None
            return connection.request()
        except Malformed as e:
            self.reply(connection, e.status, JSON, problem(str(e)), close=True)
            return None
        except OSError:
            return None
        finally:
            self.idle = None

    def answer(self, script, connection, request):
        """Answers one request, and says whether the connection is good for another."""
        timeout = self.settings.request_timeout
        given = request.headers.get("x-redoubt-deadline-ms", "")
        if given.isdigit():
            timeout = min(timeout, int(given) / 1000)
        self.board.set_deadline(self.number, time.monotonic() + timeout)
        try:
            path, _, query = request.target.partition("?")
            if path == "/score" and request.method == "POST":
                return self.score(script, connection, request)
            if path == "/swagger.json" and request.method == "GET":
                return self.reply(connection, 200, JSON, script.swagger("version=3" in query.split("&")))
            if path == "/" and request.method == "GET":
                return self.reply(connection, 200, "text/plain; charset=utf-8", b"Healthy")
            return self.reply(connection, 404, JSON, problem("a worker has POST /score, GET /swagger.json and GET /"))
        except OSError:
            return False  # the other side has gone
        finally:
            self.board.set_deadline(self.number, 0.0)

    def score(self, script, connection, request):
        try:
            data = script.input(request)
        except UnicodeDecodeError:
            return self.reply(connection, 400, JSON, problem("the body is said to be text, and is not UTF-8"))
        name = request.headers.get("x-request-id", "")
        try:
            result = script.call(request, data)
            first = None
            if hasattr(result, "__next__"):
                first = next(result, END)
        except BaseException as e:  # noqa: BLE001 - whatever the user's code raises
            return self.raised(script, connection, e, name)
        if first is not None:
            return self.stream(connection, result, first, name)
        try:
            status, headers, body = output(result)
        except Exception as e:  # noqa: BLE001 - also of the user's __str__, tolist and the like
            say("request %s: what run() returned cannot be sent: %s" % (name, describe(e)))
            return self.reply(connection, 500, JSON, problem("what run() returned cannot be sent: " + describe(e)), [("X-Redoubt-Model-Error", "unserializable")])
        return self.reply(connection, status, None, body, headers)

    def raised(self, script, connection, e, name):
        if isinstance(e, MemoryError):
            script.spent = True  # what it holds may never be free again
        say("request %s: run() raised %s" % (name, describe(e)))
        trace = e.__traceback__
        while trace is not None and trace.tb_frame.f_globals is globals():
            trace = trace.tb_next
        traceback.print_exception(type(e), e, trace or e.__traceback__)
        return self.reply(connection, 500, JSON, problem(describe(e)), [("X-Redoubt-Model-Error", "raised")])

    def stream(self, connection, chunks, first, name):
        """Sends what a generator yields, piece by piece. An error in the middle breaks the connection: the answer has no good end."""
        kind = "application/octet-stream"
        if isinstance(first, str):
            kind = "text/plain; charset=utf-8"
        elif first is not END and not isinstance(first, (bytes, bytearray, memoryview)):
            kind = "application/x-ndjson"
        try:
            data = b"" if first is END else piece(first)
        except Exception as e:  # noqa: BLE001
            say("request %s: what run() yielded cannot be sent: %s" % (name, describe(e)))
            return self.reply(connection, 500, JSON, problem("what run() yielded cannot be sent: " + describe(e)), [("X-Redoubt-Model-Error", "unserializable")])
        connection.socket.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: " + kind.encode() + b"\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(data))
        try:
            for item in chunks:
                data = chunk(piece(item))
                if data:
                    connection.socket.sendall(data)
        except OSError:
            raise
        except BaseException as e:  # noqa: BLE001 - whatever the user's code raises
            say("request %s: run() raised %s in the middle of its answer" % (name, describe(e)))
            traceback.print_exception(type(e), e, e.__traceback__)
            return False
        finally:
            close = getattr(chunks, "close", None)
            if callable(close):
                try:
                    close()
                except BaseException:  # noqa: BLE001
                    traceback.print_exc()
        connection.socket.sendall(b"0\r\n\r\n")
        return True

    def reply(self, connection, status, kind, body, headers=(), close=False):
        head = ["HTTP/1.1 %d %s" % (status, REASONS.get(status, "Status"))]
        if kind is not None:
            head.append("Content-Type: " + kind)
        for key, value in headers:
            head.append(key + ": " + value)
        if close:
            head.append("Connection: close")
        if status >= 200 and status not in (204, 304):
            head.append("Content-Length: %d" % len(body))
        else:
            body = b""
        raw = ("\r\n".join(head) + "\r\n\r\n").encode("latin-1", "replace")
        if len(body) < 64 << 10:
            connection.socket.sendall(raw + body)
        else:
            connection.socket.sendall(raw)
            connection.socket.sendall(body)
        return not close


# --- HTTP


JSON = "application/json"
END = object()
REASONS = {200: "OK", 201: "Created", 202: "Accepted", 204: "No Content", 400: "Bad Request", 404: "Not Found", 413: "Content Too Large", 431: "Request Header Fields Too Large", 500: "Internal Server Error"}
# What a raw answer may not set: it belongs to the connection.
CONNECTION_HEADERS = {"connection", "content-length", "transfer-encoding", "upgrade", "keep-alive", "te", "trailer", "proxy-connection"}


class Malformed(Exception):
    def __init__(self, status, text):
        super().__init__(text)
        self.status = status


class Request:
    """A request, as run() of a raw script gets it."""

    __slots__ = ("method", "target", "headers", "body")

    def __init__(self, method, target, headers, body):
        self.method, self.target, self.headers, self.body = method, target, headers, body

    @property
    def path(self):
        return self.target.partition("?")[0]

    @property
    def json(self):
        return json.loads(self.body)

    def get_data(self, as_text=False):
        return self.body.decode() if as_text else self.body


class Connection:
    """Reads one request after the other from a socket. What it reads was written by inference: strict, with a length."""

    def __init__(self, s, max_body):
        self.socket = s
        self.max_body = max_body
        self.data = bytearray()

    def close(self):
        self.socket.close()

    def wait(self):
        """Waits for the first bytes of a request; False when the other side is done."""
        if not self.data:
            self.data += self.socket.recv(64 << 10)
        return bool(self.data)

    def head(self):
        start = 0
        while True:
            end = self.data.find(b"\r\n\r\n", start)
            if 0 <= end <= MAX_HEAD:
                head = bytes(self.data[:end])
                del self.data[: end + 4]
                return head
            if len(self.data) > MAX_HEAD:
                raise Malformed(431, "the headers are longer than 64 KiB")
            start = max(0, len(self.data) - 3)
            more = self.socket.recv(64 << 10)
            if not more:
                return None
            self.data += more

    def request(self):
        head = self.head()
        if head is None:
            return None
        lines = head.decode("latin-1").split("\r\n")
        first = lines[0].split(" ")
        if len(first) != 3 or first[2] != "HTTP/1.1":
            raise Malformed(400, "not a request line of HTTP/1.1")
        headers = {}
        for line in lines[1:]:
            key, colon, value = line.partition(":")
            key = key.lower()
            if not colon or not key or key != key.strip() or key in headers and key in ("content-length", "content-type"):
                raise Malformed(400, "a header is malformed or stands twice")
            headers[key] = value.strip(" \t")
        if "transfer-encoding" in headers:
            raise Malformed(400, "a request to a worker has a length")
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()):
            raise Malformed(400, "the length of the body is not a number")
        length = int(length)
        if length > self.max_body:
            raise Malformed(413, "the body has %d bytes, and may have %d" % (length, self.max_body))
        body = self.body(length)
        return None if body is None else Request(first[0], first[1], headers, body)

    def body(self, length):
        have = len(self.data)
        if have >= length:
            body = bytes(self.data[:length])
            del self.data[:length]
            return body
        whole = bytearray(length)
        whole[:have] = self.data
        self.data.clear()
        with memoryview(whole) as view:
            while have < length:
                n = self.socket.recv_into(view[have:])
                if n == 0:
                    return None
                have += n
        return bytes(whole)


def chunk(data):
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


def problem(text):
    return json.dumps({"error": text}).encode()


# --- what run() takes and gives


def simpler(value):
    """Turns what JSON does not know, such as an array or a table, into what it does."""
    for name in ("tolist", "to_dict"):
        convert = getattr(value, name, None)
        if callable(convert):
            return convert()
    raise TypeError("JSON has no %s; return lists, dicts, numbers, text, true, false or None" % type(value).__name__)


ENCODE = json.JSONEncoder(allow_nan=False, separators=(",", ":"), ensure_ascii=False, default=simpler).encode


def encode(value):
    try:
        return ENCODE(value).encode()
    except ValueError as e:
        if "Out of range" in str(e):
            raise ValueError("JSON has no NaN and no infinity; replace them") from None
        raise


def piece(item):
    """One part of a streamed answer: bytes and text as they are, all else as a line of JSON."""
    if isinstance(item, (bytes, bytearray, memoryview)):
        return bytes(item)
    if isinstance(item, str):
        return item.encode()
    return encode(item) + b"\n"


def output(result):
    """Gives status, headers and body of the answer."""
    if isinstance(result, (bytes, bytearray, memoryview)):
        return 200, [("Content-Type", "application/octet-stream")], bytes(result)
    if isinstance(result, str):
        kind = JSON if result.lstrip()[:1] in ("{", "[") else "text/plain; charset=utf-8"
        return 200, [("Content-Type", kind)], result.encode()
    if hasattr(result, "status_code") and hasattr(result, "headers"):
        return raw(result)
    return 200, [("Content-Type", JSON)], encode(result)


def raw(result):
    """An answer that says its own status and headers."""
    status = int(result.status_code)
    if not 200 <= status <= 599:
        raise ValueError("the status code of an answer is 200 to 599")
    body = result.body if hasattr(result, "body") else result.get_data()
    kind = "application/octet-stream"
    if isinstance(body, str):
        kind, body = "text/plain; charset=utf-8", body.encode()
    elif body is None:
        body = b""
    elif not isinstance(body, (bytes, bytearray, memoryview)):
        kind, body = JSON, encode(body)
    pairs = result.headers or ()
    headers, typed = [], False
    for key, value in pairs.items() if hasattr(pairs, "items") else pairs:
        key, value = str(key), str(value)
        if not key or not all(c.isalnum() and c.isascii() or c in "-_" for c in key) or any(c in value for c in "\r\n\0"):
            raise ValueError("a header of the answer is malformed")
        if key.lower() in CONNECTION_HEADERS or key.lower().startswith("x-redoubt-"):
            continue
        typed = typed or key.lower() == "content-type"
        headers.append((key, value))
    if not typed:
        headers.append(("Content-Type", kind))
    return status, headers, bytes(body)


class Script:
    """The entry script."""

    def __init__(self, path):
        self.path = path
        self.run = None
        self.raw = self.wants_headers = False
        self.spent = False  # the worker is to be replaced
        self.docs = {}

    def start(self):
        path = os.path.abspath(self.path)
        if not os.path.isfile(path):
            raise Unusable("there is no entry script %s in the snapshot" % self.path)
        name = os.path.splitext(os.path.basename(path))[0]
        sys.path[0:1] = [os.path.dirname(path), os.getcwd()]  # in place of the host's own folder
        offer_azureml()
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise Unusable("the entry script %s is not a Python file" % self.path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        self.run = getattr(module, "run", None)
        if not callable(self.run):
            raise Unusable("the entry script %s has no function run(raw_data)" % self.path)
        self.raw = bool(getattr(self.run, "rawhttp", False))
        try:
            self.wants_headers = "request_headers" in self.run.__code__.co_varnames[: self.run.__code__.co_argcount]
        except AttributeError:
            pass  # not a plain function
        init = getattr(module, "init", None)
        if callable(init):
            init()

    def input(self, request):
        if self.raw:
            return request
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        # Clients that say nothing, or what their library says by itself, send JSON.
        if kind in ("", JSON, "application/x-www-form-urlencoded") or kind.startswith("text/") or kind.endswith("+json"):
            return request.body.decode()
        return request.body

    def call(self, request, data):
        if self.wants_headers:
            return self.run(data, request_headers=dict(request.headers))
        return self.run(data)

    def swagger(self, three):
        if three not in self.docs:
            self.docs[three] = encode(swagger(self.run, three))
        return self.docs[three]


# --- the document of the interface


def schema(sample):
    """The form of a sample, as OpenAPI describes it."""
    if isinstance(sample, bool):
        return {"type": "boolean"}
    if isinstance(sample, int):
        return {"type": "integer", "format": "int64"}
    if isinstance(sample, float):
        return {"type": "number", "format": "double"}
    if isinstance(sample, str):
        return {"type": "string"}
    if isinstance(sample, (list, tuple)):
        return {"type": "array", "items": schema(sample[0]) if sample else {}}
    if isinstance(sample, dict):
        return {"type": "object", "properties": {str(k): schema(v) for k, v in sample.items()}}
    return {}


def swagger(run, three):
    """OpenAPI 2, or 3.0.3, of the functions that a worker serves. Samples are attributes of run: input_sample, output_sample."""

    def form(name):
        sample = getattr(run, name, None)
        if sample is None:
            return {}
        sample = json.loads(encode(sample))
        return dict(schema(sample), example=sample)

    doc = (getattr(run, "__doc__", None) or "").strip()
    operation = {"operationId": "RunMLService", "summary": doc.partition("\n")[0] or "Runs the model", "description": doc}
    health = {"operationId": "ServiceHealthCheck", "summary": "Says whether the service is healthy"}
    info = {"title": "Scoring service", "description": doc, "version": "1.0"}
    if three:
        content = lambda name: {JSON: {"schema": form(name)}}  # noqa: E731
        operation["requestBody"] = {"required": True, "content": content("input_sample")}
        operation["responses"] = {"200": {"description": "The answer", "content": content("output_sample")}, "default": {"description": "An error"}}
        health["responses"] = {"200": {"description": "Healthy", "content": {"text/plain": {"schema": {"type": "string"}}}}}
        return {
            "openapi": "3.0.3", "info": info, "security": [{"Bearer": []}],
            "components": {"securitySchemes": {"Bearer": {"type": "http", "scheme": "bearer"}}},
            "paths": {"/": {"get": health}, "/score": {"post": operation}},
        }
    operation.update(
        consumes=[JSON], produces=[JSON],
        parameters=[{"name": "serviceInputPayload", "in": "body", "required": True, "schema": form("input_sample")}],
        responses={"200": {"description": "The answer", "schema": form("output_sample")}, "default": {"description": "An error"}},
    )
    health.update(produces=["text/plain"], responses={"200": {"description": "Healthy", "schema": {"type": "string"}}})
    return {
        "swagger": "2.0", "info": info, "schemes": ["https"], "security": [{"Bearer": []}],
        "securityDefinitions": {"Bearer": {"type": "apiKey", "name": "Authorization", "in": "header"}},
        "paths": {"/": {"get": health}, "/score": {"post": operation}},
    }


# --- names that scripts written for Azure ML import


class Answer:
    """An answer with a status and headers of its own."""

    def __init__(self, response=b"", status=200, headers=None, json_str=False):
        self.status_code, self.headers = status, dict(headers or {})
        self.body = encode(response) if json_str else response
        if json_str:
            self.headers.setdefault("Content-Type", JSON)


def rawhttp(run):
    """Marks a run() that takes the whole request."""
    run.rawhttp = True
    return run


def offer_azureml():
    """Gives azureml.contrib.services, where it is not installed: rawhttp, AMLRequest and AMLResponse."""
    if importlib.util.find_spec("azureml") is not None:
        return
    kind = type(sys)
    for name in ("azureml", "azureml.contrib", "azureml.contrib.services", "azureml.contrib.services.aml_request", "azureml.contrib.services.aml_response"):
        module = kind(name)
        module.__path__ = []
        sys.modules[name] = module
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], last, module)
    request, response = sys.modules["azureml.contrib.services.aml_request"], sys.modules["azureml.contrib.services.aml_response"]
    request.rawhttp, request.AMLRequest = rawhttp, Request
    response.AMLResponse = Answer


def main():
    for stream in (sys.stdout, sys.stderr):
        # Whole lines, also where Python was told not to buffer: several processes share the log.
        stream.reconfigure(line_buffering=True, write_through=False)
    try:
        settings = Settings(os.environ)
    except Unusable as e:
        say(str(e))
        return EXIT_INIT
    return Supervisor(settings).run()


if __name__ == "__main__":
    sys.exit(main())
