"""A stand-in for an engine: standard library only and few imports, so that it starts in some 20 ms.

Says `up PID` on stdout once it listens. Every request gets `--status` and `--body`. SIGUSR1: it closes its port and
lives on; SIGUSR2: it opens it again.
"""

import argparse
import os
import signal
import socket
import sys
import threading
import time


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before it listens")
    parser.add_argument("--ready-after", type=float, default=0.0, help="seconds of 503 after it listens")
    parser.add_argument("--status", type=int, default=200)
    parser.add_argument("--body", default="ok")
    parser.add_argument("--hang", action="store_true", help="accept, read, never answer")
    parser.add_argument("--hang-first", type=int, default=0, help="never answer the first N connections")
    parser.add_argument("--count", default="", help="file that gets the most connections open at once")
    parser.add_argument("--ignore-term", action="store_true")
    parser.add_argument("--ignore-first-term", action="store_true", help="end at the second one")
    parser.add_argument("--say", default="", help="printed first")
    parser.add_argument("--exit", type=int, default=None, help="exit with this status after --delay")
    parser.add_argument("--kill-self", type=int, default=0, help="die by this signal after --delay")
    parser.add_argument("--die-after", type=float, default=0.0, help="seconds of serving before exit 1")
    parser.add_argument("--die-with", type=int, default=1, help="its status then")
    parser.add_argument("--exit-on-term", action="store_true", help="end with status 0")
    parser.add_argument("--print-mb", type=int, default=0)
    parser.add_argument("--show-env", action="store_true")
    parser.add_argument("--children", type=int, default=0, help="plain children that sleep")
    parser.add_argument("--session", action="store_true", help="a child in its own session, ignoring TERM")
    parser.add_argument("--serve-in-session", action="store_true", help="that child listens, not the parent")
    parser.add_argument("--daemonise", action="store_true", help="double fork; the first process exits 0")
    parser.add_argument("--memory-mb", type=int, default=0)
    options = parser.parse_args()

    if options.show_env:
        for name, value in sorted(os.environ.items()):
            print(f"env {name}={value}")
    if options.say:
        print(options.say)
    sys.stdout.flush()
    if options.exit_on_term:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    if options.ignore_first_term:
        signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    if options.ignore_term:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if options.print_mb:
        for _ in range(options.print_mb):
            os.write(1, (b"x" * 127 + b"\n") * 8192)
    if options.daemonise:
        if os.fork():
            time.sleep(0.05)
            os._exit(0)
        os.setsid()
        if os.fork():
            os._exit(0)
    time.sleep(options.delay)
    if options.kill_self:
        os.kill(os.getpid(), options.kill_self)
    if options.exit is not None:
        sys.exit(options.exit)
    for _ in range(options.children):
        if os.fork() == 0:
            time.sleep(1000)
            os._exit(0)
    if options.session or options.serve_in_session:
        ready, tell = os.pipe()
        if os.fork() == 0:
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            ballast = bytearray(os.urandom(1 << 20) * options.memory_mb)
            os.write(tell, b"x")
            if options.serve_in_session:
                serve(options)
            time.sleep(1000)
            os._exit(len(ballast) and 0)
        os.read(ready, 1)
        if options.serve_in_session:
            os.wait()
    elif options.memory_mb:
        options.ballast = bytearray(os.urandom(1 << 20) * options.memory_mb)
    serve(options)


def serve(options: argparse.Namespace) -> None:
    listener = socket.create_server(("127.0.0.1", options.port), backlog=64)

    def reopen(*_) -> None:
        nonlocal listener
        listener = socket.create_server(("127.0.0.1", options.port), backlog=64)

    signal.signal(signal.SIGUSR1, lambda *_: listener.close())
    signal.signal(signal.SIGUSR2, reopen)
    print(f"up {os.getpid()}", flush=True)
    started = time.monotonic()
    if options.die_after:
        threading.Timer(options.die_after, lambda: os._exit(options.die_with)).start()
    lock = threading.Lock()
    counts = {"open": 0, "most": 0, "all": 0}

    def answer(connection: socket.socket) -> None:
        with lock:
            counts["open"] += 1
            counts["all"] += 1
            number = counts["all"]
            counts["most"] = max(counts["most"], counts["open"])
            if options.count:
                with open(options.count, "w") as file:
                    file.write(f"{counts['most']} {counts['all']}")
        with connection:
            connection.recv(65536)
            if options.hang or number <= options.hang_first:
                connection.recv(65536)  # until the client gives up
            else:
                is_up = time.monotonic() - started >= options.ready_after
                status = options.status if is_up else 503
                body = options.body.encode()
                head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
                connection.sendall(head.encode() + body)
            with lock:
                counts["open"] -= 1

    while True:
        try:
            connection, _ = listener.accept()
        except OSError:  # closed by a signal
            time.sleep(0.01)
            continue
        threading.Thread(target=answer, args=(connection,), daemon=True).start()


main()
