"""A server that sleeps and wakes as vLLM does, with its lies: `/health` is 200 in sleep, and a 200 may mean nothing.

Says `up PID` once it listens, then every call.
`--lie sleep-fails|sleep-lies|sleep-hangs|wake-fails|wake-lies|wake-dies|no-state`.
SIGUSR1: it closes its port and lives on. Awake it holds `--memory-mb`, asleep `--kept-mb`.
"""

import argparse
import json
import os
import signal
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int)
parser.add_argument("--lie", default="")
parser.add_argument("--memory-mb", type=int, default=0)
parser.add_argument("--kept-mb", type=int, default=0)
parser.add_argument("--name", default="")
options = parser.parse_args()


def fill(megabytes: int) -> bytearray:
    return bytearray(b"x" * (1 << 20)) * megabytes


class Server(ThreadingHTTPServer):
    is_asleep = False
    kept = fill(options.kept_mb)
    weights = fill(options.memory_mb - options.kept_mb)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *args: object) -> None:
        pass

    def answer(self, status: int, document: object = None) -> None:
        body = b"" if document is None else json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if self.path == "/health":
            self.answer(200)
        elif self.path == "/is_sleeping" and options.lie != "no-state":
            self.answer(200, {"is_sleeping": self.server.is_asleep})
        else:
            self.answer(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.rfile.read(length)
        print(f"call {self.path} asleep={self.server.is_asleep}", flush=True)
        path, lie = self.path.partition("?")[0], options.lie
        if path == "/sleep":
            if lie == "sleep-hangs":
                time.sleep(1000)
            if lie == "sleep-fails":
                self.answer(500, {"error": "cumem allocator is not enabled"})
                return
            if lie != "sleep-lies":
                Server.is_asleep, Server.weights = True, bytearray()
            self.answer(200, {"status": "sleeping", "level": 1})
        elif path == "/wake_up":
            if lie == "wake-dies":
                os._exit(1)
            if lie == "wake-fails":
                self.answer(500, {"error": "out of memory"})
                return
            if lie != "wake-lies":
                Server.weights = fill(options.memory_mb - options.kept_mb)
                Server.is_asleep = False
            self.answer(200, {"status": "awake"})
        elif self.server.is_asleep:
            self.answer(500, {"error": "a request while asleep"})
        else:
            text = {"role": "assistant", "content": f"{options.name} is awake"}
            self.answer(200, {"object": "chat.completion", "choices": [{"index": 0, "message": text}]})


server = Server(("127.0.0.1", options.port), Handler)
silence, _ = os.pipe()
signal.signal(signal.SIGUSR1, lambda *_: os.dup2(silence, server.fileno()))
print(f"up {os.getpid()}", flush=True)
server.serve_forever()
