"""A Kaggle service on loopback, small but with a memory: what the real client needs in a push.

Datasets have versions that become ready after some questions, kernels have sessions that run the
newest version and print which bundle they mounted, and any request can be made to fail: refused,
answered wrongly, cut off before or after it was served. `requests` lists every call in order.
"""

import base64
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

USER, KEY = "me", "0123456789abcdef0123456789abcdef"
PAGE = 15
"""Files of a dataset per page of their list."""

OUTPUT_PAGE = 20
"""Files of a session's output per page."""

CUT_BEFORE, CUT_AFTER = "cut before", "cut after"
"""Faults: the connection ends before, or after, the request was served."""


@dataclass
class Fault:
    """The next `times` requests of one kind go wrong: cut off, or answered with this."""

    what: object
    times: int = 1


@dataclass
class KaggleServer:
    """Start with `with KaggleServer() as server:`; point the client at it with `environment`."""

    ready_after: int = 0
    session: tuple[str, ...] = ("COMPLETE",)
    failure: str = ""
    submission: bytes = b"row_id,fractured\n1.2.3_C1,0.1\n1.2.3_patient_overall,0.4\n"
    events: list[dict] = field(
        default_factory=lambda: [
            {"event": "end", "time": 1.0, "studies": 1, "sources": {"priors": 1}},
            {"event": "proof", "time": 2.0, "ok": True, "studies": 4, "faults": []},
        ]
    )
    """The kernel's own log."""
    faults: dict[str, Fault] = field(default_factory=dict)
    """By method name of the service; an upload is `PUT <file name>`."""
    requests: list[tuple[str, dict]] = field(default_factory=list)
    datasets: dict[str, list[dict[str, bytes]]] = field(default_factory=dict)
    scored: dict[str, str] = field(default_factory=dict)
    """Status and scores of every submission; PENDING without."""
    kernels: dict[str, list[dict]] = field(default_factory=dict)
    work: Callable[[dict], dict[str, bytes]] | None = None
    """What a session leaves, from what was saved; by default a submission and its log."""
    left: dict[str, dict[str, bytes]] = field(default_factory=dict)
    submissions: list[dict] = field(default_factory=list)
    blobs: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    waiting: int = 0
    step: int = 0
    shown: str = "COMPLETE"
    stale: int = 0
    stale_after: int = 0
    """For so many questions after a push the service still shows the session before it."""

    def environment(self, home: Path) -> dict[str, str]:
        """What sends the real client here, unpatched (and any stray TLS call into a refusal)."""
        home.mkdir(parents=True, exist_ok=True)
        return {
            "HOME": str(home),
            "KAGGLE_CONFIG_DIR": str(home / ".kaggle"),
            "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
            "http_proxy": self.base,
            "https_proxy": self.base,
            "no_proxy": "",
            "KAGGLE_USERNAME": USER,
            "KAGGLE_KEY": KEY,
        }

    def count(self, rpc: str) -> int:
        """How often one kind of request came."""
        return sum(name == rpc for name, _ in self.requests)

    # ---- transport ---------------------------------------------------------------------------

    def __enter__(self) -> "KaggleServer":
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments: object) -> None:
                pass

            def serve(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                path = urlsplit(self.path).path
                rpc = path.rsplit("/", 1)[-1]
                if self.command == "PUT":
                    rpc = f"PUT {server.blobs[rpc][0]}"
                fault = server.take_fault(rpc)
                if fault == CUT_BEFORE:
                    self.close_connection = True
                    self.connection.close()
                    return
                status, answer = server.answer(self.command, path, body, self.headers)
                if fault == CUT_AFTER:
                    self.close_connection = True
                    self.connection.close()
                    return
                if isinstance(fault, tuple):
                    status, answer = fault
                data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                kind = "octet-stream" if isinstance(answer, bytes) else "json"
                self.send_response(status)
                self.send_header("Content-Type", f"application/{kind}")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PUT = do_CONNECT = serve

        self.httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.httpd.daemon_threads = True
        self.base = f"http://127.0.0.1:{self.httpd.server_address[1]}"
        serve = threading.Thread(target=self.httpd.serve_forever, args=(0.02,), daemon=True)
        serve.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.httpd.shutdown()
        self.httpd.server_close()

    def take_fault(self, rpc: str) -> object:
        """The fault that hits this request, if one does."""
        fault = self.faults.get(rpc)
        if fault is None or fault.times == 0:
            return None
        fault.times -= 1
        return fault.what

    def answer(self, method: str, path: str, body: bytes, headers) -> tuple[int, object]:
        """Serve one request."""
        if method == "CONNECT":
            self.requests.append(("CONNECT", {"path": path}))
            return 403, {"code": 403, "message": "no TLS here"}
        if method == "PUT":
            token = path.rsplit("/", 1)[-1]
            self.requests.append(("PUT", {"token": token}))
            self.blobs[token] = (self.blobs[token][0], body)
            return 200, {}
        if method == "GET":
            owner, slug, number = path.rsplit("/", 3)[-3:]
            name = self.output_names(f"{owner}/{slug}")[int(number)]
            self.requests.append(("GET", {"name": name}))
            return 200, self.outputs(f"{owner}/{slug}")[name]
        rpc, asked = path.rsplit("/", 1)[-1], json.loads(body or b"{}")
        self.requests.append((rpc, asked))
        login = "Basic " + base64.b64encode(f"{USER}:{KEY}".encode()).decode()
        if headers.get("Authorization") != login:
            return 401, {"code": 401, "message": "Unauthenticated"}
        return getattr(self, rpc)(asked)

    # ---- datasets ------------------------------------------------------------------------------

    def StartBlobUpload(self, asked: dict) -> tuple[int, object]:
        token = f"blob{len(self.blobs)}"
        self.blobs[token] = (asked["name"], b"")
        return 200, {"token": token, "createUrl": f"{self.base}/upload/{token}"}

    def _version(self, files: list[dict]) -> dict[str, bytes]:
        self.waiting = self.ready_after
        return dict(self.blobs[file["token"]] for file in files)

    def CreateDataset(self, asked: dict) -> tuple[int, object]:
        ref = f"{asked['ownerSlug']}/{asked['slug']}"
        self.datasets[ref] = [self._version(asked["files"])]
        return 200, {"status": "ok", "url": f"https://kaggle/{ref}"}

    def CreateDatasetVersion(self, asked: dict) -> tuple[int, object]:
        ref = f"{asked['ownerSlug']}/{asked['datasetSlug']}"
        self.datasets[ref].append(self._version(asked["body"]["files"]))
        return 200, {"status": "ok", "url": f"https://kaggle/{ref}"}

    def _dataset(self, asked: dict) -> list[dict[str, bytes]] | None:
        return self.datasets.get(f"{asked['ownerSlug']}/{asked['datasetSlug']}")

    def GetDatasetStatus(self, asked: dict) -> tuple[int, object]:
        if self._dataset(asked) is None:
            return 404, {"code": 404, "message": "Not found"}
        self.waiting = max(0, self.waiting - 1)
        return 200, {"status": "BLOBS_RECEIVED" if self.waiting else "READY"}

    def GetDataset(self, asked: dict) -> tuple[int, object]:
        versions = self._dataset(asked)
        assert versions is not None
        return 200, {"currentVersionNumber": len(versions)}

    def ListDatasetFiles(self, asked: dict) -> tuple[int, object]:
        versions = self._dataset(asked)
        assert versions is not None
        made, files = "2026-01-02T03:04:05.000Z", list(versions[-1].items())
        start = int(asked.get("pageToken") or 0)
        listed = files[start : start + PAGE]
        return 200, {
            "datasetFiles": [
                {"name": name, "totalBytes": len(data), "creationDate": made}
                for name, data in listed
            ],
            "nextPageToken": str(start + PAGE) if start + PAGE < len(files) else None,
        }

    # ---- kernels -------------------------------------------------------------------------------

    def SaveKernel(self, asked: dict) -> tuple[int, object]:
        self.kernels.setdefault(asked["slug"], []).append(asked)
        if self.work is not None:
            self.left[asked["slug"]] = self.work(asked)
        self.step, self.stale = 0, self.stale_after
        number = len(self.kernels[asked["slug"]])
        return 200, {"url": f"https://kaggle/{asked['slug']}", "versionNumber": number}

    def GetKernelSessionStatus(self, asked: dict) -> tuple[int, object]:
        if f"{asked['userName']}/{asked['kernelSlug']}" not in self.kernels:
            return 403, {"code": 403, "message": "Permission 'kernels.get' was denied"}
        if self.stale:
            self.stale -= 1
            return 200, {"status": self.shown}
        status = self.shown = self.session[min(self.step, len(self.session) - 1)]
        self.step += 1
        return 200, {
            "status": status,
            **({"failureMessage": self.failure} if status == "ERROR" else {}),
        }

    def GetKernel(self, asked: dict) -> tuple[int, object]:
        ref = f"{asked['userName']}/{asked['kernelSlug']}"
        saved = self.kernels[ref][-1]
        common = {"language": saved["language"], "kernelType": saved["kernelType"]}
        settings = ("isPrivate", "enableGpu", "enableInternet", "machineShape")
        settings = tuple(name for name in settings if name in saved)
        return 200, {
            "metadata": {
                **{name: saved[name] for name in settings},
                **common,
                **{"id": 1, "ref": ref, "title": saved["newTitle"]},
                "competitionDataSources": saved.get("competitionDataSources", []),
            },
            "blob": {"source": saved["text"], "slug": asked["kernelSlug"], **common},
        }

    def outputs(self, ref: str) -> dict[str, bytes]:
        """What the kernel's session left in /kaggle/working."""
        if self.work is not None:
            return self.left[ref]
        log = "".join(json.dumps(event) + "\n" for event in self.events)
        return {"submission.csv": self.submission, "kernel_log.jsonl": log.encode()}

    def output_names(self, ref: str) -> list[str]:
        """Names in the list of a session's output; one of them must not be written to."""
        return [*self.outputs(ref), "../../outside.txt"]

    def ListKernelSessionOutput(self, asked: dict) -> tuple[int, object]:
        ref = f"{asked['userName']}/{asked['kernelSlug']}"
        start = int(asked.get("pageToken") or 0)
        names = self.output_names(ref)
        shown = list(enumerate(names))[start : start + OUTPUT_PAGE]
        mounted = [
            versions[-1]["manifest.json"]
            for versions in self.datasets.values()
            if "manifest.json" in versions[-1]
        ]
        session = sum(map(len, self.kernels.values())) - bool(self.stale)
        told = f"session {session}\n" + "".join(
            f"bundle manifest {hashlib.sha256(m).hexdigest()}\n" for m in mounted
        )
        return 200, {
            "files": [{"url": f"{self.base}/files/{ref}/{k}", "fileName": n} for k, n in shown],
            "nextPageToken": str(start + OUTPUT_PAGE) if start + OUTPUT_PAGE < len(names) else None,
            "log": json.dumps([{"stream_name": "stdout", "time": 1.0, "data": told}]),
        }

    # ---- submissions ---------------------------------------------------------------------------

    def CreateCodeSubmission(self, asked: dict) -> tuple[int, object]:
        self.submissions.append(asked)
        return 200, {"message": "Successfully submitted to the competition", "ref": 1}

    def GetSubmissionLimits(self, asked: dict) -> tuple[int, object]:
        return 200, {"numToday": 1, "numAllowedNow": 4}

    def ListSubmissions(self, asked: dict) -> tuple[int, object]:
        return 200, {
            "submissions": [
                {
                    "ref": 1,
                    "date": "2026-01-02T03:04:05.000Z",
                    "status": self.scored.get("status", "PENDING"),
                    **{k: v for k, v in self.scored.items() if k != "status"},
                    "fileName": row["fileName"],
                    "description": row["submissionDescription"],
                }
                for row in self.submissions
            ]
        }


@contextmanager
def lone_server(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KaggleServer]:
    """The service, and an environment in which the client finds it and nothing else."""
    for name in list(os.environ):
        if name.upper().startswith("KAGGLE_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    with KaggleServer() as service:
        for name, value in service.environment(home).items():
            monkeypatch.setenv(name, value)
        yield service
        assert service.count("CONNECT") == 0
