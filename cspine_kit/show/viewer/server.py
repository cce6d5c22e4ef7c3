"""The viewer's server: this machine only, one page, visits that leave nothing behind.

In: a bundle. Out: a server on 127.0.0.1. Example::

    with Server(bundle, port=0) as server:
        print(server.url)                       # http://127.0.0.1:... , open it in a browser

Python's own `http.server` and one page, no framework: Gradio's page code holds links to a font
host, it copies uploads into a cache that only a timer empties, and it brings 25 packages of 80 MB
for a page whose slices, windows and turning view would have to be written by hand all the same.
A request must come from this page: the host it names and a secret of this start are checked.
"""

import contextlib
import json
import logging
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from cspine_kit.core.errors import CSpineError, DataError
from cspine_kit.core.paths import is_safe_uid
from cspine_kit.infer.manifest import PROOF, check_file, read_manifest
from cspine_kit.infer.origin import is_phantom_scan, note_of, origin_of
from cspine_kit.infer.predictor import Predictor
from cspine_kit.infer.proof import unpack_study
from cspine_kit.show.explain.pictures import WINDOWS
from cspine_kit.show.explain.spine3d import plotly_script
from cspine_kit.show.viewer.visit import Visit

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
PAGE = "page.html"
MOST_VISITS = 3
IDLE_S = 120.0
"""The page asks every second or two: a visit that nobody asks for is over."""

POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline' blob:; "
    "style-src 'unsafe-inline'; img-src 'self' data: blob:; connect-src 'self'; worker-src blob:; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
"""The browser itself refuses anything from elsewhere."""


class Server:
    """The viewer.

    Args:
        bundle: that judges.
        port: 0 takes any that is free.
        phantoms: a folder of phantom studies to pick from, beside the bundle's own.
    """

    def __init__(self, bundle: Path, *, port: int = 8017, phantoms: Path | None = None) -> None:
        self.bundle, self.secret = bundle, secrets.token_urlsafe(24)
        manifest = read_manifest(bundle)  # an error before anything is served
        self.note = note_of(origin_of(bundle))
        self.scratch = Path(tempfile.mkdtemp(prefix="cspine-viewer-"))
        self.visits: dict[str, Visit] = {}
        self.phantoms = _phantoms(phantoms)
        if PROOF in manifest["files"]:
            images = self.scratch / "proof" / "test_images"
            packed = check_file([bundle], PROOF, manifest["files"][PROOF])
            self.phantoms["the bundle's own phantom"] = images / unpack_study(packed, images)
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._models = ThreadPoolExecutor(1)
        self._loading: Future[Predictor] = self._models.submit(
            Predictor, bundle, phantom_bundle=True
        )
        self._judging = ThreadPoolExecutor(1)
        handler = type("Handler", (_Handler,), {"viewer": self})
        self._http = ThreadingHTTPServer((HOST, port), handler)
        self._http.daemon_threads = True

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._http.server_address[1])

    @property
    def url(self) -> str:
        """The page's address; the secret in it lets in whoever was told."""
        return f"http://{HOST}:{self.port}/"

    def predictor(self) -> Predictor:
        """The models, once they are loaded.

        Raises:
            ArtifactError: the bundle is not sound.
        """
        return self._loading.result()

    def __enter__(self) -> "Server":
        for work in (self._http.serve_forever, self._sweep):
            threading.Thread(target=work, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._http.shutdown()
        self._http.server_close()
        for visit in list(self.visits.values()):
            visit.forget()
        self._judging.shutdown(wait=False, cancel_futures=True)
        self._models.shutdown(wait=False, cancel_futures=True)
        shutil.rmtree(self.scratch, ignore_errors=True)

    def wait(self) -> None:
        """Serve until the user interrupts."""
        with contextlib.suppress(KeyboardInterrupt):
            self._ended.wait()

    # ---- visits ----------------------------------------------------------------------------------

    def begin(self) -> str:
        """A new visit's name.

        Raises:
            DataError: too many at once.
        """
        with self._lock:
            if len(self.visits) >= MOST_VISITS:
                raise DataError(f"{MOST_VISITS} visits are open; close one of the other pages")
            name = secrets.token_urlsafe(12)
            self.visits[name] = Visit(self.scratch / f"visit-{len(self.visits)}-{name}")
            return name

    def end(self, name: str) -> None:
        """Forget a visit."""
        with self._lock:
            visit = self.visits.pop(name, None)
        if visit is not None:
            visit.forget()

    def judge(self, name: str, *, phantom: str | None, consent: bool) -> None:
        """Judge what a visit holds, one visit after the other.

        Raises:
            DataError: nothing was given, or a phantom that there is not.
        """
        visit = self.visits[name]
        if phantom is not None and phantom not in self.phantoms:
            raise DataError("there is no such phantom")
        if phantom is None and visit.uploads.count == 0:
            raise DataError("no file was given")
        folder = self.phantoms[phantom] if phantom is not None else None
        visit.stage = "reading"
        allowed = consent or phantom is not None
        self._judging.submit(visit.run, self.predictor, folder, phantom=allowed)

    def _sweep(self) -> None:
        """End visits that nobody looks at any more."""
        while not self._ended.wait(5.0):
            now = time.monotonic()
            for name, visit in list(self.visits.items()):
                if now - visit.seen_s > IDLE_S:
                    self.end(name)


def _phantoms(folder: Path | None) -> dict[str, Path]:
    """Phantom studies of a folder by the names that the page shows."""
    if folder is None or not folder.is_dir():
        return {}
    found = [p for p in sorted(folder.iterdir()) if is_safe_uid(p.name) and is_phantom_scan(p)]
    return {f"phantom {k}": place for k, place in enumerate(found[:20], start=1)}


class _Handler(BaseHTTPRequestHandler):
    """One request."""

    viewer: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "cspine", ""

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: addresses of files and visits are nobody's business."""

    def do_GET(self) -> None:
        """The page, what it loads, and the state of a visit."""
        self._answer(self._get)

    def do_POST(self) -> None:
        """Begin, judge or end a visit."""
        self._answer(self._post)

    def do_PUT(self) -> None:
        """One file of a visit."""
        self._answer(self._put)

    def _answer(self, work: Callable[[str, list[str], dict[str, str]], None]) -> None:
        address = urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(address.query).items()}
        parts = [unquote(part) for part in address.path.split("/") if part]
        host = (self.headers.get("Host") or "").rsplit(":", 1)[0]
        if host not in (HOST, "localhost"):
            return self._json({"error": "only from this machine"}, HTTPStatus.FORBIDDEN)
        try:
            work(address.path, parts, query)
        except (KeyError, IndexError, ValueError):
            self._send(HTTPStatus.NOT_FOUND, b'{"error": "there is no such thing"}')
        except CSpineError as error:
            self.close_connection = True  # what was not read of an upload must not be parsed
            self._json({"error": str(error)}, HTTPStatus.BAD_REQUEST)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _get(self, path: str, parts: list[str], query: dict[str, str]) -> None:
        if path == "/":
            text = files("cspine_kit.show.viewer").joinpath(PAGE).read_text()
            facts = {
                "secret": self.viewer.secret,
                "note": self.viewer.note,
                "phantoms": list(self.viewer.phantoms),
                "windows": list(WINDOWS),
            }
            shown = json.dumps(facts).replace("<", "\\u003c")
            self._send(HTTPStatus.OK, text.replace("/*FACTS*/{}", shown).encode(), "text/html")
        elif path == "/plotly.js":
            self._send(HTTPStatus.OK, plotly_script().encode(), "text/javascript", keep=True)
        elif parts[0] == "visits":
            visit = self._visit(parts[1], query)
            what = parts[2] if len(parts) > 2 else ""
            if not what:
                self._json(visit.state())
            elif what == "spine":
                self._send(HTTPStatus.OK, visit.spine(), "text/html")
            elif what == "download":
                self._send(HTTPStatus.OK, visit.download(), "application/zip")
            else:
                place, window = int(query.get("k", "0")), query.get("window", "bone")
                heat = query.get("heat", "1") == "1"
                self._send(HTTPStatus.OK, visit.picture(what, place, window, heat), "image/png")
        else:
            raise KeyError(path)

    def _post(self, path: str, parts: list[str], query: dict[str, str]) -> None:
        if path == "/visits":
            self._allow(query)
            self._json({"visit": self.viewer.begin()})
            return
        self._visit(parts[1], query)
        if parts[2] == "end":
            self.viewer.end(parts[1])
        elif parts[2] == "judge":
            self.viewer.judge(
                parts[1], phantom=query.get("phantom"), consent=query.get("consent") == "1"
            )
        else:
            raise KeyError(path)
        self._json({})

    def _put(self, path: str, parts: list[str], query: dict[str, str]) -> None:
        visit = self._visit(parts[1], query)
        length = int(self.headers["Content-Length"] or 0)
        visit.seen_s = time.monotonic()
        visit.uploads.take(query.get("name", "file"), self.rfile, length)
        self._json({"files": visit.uploads.count})

    def _allow(self, query: dict[str, str]) -> None:
        if not secrets.compare_digest(query.get("secret", ""), self.viewer.secret):
            raise DataError("this page is of an earlier start; load it anew")

    def _visit(self, name: str, query: dict[str, str]) -> Visit:
        self._allow(query)
        return self.viewer.visits[name]

    def _json(self, value: Any, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._send(status, json.dumps(value).encode(), "application/json")

    def _send(
        self, status: HTTPStatus, body: bytes, kind: str = "application/json", *, keep: bool = False
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "max-age=3600" if keep else "no-store")
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.end_headers()
        self.wfile.write(body)
