"""The page and what it asks for, over HTTP on this machine.

Pictures are asked for by number, never by path, so nothing outside the index can be read.
"""

import functools
import io
import ipaddress
import json
import threading
import urllib.parse
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any

import numpy as np
from PIL import Image

from clips_jax.data.images import BadImage, Picture
from clips_jax.data.pictures import Pictures
from clips_jax.search.index import PictureIndex

THUMBNAIL = 256  # pixels of the longer side
_THUMBNAILS_KEPT = 4096  # about 15 kB each
_LARGEST_UPLOAD = 32 * 2**20
_MOST_RESULTS = 500
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; img-src 'self' blob: data:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}


class _Refused(Exception):
    def __init__(self, status: HTTPStatus, message: str):
        super().__init__(message)
        self.status = status


class _Answers:
    """What the page can ask for."""

    def __init__(
        self,
        index: PictureIndex,
        pictures: Pictures | None,
        embed_text: Callable[[str], np.ndarray],
        embed_picture: Callable[[bytes], np.ndarray],
        warnings: Sequence[str],
    ):
        self._index, self._pictures, self._warnings = index, pictures, list(warnings)
        self._embed_text, self._embed_picture = embed_text, embed_picture
        self._positions = {name: i for i, name in enumerate(pictures.names)} if pictures else {}
        self._lock = threading.Lock()  # one query at a time on the devices
        self.thumbnail = functools.lru_cache(_THUMBNAILS_KEPT)(self._thumbnail)

    def status(self) -> dict[str, Any]:
        """What the page says about the index."""
        meta = self._index.meta
        return {
            "pictures": len(self._index.names),
            "unreadable": len(self._index.bad),
            "model": f"{meta['model']}" + (f", step {meta['step']:,}" if meta["step"] else ""),
            "warnings": self._warnings,
            "version": meta["vectors"],  # thumbnails go by number, which another version gives to others
        }

    def search(self, query: dict[str, str], body: bytes | None) -> dict[str, Any]:
        """Results of a text ("text"), a number in the index ("like"), or an uploaded picture; else the first ones."""
        count = max(1, min(_MOST_RESULTS, _number(query.get("count", "60"))))
        with self._lock:
            if body is not None:
                try:
                    found = self._index.search(self._embed_picture(body), count)
                except BadImage as error:
                    raise _Refused(HTTPStatus.BAD_REQUEST, "That is not a picture that can be read.") from error
            elif query.get("text", "").strip():
                found = self._index.search(self._embed_text(query["text"]), count)
            elif "like" in query:
                found = self._index.search(self._index.embedding(self._check(query["like"])), count)
            else:
                found = [(number, None) for number in range(min(count, len(self._index.names)))]
        return {"results": [{"id": i, "name": self._index.names[i], "score": score} for i, score in found]}

    def _check(self, number: str) -> int:
        found = _number(number)
        if not 0 <= found < len(self._index.names):
            raise _Refused(HTTPStatus.NOT_FOUND, f"There is no picture {found}.")
        return found

    def picture(self, number: str) -> tuple[bytes, str]:
        """The picture's file and its MIME type."""
        position = self._positions.get(self._index.names[self._check(number)])
        if self._pictures is None or position is None:
            raise _Refused(HTTPStatus.NOT_FOUND, "This picture is not there any more.")
        data = self._pictures.read([position])[0]["image"]
        try:
            with Image.open(io.BytesIO(data)) as image:
                return data, Image.MIME.get(image.format or "", "application/octet-stream")
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise _Refused(HTTPStatus.NOT_FOUND, "This picture cannot be read any more.") from error

    def _thumbnail(self, number: str) -> bytes:
        data, _ = self.picture(number)
        try:
            picture = Picture(data)
            longer = max(picture.width, picture.height)
            scale = max(scale for scale in picture.scales if scale == 1 or longer / scale >= 2 * THUMBNAIL)
            image = picture.decode(scale)
        except BadImage as error:
            raise _Refused(HTTPStatus.NOT_FOUND, "This picture cannot be read any more.") from error
        image = image.copy()
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        file = io.BytesIO()
        image.save(file, "JPEG", quality=85)
        return file.getvalue()


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise _Refused(HTTPStatus.BAD_REQUEST, f"{text[:40]!r} is not a number.") from error


def make_server(
    index: PictureIndex,
    pictures: Pictures | None,
    embed_text: Callable[[str], np.ndarray],
    embed_picture: Callable[[bytes], np.ndarray],
    warnings: Sequence[str] = (),
    host: str = "127.0.0.1",
    port: int = 8000,
) -> ThreadingHTTPServer:
    """A server that answers once `serve_forever` is called.

    Args:
      index: what is searched.
      pictures: where thumbnails come from; None shows none.
      embed_text, embed_picture: to float32 (E,), normalised; the latter raises `BadImage`.
      warnings: shown on the page.
      host, port: to listen on; port 0 takes a free one.
    """
    answers = _Answers(index, pictures, embed_text, embed_picture, warnings)
    page = (resources.files("clips_jax.search") / "page.html").read_bytes()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(None)

        def do_POST(self) -> None:
            self._answer(b"")

        def _answer(self, body: bytes | None) -> None:
            try:
                self._check_host()
                url = urllib.parse.urlsplit(self.path)
                query = dict(urllib.parse.parse_qsl(url.query))
                parts = url.path.strip("/").split("/")
                if body is not None:
                    if parts != ["search"]:
                        raise _Refused(HTTPStatus.NOT_FOUND, "There is nothing here.")
                    body = self._read_body()
                if parts == [""]:
                    self._send(page, "text/html; charset=utf-8")
                elif parts == ["status"]:
                    self._send_json(answers.status())
                elif parts == ["search"]:
                    self._send_json(answers.search(query, body))
                elif len(parts) == 2 and parts[0] == "thumbnail":
                    self._send(answers.thumbnail(parts[1]), "image/jpeg", cache=True)
                elif len(parts) == 2 and parts[0] == "picture":
                    self._send(*answers.picture(parts[1]))
                else:
                    raise _Refused(HTTPStatus.NOT_FOUND, "There is nothing here.")
            except _Refused as refused:
                self._send_json({"error": str(refused)}, refused.status)
            except (BrokenPipeError, ConnectionResetError):
                pass  # the browser went on to something else

        def _check_host(self) -> None:
            """While listening on this machine only, refuses other host names: no page elsewhere gets in by DNS."""
            name = urllib.parse.urlsplit(f"//{self.headers.get('Host', '')}").hostname or ""
            if _is_local(host) and not _is_local(name):
                raise _Refused(HTTPStatus.FORBIDDEN, f"This page is for this machine only, not for {name[:80]!r}.")

        def _read_body(self) -> bytes:
            length = _number(self.headers.get("Content-Length") or "-1")
            if not 0 < length <= _LARGEST_UPLOAD:
                self.close_connection = True
                size = _LARGEST_UPLOAD // 2**20
                raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"A picture of at most {size} MB is wanted.")
            return self.rfile.read(length)

        def _send_json(self, value: Any, status: HTTPStatus = HTTPStatus.OK) -> None:
            self._send(json.dumps(value).encode(), "application/json", status)

        def _send(self, data: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK, cache: bool = False) -> None:
            self.send_response(status)
            headers = _HEADERS | {"Content-Type": kind, "Content-Length": str(len(data))}
            headers["Cache-Control"] = "private, max-age=3600" if cache else "no-store"
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            """Requests are not logged."""

    return ThreadingHTTPServer((host, port), Handler)


def _is_local(name: str) -> bool:
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
