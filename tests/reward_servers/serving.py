"""What the example servers have in common: HTTP, and ways to misbehave for tests.

Prints the server's URL when it is ready. Needs nothing but Python 3.
"""

import argparse
import socket
import time
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def arguments(description):
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--delay", type=float, default=0, metavar="SECONDS", help="before each reply")
    parser.add_argument("--fail-first", type=int, default=0, metavar="N", help="status 500 for the first N requests")
    parser.add_argument(
        "--misbehave",
        choices=["wrong-count", "nan", "oversized", "html", "redirect", "error", "hostile-pickle", "hang-up"],
    )
    return parser.parse_args()


def serve(options, path, content_type, answer):
    """Serves POST requests to `path`: `answer(body, misbehaviour)` gives the reply, or raises what becomes status 500."""
    failures_left = options.fail_first

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            nonlocal failures_left
            body = self.rfile.read(int(self.headers["Content-Length"]))
            time.sleep(options.delay)
            if self.path != path:
                return self.reply(404, "text/plain", b"there is nothing here")
            if failures_left > 0:
                failures_left -= 1
                return self.reply(500, "text/html", b"Traceback (most recent call last):\nRuntimeError: out of memory\n")
            if options.misbehave == "html":
                return self.reply(200, "text/html", b"<!doctype html><title>Welcome to nginx!</title>")
            if options.misbehave == "oversized":
                return self.reply(200, content_type, bytes(1 << 21))
            if options.misbehave == "hang-up":
                self.close_connection = True
                return self.connection.shutdown(socket.SHUT_RDWR)
            if options.misbehave == "redirect":
                self.send_response(307)
                self.send_header("Location", "http://127.0.0.1:9/elsewhere")
                self.send_header("Content-Length", "0")
                return self.end_headers()
            try:
                self.reply(200, content_type, answer(body, options.misbehave))
            except Exception:
                self.reply(500, "text/html", traceback.format_exc().encode())

        def do_GET(self):
            status = 200 if self.path == "/health" else 404
            self.reply(status, "application/json", b'{"status": "ok"}')

        def reply(self, status, kind, body):
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 128  # Clients with many questions at once connect faster than threads start.

    server = Server(("127.0.0.1", options.port), Handler)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


def bent(scores, misbehaviour):
    """The scores, or what a test wants to see in their place."""
    if misbehaviour == "wrong-count":
        return scores[:-1]
    if misbehaviour == "nan":
        return [float("nan"), *scores[1:]]
    return scores
