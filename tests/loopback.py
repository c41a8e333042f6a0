"""An HTTP server on this machine that serves given files, and misbehaves when asked to."""

import http.server
import threading


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves server.files; server.moods[path] lists what goes wrong, one word for each request."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        path = self.path.partition("?")[0]
        self.server.asked.append(path)
        moods = self.server.moods.get(path, [])
        mood = moods.pop(0) if moods else ""
        code, headers, body = self.server.answer(path)
        if mood == "drop":
            return  # the connection closes without an answer
        if mood.isdigit():
            code, headers, body = int(mood), {}, b""
        sent = {"cut": body[: len(body) // 2], "cut at once": b"", "hang": body[:10],
                "longer": body + b"x" * 10, "other": body[:-1] + b"x"}.get(mood.split(",")[0], body)
        if not mood.endswith("no length"):
            headers = headers | {"Content-Length": max(len(body), len(sent))}
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(sent)
        if mood == "hang":
            self.server.released.wait(300)
            self.wfile.write(body[10:])

    do_HEAD = do_GET


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.moods, self.asked = {}, {}, []
        self.released = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, path):
        return (200, {}, self.files[path]) if path in self.files else (404, {}, b"")

    def handle_error(self, request, client_address):
        pass  # a client that was killed

    def stop(self):
        self.released.set()
        self.shutdown()
        self.server_close()
