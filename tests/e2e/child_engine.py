"""An engine that is a real process: standard library only, so that it starts in some 30 ms.

Every answer is `NAME PID WORD`. A stream sends that 50 times a second, until `max_tokens` pieces are out or the file
that the request's `user` names is there.
"""

import argparse
import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int, required=True)
parser.add_argument("--name", required=True)
parser.add_argument("--word", default="hello")
parser.add_argument("--model", default="")
parser.add_argument("--ctx-size", default="")
options = parser.parse_args()
SAID = f"{options.name} {os.getpid()} {options.word}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.whole(b"{}")

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if asked.get("stream"):
            self.stream(asked.get("max_tokens", 1 << 30), asked.get("user"))
            return
        headers = {k.lower(): v for k, v in self.headers.items()}
        answer = {"choices": [{"message": {"content": SAID}}], "headers": headers, "asked": asked}
        self.whole(json.dumps(answer).encode())

    def whole(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def stream(self, pieces: int, until: str | None) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for _ in range(pieces):
            event = {"choices": [{"delta": {"content": SAID + "\n"}}]}
            self.wfile.write(b"data: %s\n\n" % json.dumps(event).encode())
            if until and os.path.exists(until):
                break
            time.sleep(0.02)
        self.wfile.write(b"data: [DONE]\n\n")


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *args: object) -> None:
        """A client that left is nothing to print."""


print(f"{sys.argv[0]} up", flush=True)
Server(("127.0.0.1", options.port), Handler).serve_forever()
