"""A server with three slots that are saved and restored as llama-server does it; slot 1 is empty. Says every call.

`--lie no-slots|save-fails|save-hangs|no-json|dies|restore-fails|restore-hangs|sleeps`.
"""

import argparse
import json
import os
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int)
parser.add_argument("--lie", default="")
parser.add_argument("--slot-save-path", type=Path)
options = parser.parse_args()
assert options.slot_save_path.is_dir(), "not a directory"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass

    def answer(self, status: int, document: object) -> None:
        body = b"<html>" if options.lie == "no-json" else json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if self.path == "/health":
            self.answer(200, {"status": "ok"})
            return
        print(f"call {self.path}", flush=True)
        if options.lie == "no-slots" and self.path == "/slots":
            self.answer(501, {"error": {"message": "This server does not support slots endpoint."}})
        elif options.lie == "dies":
            os._exit(1)
        elif self.path == "/props":
            self.answer(200, {"is_sleeping": options.lie == "sleeps"})
        else:
            self.answer(200, [{"id": n, "is_processing": False} for n in range(3)])

    def do_POST(self) -> None:
        print(f"call {self.path}", flush=True)
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        what = self.path.rpartition("=")[2]
        if options.lie == f"{what}-hangs":
            time.sleep(1000)
        if options.lie == f"{what}-fails":
            self.answer(400, {"error": {"message": "Unable to restore slot"}})
            return
        path, number = options.slot_save_path / asked["filename"], int(self.path.split("/")[2].partition("?")[0])
        if what == "save":
            path.write_text(json.dumps({"says": f"tokens of {number}"}))
            self.answer(200, {"id_slot": number, "n_saved": 0 if number == 1 else 7})
        else:
            self.answer(200, {"id_slot": number, "n_restored": len(path.read_text())})


ThreadingHTTPServer(("127.0.0.1", options.port), Handler).serve_forever()
