"""A small engine of standard library only, which is up in some 20 ms: every answer says its pid and its `--tag`.

A stream goes on until the file that the request names in `user` is there, or `max_tokens` pieces are out, then ends
with `data: [DONE]`. The answer says as `key` what Authorization came with the request.
"""

import argparse
import json
import os
import socket
import sys
import threading
import time


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--tag", default="")
    parser.add_argument("--model", help="means nothing here, as other flags of profiles")
    options, _ = parser.parse_known_args()
    listener = socket.create_server(("127.0.0.1", options.port), backlog=512)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve, args=(connection, options.tag), daemon=True).start()


def serve(connection: socket.socket, tag: str) -> None:
    with connection, connection.makefile("rb") as reader:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while request_line := reader.readline():
            headers = {}
            while (line := reader.readline()) not in (b"\r\n", b""):
                name, _, value = line.decode().partition(":")
                headers[name.strip().lower()] = value.strip()
            body = reader.read(int(headers.get("content-length", "0")))
            try:
                answer(connection, request_line, headers, body, tag)
            except OSError:  # the client has left
                return


def answer(connection: socket.socket, request_line: bytes, headers: dict[str, str], body: bytes, tag: str) -> None:
    asked = json.loads(body) if body else {}
    said = f"{os.getpid()} {tag}"
    if asked.get("stream"):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        send_event(connection, said)
        left = asked.get("max_tokens", 1 << 30) - 1
        while left > 0 and not os.path.exists(asked.get("user", "")):
            time.sleep(0.01)
            send_event(connection, said)
            left -= 1
        send(connection, b"data: [DONE]\n\n")
        connection.sendall(b"0\r\n\r\n")
        return
    message = {"choices": [{"message": {"content": said}}], "key": headers.get("authorization", "")}
    text = json.dumps(message).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
    connection.sendall(head.encode() + text)


def send_event(connection: socket.socket, text: str) -> None:
    event = {"choices": [{"index": 0, "delta": {"content": text}}]}
    send(connection, f"data: {json.dumps(event)}\n\n".encode())


def send(connection: socket.socket, data: bytes) -> None:
    connection.sendall(f"{len(data):x}\r\n".encode() + data + b"\r\n")


if __name__ == "__main__":
    sys.exit(main())
