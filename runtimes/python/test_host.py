"""Tests of the scoring host, with the test in the place of the agent and of inference. Run by `go test ./runtimes`."""

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import unittest

HOST = os.path.join(os.path.dirname(os.path.abspath(__file__)), "host.py")
PATIENCE = 60  # seconds for what comes at once on an idle machine


class Endpoint:
    """The run's endpoint: takes the connections of workers and the host's last words."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = "127.0.0.1:%d" % self.listener.getsockname()[1]
        self.workers = queue.Queue()
        self.words = queue.Queue()
        self.refuse = 0
        self.refused = 0
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                s, _ = self.listener.accept()
            except OSError:
                return
            c = Client(s)
            head = c.head()
            first, headers = head[0], head[1]
            if first == "POST /redoubt/host HTTP/1.1":
                self.words.put(json.loads(c.exactly(int(headers["content-length"])))["message"])
                s.sendall(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
                s.close()
                continue
            if first != "GET /redoubt/worker HTTP/1.1" or headers["upgrade"] != "redoubt-worker/1" or headers["connection"] != "Upgrade":
                s.close()
                continue
            if self.refused < self.refuse:
                self.refused += 1
                s.sendall(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
                s.close()
                continue
            c.number = int(headers["x-redoubt-worker"])
            s.sendall(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: redoubt-worker/1\r\n\r\n")
            self.workers.put(c)


class Gone(Exception):
    """The worker has closed the connection."""


class Client:
    """Inference's end of a worker's connection."""

    def __init__(self, s):
        self.socket = s
        s.settimeout(PATIENCE)
        self.data = b""

    def more(self):
        try:
            data = self.socket.recv(65536)
        except ConnectionError:
            data = b""
        if not data:
            raise Gone
        self.data += data

    def exactly(self, n):
        while len(self.data) < n:
            self.more()
        out, self.data = self.data[:n], self.data[n:]
        return out

    def line(self):
        while b"\r\n" not in self.data:
            self.more()
        out, _, self.data = self.data.partition(b"\r\n")
        return out.decode("latin-1")

    def head(self):
        first, headers = self.line(), {}
        while True:
            line = self.line()
            if not line:
                return first, headers
            key, _, value = line.partition(":")
            headers[key.lower()] = value.strip()

    def send(self, body=b"", method="POST", target="/score", **headers):
        if isinstance(body, str):
            body = body.encode()
        lines = ["%s %s HTTP/1.1" % (method, target), "Content-Length: %d" % len(body), "X-Request-Id: req-1"]
        headers.setdefault("Content_Type", "application/json")
        lines += ["%s: %s" % (k.replace("_", "-"), v) for k, v in headers.items() if v is not None]
        self.socket.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    def answer(self):
        first, headers = self.head()
        if headers.get("transfer-encoding") == "chunked":
            parts = []
            while True:
                n = int(self.line(), 16)
                parts.append(self.exactly(n))
                if self.line() != "":
                    raise AssertionError("a chunk without an end")
                if n == 0:
                    return int(first.split()[1]), headers, parts[:-1]
        return int(first.split()[1]), headers, self.exactly(int(headers.get("content-length", "0")))

    def ask(self, *args, **kwargs):
        self.send(*args, **kwargs)
        return self.answer()


class Replica:
    """A host with a script, as the agent starts it."""

    def __init__(self, script, workers=1, refuse=0, name="score.py", **env):
        self.endpoint = Endpoint()
        self.endpoint.refuse = refuse
        self.folder = tempfile.TemporaryDirectory()
        if script is not None:
            path = os.path.join(self.folder.name, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "w") as f:
                f.write(script)
        settings = {
            "PATH": os.environ["PATH"], "AZUREML_ENTRY_SCRIPT": name, "AZUREML_MODEL_DIR": "/models", "REDOUBT_WORKERS": str(workers), "PYTHONUNBUFFERED": "1",
            "REDOUBT_SERVE_ADDRESS": self.endpoint.address, "REDOUBT_REQUEST_TIMEOUT_MS": "60000", "REDOUBT_START_TIMEOUT_MS": "60000", "REDOUBT_MAX_BODY_BYTES": "10000000",
        }
        settings.update(env)
        self.log = tempfile.TemporaryFile()
        self.process = subprocess.Popen([sys.executable, HOST], cwd=self.folder.name, env=settings, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.endpoint.listener.close()
        self.folder.cleanup()
        self.log.close()

    def worker(self):
        return self.endpoint.workers.get(timeout=PATIENCE)

    def wait(self):
        return self.process.wait(timeout=PATIENCE)

    def text(self):
        self.log.seek(0)
        return self.log.read().decode("utf-8", "replace")


ECHO = "def run(data):\n    return data\n"


class Answers(unittest.TestCase):
    def test_init_once_and_in_order(self):
        script = """
import os
calls = []
def init():
    calls.append(os.environ["AZUREML_MODEL_DIR"])
def run(data):
    calls.append(data)
    return {"calls": calls, "cwd": os.getcwd()}
"""
        with Replica(script) as r:
            c = r.worker()
            self.assertEqual(c.number, 0)
            c.ask("1")
            status, headers, body = c.ask("2")
            self.assertEqual((status, headers["content-type"]), (200, "application/json"))
            self.assertEqual(json.loads(body), {"calls": ["/models", "1", "2"], "cwd": os.path.realpath(r.folder.name)})

    def test_input(self):
        script = "def run(data):\n    return type(data).__name__ + ' ' + repr(data)\n"
        with Replica(script) as r:
            c = r.worker()
            for kind, body, want in [
                ("application/json", '{"a": "ä"}', "str '{\"a\": \"ä\"}'"),
                ("application/JSON; charset=utf-8", "[]", "str '[]'"),
                ("application/vnd.x+json", "[]", "str '[]'"),
                ("text/csv", "1,2", "str '1,2'"),
                ("application/x-www-form-urlencoded", "[]", "str '[]'"),  # what curl and urllib say by themselves
                (None, "[]", "str '[]'"),
                ("application/octet-stream", b"\x00\xff", "bytes b'\\x00\\xff'"),
                ("image/png", b"\x89", "bytes b'\\x89'"),
            ]:
                status, _, got = c.ask(body, Content_Type=kind)
                self.assertEqual((status, got.decode()), (200, want), kind)
            status, headers, body = c.ask(b"\xff")
            self.assertEqual(status, 400)
            self.assertNotIn("x-redoubt-model-error", headers)
            self.assertIn("not UTF-8", json.loads(body)["error"])
            self.assertEqual(c.ask("")[2], b"str ''")

    def test_output(self):
        script = """
class Array:
    def __init__(self, value): self.value = value
    def tolist(self): return self.value
class Table:
    def to_dict(self): return {"a": [1]}
class Raw:
    status_code, headers, body = 201, {"Content-Type": "image/png", "X-Mine": "1", "Content-Length": "7", "Transfer-Encoding": "chunked", "X-Redoubt-Model-Error": "raised"}, b"png"
class Plain:
    status_code, headers, body = 404, None, {"no": "such"}
class Words:
    status_code, headers = 202, [("A", "b")]
    def get_data(self): return "words"
class Nothing:
    status_code, headers, body = 204, {}, None
big = "x" * 3000000
def run(data):
    return eval(data)
"""
        json_, text, octets = "application/json", "text/plain; charset=utf-8", "application/octet-stream"
        with Replica(script) as r:
            c = r.worker()
            for code, status, kind, body in [
                ("{'a': [1, 2.5, None, True, 'ä']}", 200, json_, '{"a":[1,2.5,null,true,"ä"]}'.encode()),
                ("None", 200, json_, b"null"), ("3", 200, json_, b"3"), ("()", 200, json_, b"[]"), ("{1: 2}", 200, json_, b'{"1":2}'),
                ("{'p': Array([1, 2])}", 200, json_, b'{"p":[1,2]}'), ("Table()", 200, json_, b'{"a":[1]}'),
                ("'words'", 200, text, b"words"), ("'{\"a\": 1}'", 200, json_, b'{"a": 1}'), ("' [1]'", 200, json_, b" [1]"), ("''", 200, text, b""),
                ("b'\\x00'", 200, octets, b"\x00"), ("bytearray(b'a')", 200, octets, b"a"),
                ("Raw()", 201, "image/png", b"png"), ("Plain()", 404, json_, b'{"no":"such"}'), ("Words()", 202, text, b"words"),
                ("big", 200, text, b"x" * 3000000),
            ]:
                got = c.ask(code)
                self.assertEqual((got[0], got[1]["content-type"], got[2]), (status, kind, body), code)
                self.assertEqual(int(got[1]["content-length"]), len(body), code)
                self.assertNotIn("x-redoubt-model-error", got[1], code)
            self.assertEqual(c.ask("Raw()")[1]["x-mine"], "1")
            self.assertEqual(c.ask("Words()")[1]["a"], "b")
            self.assertEqual(c.ask("Nothing()")[0], 204)
            self.assertEqual(c.ask("1")[2], b"1")  # still in step

    def test_what_json_cannot_say(self):
        script = """
class Bad:
    def tolist(self): raise KeyError("inside")
class Split:
    status_code, headers, body = 200, {"A": "b\\r\\nSet-Cookie: c"}, b""
class Odd:
    status_code, headers, body = 99, {}, b""
loop = []
loop.append(loop)
deep = []
for _ in range(100000): deep = [deep]
def run(data):
    return eval(data)
"""
        with Replica(script) as r:
            c = r.worker()
            for code, says in [
                ("float('nan')", "NaN"), ("[float('inf')]", "infinity"), ("{1, 2}", "JSON has no set"), ("object()", "JSON has no object"), ("{(1,): 2}", "keys must be"),
                ("loop", "Circular"), ("deep", "recursion"), ("'\\ud800'", "surrogates"), ("['\\ud800']", "surrogates"), ("Bad()", "inside"), ("[b'x']", "JSON has no bytes"),
                ("Split()", "header"), ("Odd()", "status code"),
            ]:
                status, headers, body = c.ask(code)
                self.assertEqual((status, headers.get("x-redoubt-model-error")), (500, "unserializable"), code)
                self.assertIn(says, json.loads(body)["error"], code)
            self.assertEqual(c.ask("1")[2], b"1")
            self.assertIn("request req-1: what run() returned cannot be sent", r.text())

    def test_raises(self):
        script = """
import sys
class Mute(Exception):
    def __str__(self): raise OSError("no words")
def run(data):
    exec(data, globals())
"""
        with Replica(script) as r:
            c = r.worker()
            for code, says in [
                ("raise ValueError('seven rows')", "ValueError: seven rows"), ("1/0", "ZeroDivisionError"), ("sys.exit(3)", "SystemExit: 3"), ("raise KeyboardInterrupt", "KeyboardInterrupt"),
                ("raise Mute", "Mute"), ("raise OSError(32, 'Broken pipe')", "BrokenPipeError"), ("def f(): f()\nf()", "RecursionError"), ("raise ValueError('x' * 100000)", "ValueError: xxx"),
            ]:
                status, headers, body = c.ask(code)
                self.assertEqual((status, headers.get("x-redoubt-model-error")), (500, "raised"), code)
                self.assertIn(says, json.loads(body)["error"], code)
                self.assertLess(len(body), 4096, code)
            self.assertEqual(c.ask("pass")[2], b"null")
            log = r.text()
            self.assertIn("request req-1: run() raised ValueError: seven rows", log)
            self.assertIn('score.py", line 6, in run', log)
            self.assertNotIn("host.py", log)

    def test_memory_error_replaces_the_worker(self):
        with Replica("import os\ndef run(data):\n    if data: raise MemoryError\n    return os.getpid()\n") as r:
            c = r.worker()
            first = c.ask("")[2]
            self.assertEqual(c.ask("x")[0], 500)
            with self.assertRaises(Gone):
                c.answer()
            self.assertNotEqual(r.worker().ask("")[2], first)

    def test_streams(self):
        script = """
def run(data):
    for item in eval(data):
        if item == "raise": raise ValueError("in the middle")
        yield item
"""
        with Replica(script) as r:
            c = r.worker()
            for code, kind, parts in [
                ("['a', '', 'b']", "text/plain; charset=utf-8", [b"a", b"b"]), ("[b'a', b'b']", "application/octet-stream", [b"a", b"b"]),
                ("[{'t': 1}, 2]", "application/x-ndjson", [b'{"t":1}\n', b"2\n"]), ("[]", "application/octet-stream", []),
            ]:
                status, headers, got = c.ask(code)
                self.assertEqual((status, headers["content-type"], got), (200, kind, parts), code)
            status, headers, body = c.ask("['raise']")
            self.assertEqual((status, headers["x-redoubt-model-error"]), (500, "raised"))
            status, headers, body = c.ask("[{1}]")
            self.assertEqual((status, headers["x-redoubt-model-error"]), (500, "unserializable"))
            for code in ["['a', 'raise']", "['a', {1}]"]:
                with self.assertRaises(Gone):
                    c.ask(code)
                c = r.worker()  # the same worker, on a new connection
            self.assertEqual(c.ask("['a']")[2], [b"a"])

    def test_raw_scripts(self):
        script = """
from azureml.contrib.services.aml_request import AMLRequest, rawhttp
from azureml.contrib.services.aml_response import AMLResponse
@rawhttp
def run(request):
    assert isinstance(request, AMLRequest)
    if request.headers.get("x-fail"):
        return AMLResponse("no", 418)
    return AMLResponse({"method": request.method, "path": request.path, "body": request.get_data(True)}, 200, json_str=True)
"""
        with Replica(script) as r:
            c = r.worker()
            status, headers, body = c.ask("abc")
            self.assertEqual((status, headers["content-type"], json.loads(body)), (200, "application/json", {"method": "POST", "path": "/score", "body": "abc"}))
            status, _, body = c.ask("", X_Fail="1")
            self.assertEqual((status, body), (418, b"no"))

    def test_request_headers(self):
        with Replica("def run(data, request_headers):\n    return request_headers['traceparent']\n") as r:
            self.assertEqual(r.worker().ask("", traceparent="00-a-b-01")[2], b"00-a-b-01")

    def test_swagger(self):
        script = """
def run(data):
    \"\"\"Says which flower it is.

    More.\"\"\"
run.input_sample = {"data": [[1.5, 2]], "n": 1, "b": True}
run.output_sample = ["iris"]
"""
        with Replica(script) as r:
            c = r.worker()
            status, headers, body = c.ask(method="GET", target="/swagger.json", Content_Type=None)
            two = json.loads(body)
            self.assertEqual((status, headers["content-type"], two["swagger"]), (200, "application/json", "2.0"))
            post = two["paths"]["/score"]["post"]
            self.assertEqual(post["summary"], "Says which flower it is.")
            form = post["parameters"][0]["schema"]
            self.assertEqual(form["example"], {"data": [[1.5, 2]], "n": 1, "b": True})
            self.assertEqual(form["properties"]["data"], {"type": "array", "items": {"type": "array", "items": {"type": "number", "format": "double"}}})
            self.assertEqual(form["properties"]["b"], {"type": "boolean"})
            self.assertEqual(post["responses"]["200"]["schema"]["items"], {"type": "string"})
            three = json.loads(c.ask(method="GET", target="/swagger.json?version=3")[2])
            self.assertEqual(three["openapi"], "3.0.3")
            self.assertIn("example", three["paths"]["/score"]["post"]["requestBody"]["content"]["application/json"]["schema"])
            self.assertEqual(c.ask(method="GET", target="/")[2], b"Healthy")
            self.assertEqual(c.ask(method="GET", target="/score")[0], 404)
            self.assertEqual(c.ask(target="/other")[0], 404)

    def test_what_inference_would_never_send(self):
        with Replica(ECHO, REDOUBT_MAX_BODY_BYTES="1000") as r:
            for request, status in [
                (b"POST /score HTTP/1.1\r\nContent-Length: 1001\r\n\r\n", 413), (b"POST /score HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
                (b"POST /score HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx", 400), (b"POST /score HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
                (b"POST /score HTTP/1.1\r\nContent-Length : 1\r\n\r\nx", 400), (b"nonsense\r\n\r\n", 400), (b"POST /score HTTP/1.0\r\n\r\n", 400),
                (b"POST /score HTTP/1.1\r\nA: " + b"x" * 70000 + b"\r\n\r\n", 431), (b"POST /score HTTP/1.1\r\nContent-Length: 0x1\r\n\r\nx", 400),
            ]:
                c = r.worker()
                c.socket.sendall(request)
                self.assertEqual(c.answer()[0], status, request[:80])
                with self.assertRaises(Gone):
                    c.answer()
            c = r.worker()
            c.socket.sendall(b"POST /score HTTP/1.1\r\nContent-Length: 3\r\n\r\nab")  # and nothing more
            c.socket.shutdown(socket.SHUT_WR)
            with self.assertRaises(Gone):
                c.answer()
            c = r.worker()
            for byte in b"POST /score HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc":  # in small pieces
                c.socket.sendall(bytes([byte]))
            self.assertEqual(c.answer()[2], b"abc")


class Lives(unittest.TestCase):
    def test_connects_again(self):
        with Replica(ECHO, refuse=3) as r:
            r.worker().socket.close()
            self.assertEqual(r.worker().ask("a")[2], b"a")
            self.assertEqual(r.endpoint.refused, 3)

    def test_hangs(self):
        script = """
import os, time
def run(data):
    if data == "hang":
        while True:
            try:
                while True: time.sleep(0.01)
            except BaseException:
                pass
    return os.getpid()
"""
        with Replica(script, workers=2) as r:
            a, b = sorted([r.worker(), r.worker()], key=lambda c: c.number)
            self.assertEqual((a.number, b.number), (0, 1))
            other = b.ask("")[2]
            first = a.ask("")[2]
            a.send("hang", X_Redoubt_Deadline_Ms="100")
            with self.assertRaises(Gone):
                a.answer()
            again = r.worker()
            self.assertEqual(again.number, 0)
            self.assertNotEqual(again.ask("")[2], first)
            self.assertEqual(b.ask("")[2], other)
            self.assertIn("worker 0 was ended: run() took longer than it may", r.text())

    def test_hangs_past_the_deployments_own_timeout(self):
        with Replica("import time\ndef run(data):\n    while True: time.sleep(0.01)\n", REDOUBT_REQUEST_TIMEOUT_MS="100") as r:
            c = r.worker()
            c.send("", X_Redoubt_Deadline_Ms="100000000")
            with self.assertRaises(Gone):
                c.answer()
            r.worker()

    def test_dies(self):
        script = """
import os, signal
def run(data):
    if data == "exit": os._exit(7)
    if data == "signal": os.kill(os.getpid(), signal.SIGSEGV)
    return os.getpid()
"""
        with Replica(script) as r:
            for how in ["exit", "signal", "exit"]:
                c = r.worker()
                c.ask("")
                c.send(how)
                with self.assertRaises(Gone):
                    c.answer()
            self.assertEqual(r.worker().ask("")[0], 200)
            self.assertIn("worker 0 ended with exit code 7; it is started again", r.text())
            self.assertIn("worker 0 was ended by signal 11 (SIGSEGV)", r.text())

    def test_what_a_worker_started_ends_with_it(self):
        script = """
import os, subprocess
def run(data):
    child = subprocess.Popen(["sleep", "1000"])
    with open("child", "w") as f: f.write(str(child.pid))
    os._exit(1)
"""
        with Replica(script) as r:
            c = r.worker()
            c.send("")
            with self.assertRaises(Gone):
                c.answer()
            r.worker()
            with open(os.path.join(r.folder.name, "child")) as f:
                pid = int(f.read())
            try:
                with open("/proc/%d/stat" % pid) as f:
                    self.assertEqual(f.read().rpartition(")")[2].split()[0], "Z")
            except FileNotFoundError:
                pass

    def test_leaks(self):
        with Replica("import os\ndef run(data):\n    return os.getpid()\n", WORKER_MAX_REQUESTS="3") as r:
            pids = []
            for _ in range(2):
                c = r.worker()
                pids.append({c.ask("")[2] for _ in range(3)})
                with self.assertRaises(Gone):
                    c.answer()
            self.assertEqual((len(pids[0]), len(pids[1]), len(pids[0] | pids[1])), (1, 1, 2))

    def test_lines_stay_whole(self):
        script = "def run(data):\n    for _ in range(2000): print(data, data)\n"
        with Replica(script, workers=3) as r:
            workers = [r.worker() for _ in range(3)]
            for c in workers:
                c.send("abcdef")
            for c in workers:
                self.assertEqual(c.answer()[0], 200)
            self.assertEqual(set(r.text().splitlines()), {"abcdef abcdef"})

    def test_prints_by_the_megabyte(self):
        with Replica("def run(data):\n    for _ in range(200): print('x' * 100000)\n    return 'done'\n") as r:
            self.assertEqual(r.worker().ask("")[2], b"done")

    def gives_up(self, script, *says, **kwargs):
        with Replica(script, **kwargs) as r:
            self.assertEqual(r.wait(), 3)
            words = r.endpoint.words.get(timeout=PATIENCE)
            for text in says:
                self.assertIn(text, words)
                self.assertIn(text, r.text())
            self.assertTrue(r.endpoint.workers.empty())
            return r.text()

    def test_init_fails(self):
        log = self.gives_up("def init():\n    raise ValueError('no weights')\n" + ECHO, "in 3 tries", "init() failed: ValueError: no weights")
        self.assertEqual(log.count("in init"), 3)
        self.gives_up("import no_such_module\n" + ECHO, "No module named 'no_such_module'")
        self.gives_up("def run(:\n", "SyntaxError")
        self.gives_up(None, "there is no entry script score.py in the snapshot")
        self.gives_up("def go(data): pass\n", "has no function run(raw_data)")
        self.gives_up("import os\ndef init(): os._exit(9)\n" + ECHO, "exit code 9")
        self.gives_up("import sys\ndef init(): sys.exit(9)\n" + ECHO, "SystemExit: 9")
        self.gives_up("import os, signal\ndef init(): os.kill(os.getpid(), signal.SIGKILL)\n" + ECHO, "signal 9 (SIGKILL)")
        self.gives_up("import time\ndef init():\n    while True: time.sleep(0.01)\n" + ECHO, "init() took longer than 0.3 s", workers=2, REDOUBT_START_TIMEOUT_MS="300")
        self.gives_up("x = 1\n", "not a Python file", name="score.txt")

    def test_init_fails_while_another_serves(self):
        script = """
import os
def init():
    try: os.mkdir("first")
    except FileExistsError:
        if not os.path.exists("better"): raise ValueError("one is enough")
""" + ECHO
        with Replica(script, workers=2) as r:
            c = r.worker()
            while r.text().count("one is enough\n") < 2 * 4:  # each is told twice: by the trace and by the parent
                self.assertEqual(c.ask("a")[2], b"a")
            open(os.path.join(r.folder.name, "better"), "w").close()
            self.assertNotEqual(r.worker().number, c.number)

    def test_wrong_settings(self):
        with Replica(ECHO, WORKER_MAX_REQUESTS="many") as r:
            self.assertEqual(r.wait(), 3)
            self.assertIn("WORKER_MAX_REQUESTS is not a number", r.text())

    def test_script_in_a_folder(self):
        with Replica("import os\ndef run(data):\n    import beside\n    return beside.__name__\n", name="src/score.py") as r:
            with open(os.path.join(r.folder.name, "src", "beside.py"), "w") as f:
                f.write("")
            self.assertEqual(r.worker().ask("")[2], b"beside")

    def test_user_modules_do_not_replace_the_hosts(self):
        with Replica("import json\ndef run(data):\n    return [json.__file__.endswith('json.py'), 1]\n", workers=1) as r:
            with open(os.path.join(r.folder.name, "json.py"), "w") as f:
                f.write("raise ImportError('not mine')\n")
            self.assertEqual(r.worker().ask("")[2], b"[false,1]")


class Drains(unittest.TestCase):
    def test_idle(self):
        script = "import atexit\natexit.register(lambda: print('bye', flush=True))\n" + ECHO
        with Replica(script, workers=2) as r:
            a, b = r.worker(), r.worker()
            a.ask("a")
            r.process.send_signal(signal.SIGTERM)
            for c in (a, b):
                with self.assertRaises(Gone):
                    c.answer()
            self.assertEqual(r.wait(), 0)
            self.assertEqual(r.text(), "bye\nbye\n")

    def test_busy(self):
        script = """
import os, time
def run(data):
    open("busy", "w").close()
    while not os.path.exists("go"): time.sleep(0.01)
    return "done"
"""
        with Replica(script) as r:
            c = r.worker()
            c.send("")
            path = os.path.join(r.folder.name, "busy")
            while not os.path.exists(path):
                self.assertIsNone(r.process.poll())
            r.process.send_signal(signal.SIGTERM)
            with self.assertRaises(subprocess.TimeoutExpired):
                r.process.wait(timeout=0.3)  # it would be long gone
            open(os.path.join(r.folder.name, "go"), "w").close()
            self.assertEqual(c.answer()[2], b"done")
            with self.assertRaises(Gone):
                c.answer()
            self.assertEqual(r.wait(), 0)

    def test_before_it_serves(self):
        with Replica("import time\nopen('starting', 'w').close()\ntime.sleep(1000)\n" + ECHO) as r:
            while not os.path.exists(os.path.join(r.folder.name, "starting")):
                self.assertIsNone(r.process.poll())
            r.process.send_signal(signal.SIGTERM)
            self.assertEqual(r.wait(), 0)

    def test_while_it_connects(self):
        with Replica(ECHO, refuse=1 << 30) as r:
            while r.endpoint.refused < 2:
                self.assertIsNone(r.process.poll())
            r.process.send_signal(signal.SIGTERM)
            self.assertEqual(r.wait(), 0)


if __name__ == "__main__":
    unittest.main(warnings="ignore")
