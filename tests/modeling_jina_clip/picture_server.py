"""A picture, and an HTTP server that hands it out well or misbehaves in every known way."""

import io
import threading
from http.server import BaseHTTPRequestHandler

import numpy as np
from PIL import Image


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))


def png() -> bytes:
    buffer = io.BytesIO()
    picture().save(buffer, format="PNG")
    return buffer.getvalue()


class Handler(BaseHTTPRequestHandler):
    """Every kind of server one meets: each path misbehaves in its own way."""

    protocol_version = "HTTP/1.1"
    asked: list[tuple[str, dict[str, str]]] = []
    stop = threading.Event()

    def do_GET(self) -> None:
        type(self).asked.append((self.path, dict(self.headers)))
        name, _, rest = self.path.lstrip("/").partition("?")
        getattr(self, "answer_" + name.partition("/")[0], self.answer_missing)(rest)

    def send(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def answer_picture(self, rest: str) -> None:
        self.send(200, png(), Content_Length=str(len(png())))

    def answer_chunked(self, rest: str) -> None:
        parts = [b"%x\r\n%s\r\n" % (len(part), part) for part in (png()[:100], png()[100:])]
        self.send(200, b"".join([*parts, b"0\r\n\r\n"]), Transfer_Encoding="chunked")

    def answer_unframed(self, rest: str) -> None:
        self.close_connection = True
        self.send(200, png(), Connection="close")

    def answer_text(self, rest: str) -> None:
        self.send(200, b"<html>no</html>", Content_Length="15", Content_Type="image/png")

    def answer_announced(self, rest: str) -> None:
        self.send(200, b"", Content_Length=str(10**12))

    def answer_endless(self, rest: str) -> None:
        self.send(200, b"", Connection="close")
        try:
            while not self.stop.is_set():
                self.wfile.write(b"x" * 2**16)
        except OSError:
            pass  # the client hung up, as it should
        self.close_connection = True

    def answer_endless_chunks(self, rest: str) -> None:
        self.send(200, b"", Transfer_Encoding="chunked")
        try:
            while not self.stop.is_set():
                self.wfile.write(b"10000\r\n" + b"x" * 2**16 + b"\r\n")
        except OSError:
            pass
        self.close_connection = True

    def answer_cut(self, rest: str) -> None:
        self.close_connection = True
        self.send(200, png()[:50], Content_Length=str(len(png())))

    def answer_cut_chunk(self, rest: str) -> None:
        self.close_connection = True
        self.send(200, b"400\r\n" + b"x" * 10, Transfer_Encoding="chunked")

    def answer_drip(self, rest: str) -> None:
        """A byte now and then: never silent for long enough that a limit per read would notice."""
        self.send(200, b"", Content_Length="1000")
        self.drip()

    def answer_drip_headers(self, rest: str) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
        self.drip()

    def drip(self) -> None:
        self.close_connection = True
        try:
            while not self.stop.wait(0.02):
                self.wfile.write(b"x")
        except OSError:
            pass

    def answer_to(self, rest: str) -> None:
        self.send(302, b"", Location=rest, Content_Length="0")

    def answer_nowhere(self, rest: str) -> None:
        self.send(301, b"", Content_Length="0")

    def answer_nonsense(self, rest: str) -> None:
        self.close_connection = True
        self.wfile.write(b"\x00\x01 not http\r\n\r\n")

    def answer_missing(self, rest: str) -> None:
        self.send(404, b"", Content_Length="0")

    def log_message(self, *args: object) -> None:
        pass
