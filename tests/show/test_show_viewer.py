"""The viewer in a browser, from upload to result; and what it refuses."""

import contextlib
import io
import json
import shutil
import struct
import time
import urllib.error
import urllib.request
import zipfile

import pytest
from browser import chromium

from cspine_kit.core.anatomy import TARGETS
from cspine_kit.core.errors import DataError
from cspine_kit.data.reader.nifti import nifti_of
from cspine_kit.infer.judgment import USE
from cspine_kit.show.viewer import uploads as room
from cspine_kit.show.viewer.server import Server
from cspine_kit.show.viewer.uploads import Uploads

PATIENCE_S = 240.0
SECRET_NAME = "DOE^JANE"


@pytest.fixture(scope="module", name="server")
def _server(run):
    phantoms = run / "competition" / "test_images"
    with Server(run / "oof" / "tiny" / "bundle", port=0, phantoms=phantoms) as server:
        server.predictor()
        yield server


@pytest.fixture(scope="module", name="archive")
def _archive(run, tmp_path_factory):
    """A phantom as somebody's export: a .zip with a name in its tags, and a path that climbs."""
    import pydicom

    folder = min((run / "competition" / "test_images").iterdir())
    path = tmp_path_factory.mktemp("upload") / "export.zip"
    with zipfile.ZipFile(path, "w") as packed:
        for file in sorted(folder.iterdir()):
            data = pydicom.dcmread(file)
            data.PatientName = data.PatientID = SECRET_NAME
            buffer = io.BytesIO()
            data.save_as(buffer, enforce_file_format=True)
            packed.writestr(f"series/{file.name}", buffer.getvalue())
        packed.writestr("../../notes.txt", "not DICOM")
    return path


def wait_for(page, script: str):
    """What a script returns once that is something."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        if found := page.execute_script(f"return {script}"):
            return found
        time.sleep(0.2)
    raise AssertionError(f"nothing came of {script}: {page.execute_script('return last')}")


def asked(page) -> set[str]:
    """Hosts that the browser asked anything of."""
    found = set()
    for entry in page.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            url = message["params"]["request"]["url"]
            if url.startswith(("http", "ws")):
                found.add(url.split("/")[2])
    return found


def test_from_upload_to_result(server, archive, tmp_path):
    with chromium(tmp_path) as page:
        page.get(server.url)
        assert "phantoms" in page.find_element("id", "note").text
        page.execute_script("document.getElementById('agree').checked = true")
        page.find_element("id", "files").send_keys(str(archive))
        rows = wait_for(
            page, "last.result && [...document.querySelectorAll('#rows tr')].map(r => r.innerText)"
        )
        assert len(rows) == len(TARGETS) and rows[-1].startswith("patient")
        assert all("suspected" in row or "no threshold" in row for row in rows)
        told = page.find_element("id", "unreadable").text
        assert told.startswith("1 files could not be used: notes.txt")
        wait_for(
            page, "last.stage === 'done' && document.querySelector('#spine3d .js-plotly-plot')"
        )
        for name in ("levels", "slice"):
            assert wait_for(page, f"document.getElementById('{name}').naturalWidth > 100")
        first = page.execute_script("return document.getElementById('slice').src")
        page.execute_script(
            "document.getElementById('k').value = 3; document.getElementById('k').oninput()"
        )
        assert wait_for(page, f"document.getElementById('slice').src !== {json.dumps(first)}")
        text = page.execute_script("return document.body.innerText")
        assert "Not a medical device" in text and SECRET_NAME not in text
        assert asked(page) == {f"127.0.0.1:{server.port}"}
        errors = [e for e in page.get_log("browser") if e["level"] == "SEVERE"]
        assert not errors, errors
        page.find_element("id", "download").click()
        end = time.monotonic() + PATIENCE_S
        while not (tmp_path / "cspine.zip").exists() and time.monotonic() < end:
            time.sleep(0.2)
        with zipfile.ZipFile(tmp_path / "cspine.zip") as packed:
            names = set(packed.namelist())
            assert {"prediction.json", "explain.html", "heat.nii.gz", "README.txt"} <= names
            assert all(SECRET_NAME.encode() not in packed.read(name) for name in names)
            said = json.loads(packed.read("prediction.json"))
            assert said["study"] == "scan" and said["use"] == USE
        assert len(server.visits) == 1
        page.get("about:blank")
        end = time.monotonic() + 20.0
        while server.visits and time.monotonic() < end:
            time.sleep(0.1)
    assert not server.visits
    assert not [p for p in server.scratch.iterdir() if p.name.startswith("visit")]


def ask(server, path: str, method: str = "GET", body: bytes | None = None, **headers: str):
    """Status and JSON of a request, made as a page would."""
    mark = "&" if "?" in path else "?"
    url = f"{server.url.rstrip('/')}{path}{mark}secret={server.secret}"
    request = urllib.request.Request(url, body, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b"{}")


@pytest.fixture(name="visit")
def _visit(server):
    _, found = ask(server, "/visits", "POST")
    yield f"/visits/{found['visit']}"
    ask(server, f"/visits/{found['visit']}/end", "POST")


def finished(server, visit: str) -> dict:
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        _, state = ask(server, visit)
        if state["stage"] in ("done", "failed"):
            return state
        time.sleep(0.1)
    raise AssertionError(f"not finished: {state}")


def test_a_phantom_can_be_picked(server, visit):
    assert ask(server, f"{visit}/judge?phantom=phantom%201", "POST")[0] == 200
    state = finished(server, visit)
    assert state["stage"] == "done" and len(state["result"]["rows"]) == len(TARGETS)
    assert ask(server, f"{visit}/judge?phantom=/etc", "POST")[0] == 400


def test_a_phantom_bundle_says_so_before_any_number(server, visit, archive):
    body = archive.read_bytes()
    assert ask(server, f"{visit}/files?name=x.zip", "PUT", body)[1]["files"] > 10
    ask(server, f"{visit}/judge", "POST")
    state = finished(server, visit)
    assert state["stage"] == "failed" and "never saw a real fracture" in state["cause"]
    assert state["result"] is None


def test_requests_from_elsewhere_are_refused(server, visit):
    assert ask(server, visit, Host="evil.example")[0] == 403
    url = f"{server.url.rstrip('/')}{visit}?secret=guess"
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(url, timeout=30)
    assert refused.value.code == 400
    refused.value.close()
    assert server.url.startswith("http://127.0.0.1:")
    assert ask(server, "/visits/none")[0] == 404 and ask(server, "/etc/passwd")[0] == 404
    for _ in range(5):
        status, found = ask(server, "/visits", "POST")
    assert status == 400 and "visits are open" in found["error"]
    for name in list(server.visits):
        if not visit.endswith(name):
            server.end(name)


def archived(*files: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in files:
            packed.writestr(name, content)
    return buffer.getvalue()


def take(uploads: Uploads, name: str, body: bytes) -> None:
    uploads.take(name, io.BytesIO(body), len(body))


def test_paths_of_an_archive_lead_nowhere(tmp_path):
    uploads = Uploads(tmp_path / "in" / "visit")
    body = archived(("../../out.dcm", b"a"), ("/abs.dcm", b"b"), ("..\\win.dcm", b"c"))
    take(uploads, "../../x.zip", body)
    assert sorted(p.name for p in uploads.folder.iterdir()) == [f"{k:05d}.dcm" for k in (1, 2, 3)]
    assert sorted(uploads.names.values()) == ["abs.dcm", "out.dcm", "win.dcm"]
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_a_nifti_file_keeps_what_the_reader_knows_it_by(tmp_path):
    for name, ending in (
        ("../Doe Jane.NII.gz", ".nii.gz"),
        ("neck.nii", ".nii"),
        ("a.IMA", ".dcm"),
    ):
        uploads = Uploads(tmp_path / ending)
        take(uploads, name, b"x")
        assert [p.name for p in uploads.folder.iterdir()] == [f"00001{ending}"]
        assert (nifti_of(uploads.folder) is None) == (ending == ".dcm")


def test_bombs_and_crowds_are_refused(tmp_path, monkeypatch):
    bomb = archived(("bomb.dcm", bytes(300 << 20)))
    with pytest.raises(DataError, match="far more than any scan"):
        take(Uploads(tmp_path / "a"), "bomb.zip", bomb)
    many = archived(*((f"{k}.dcm", b"x") for k in range(9)))
    with pytest.raises(DataError, match="8 files"):
        take(Uploads(tmp_path / "b", most_files=8), "many.zip", many)
    small = Uploads(tmp_path / "c", most_bytes=1000)
    take(small, "1.dcm", bytes(600))
    with pytest.raises(DataError, match="too large"):
        take(small, "2.dcm", bytes(600))
    nested = archived(("inner.zip", many), ("1.dcm", b"x"))
    inner = Uploads(tmp_path / "d")
    take(inner, "nested.zip", nested)
    assert inner.count == 1
    with pytest.raises(DataError, match=r"no sound \.zip"):
        take(Uploads(tmp_path / "e"), "x.zip", b"PK nothing")
    with pytest.raises(DataError, match="broke off"):
        Uploads(tmp_path / "f").take("1.dcm", io.BytesIO(b"half"), 100)
    assert not list(tmp_path.rglob("archive"))


def test_an_archive_that_lies_about_its_sizes_gives_no_more(tmp_path):
    """The directory says ten bytes, the stream holds 64 MB."""
    body = bytearray(archived(("1.dcm", bytes(64 << 20))))
    at = body.rindex(b"PK\x01\x02")
    body[at + 24 : at + 28] = struct.pack("<I", 10)
    uploads = Uploads(tmp_path / "a")
    with contextlib.suppress(DataError):
        take(uploads, "x.zip", bytes(body))
    taken = [p.stat().st_size for p in uploads.folder.iterdir()]
    assert sum(taken) <= room.BLOCK
    shutil.rmtree(uploads.folder)
