"""A pushed version proves itself, fails loudly where something is unusable, and bundles say what
they were born on."""

import json
import shutil
import zipfile
from pathlib import Path

import pytest
from cells_models import Failing, flip, sticky, two_devices

from cspine_kit.cli import main
from cspine_kit.core.errors import ArtifactError
from cspine_kit.core.runs import file_hash, read_json, write_json
from cspine_kit.infer import proof
from cspine_kit.infer.manifest import COPY, MANIFEST, PROOF
from cspine_kit.infer.origin import NOTE, origin_of, refuse_phantom_bundle
from cspine_kit.infer.proof import pack_study, prove, unpack_study


@pytest.fixture(name="own")
def _own(bundle, tmp_path) -> Path:
    """A bundle that may be damaged."""
    return Path(shutil.copytree(bundle, tmp_path / "bundle"))


@pytest.fixture(name="nothing")
def _nothing(tmp_path) -> Path:
    """A competition without images, as the public listing is."""
    (tmp_path / "competition").mkdir()
    return tmp_path / "competition"


def proved(competition: Path, bundle: Path, tmp_path: Path) -> tuple[list[str], dict]:
    """The faults, and the event that push reads."""
    out = tmp_path / "submission.csv"
    faults = prove(competition, bundle, out)
    [line] = (tmp_path / "kernel_log.jsonl").read_text().splitlines()
    return faults, json.loads(line)


def test_a_sound_bundle_proves_itself_on_the_phantom_and_the_public_folders(run, own, tmp_path):
    faults, event = proved(run / "competition", own, tmp_path)
    assert faults == [] and event["ok"] is True and event["studies"] == 5


def test_both_devices_must_work(own, nothing, tmp_path):
    with two_devices():
        assert proved(nothing, own, tmp_path)[0] == []
    (tmp_path / "kernel_log.jsonl").unlink()
    with two_devices(load=Failing(sticky)):
        faults, event = proved(nothing, own, tmp_path)
    assert event["ok"] is False and event["faults"] == faults
    assert any("device_lost gpu0" in fault and "illegal memory" in fault for fault in faults)


def test_a_damaged_weight_is_loud(own, nothing, tmp_path):
    flip(next(own.glob("*efficientnet__fold_1*weights*")))
    faults, _ = proved(nothing, own, tmp_path)
    assert any("efficientnet fold 1" in fault for fault in faults)


def test_a_public_folder_that_cannot_be_predicted_is_loud(own, nothing, tmp_path):
    folder = nothing / "test_images" / "1.2.3"
    folder.mkdir(parents=True)
    (folder / "1.dcm").write_bytes(b"nothing")
    faults, event = proved(nothing, own, tmp_path)
    assert len(faults) == 1 and faults[0].startswith("study 1.2.3 from priors: ")
    assert event["studies"] == 2


def test_a_gpu_that_torch_does_not_see_is_loud(own, nothing, tmp_path, monkeypatch):
    monkeypatch.setattr(proof, "GPU_DRIVER", tmp_path)
    faults, _ = proved(nothing, own, tmp_path)
    assert faults == ["there is a GPU here, but torch cannot use it"]


@pytest.mark.parametrize("harm", ["damaged", "absent"])
def test_without_a_sound_study_there_is_no_proof(own, nothing, tmp_path, harm):
    if harm == "damaged":
        flip(own / PROOF)
    else:
        listed = read_json(own / MANIFEST)
        del listed["files"][PROOF]
        write_json(own / MANIFEST, listed)
    faults, event = proved(nothing, own, tmp_path)
    assert len(faults) == 1 and PROOF in faults[0] and event["ok"] is False


def test_a_packed_study_comes_back_as_it_was(run, tmp_path):
    source = next((run / "competition" / "test_images").iterdir())
    for name in ("a.pack", "b.pack"):
        pack_study(source, tmp_path / name)
    assert file_hash(tmp_path / "a.pack") == file_hash(tmp_path / "b.pack")
    assert unpack_study(tmp_path / "a.pack", tmp_path / "images") == source.name
    back = tmp_path / "images" / source.name
    assert {p.name: p.read_bytes() for p in back.iterdir()} == {
        p.name: p.read_bytes() for p in source.iterdir()
    }


@pytest.mark.parametrize(
    "names",
    [["../1.dcm"], ["1.2/../../x"], ["1.2/1.dcm", "1.3/1.dcm"], ["1.2/a/b"], ["evil/1"], []],
)
def test_a_pack_of_something_else_is_refused(tmp_path, names):
    with zipfile.ZipFile(tmp_path / "x.pack", "w") as pack:
        for name in names:
            pack.writestr(name, b"x")
    with pytest.raises(ArtifactError, match="one small study"):
        unpack_study(tmp_path / "x.pack", tmp_path / "images")
    (tmp_path / "x.pack").write_bytes(b"no zip")
    with pytest.raises(ArtifactError, match="cannot be unpacked"):
        unpack_study(tmp_path / "x.pack", tmp_path / "images")


def set_origin(bundle: Path, origin: str) -> None:
    for name in (MANIFEST, MANIFEST + COPY):
        write_json(bundle / name, read_json(bundle / name) | {"origin": origin})


def test_a_bundle_born_on_phantoms_refuses_a_real_scan(run, own, tmp_path):
    assert origin_of(own) == "phantom" and origin_of(tmp_path) == ""
    phantom = next((run / "competition" / "test_images").iterdir())
    real = Path(shutil.copytree(phantom, tmp_path / "hospital" / "ct" / "1.2.3"))
    assert refuse_phantom_bundle(own, phantom, allowed=False) == NOTE
    with pytest.raises(ArtifactError, match=r"1\.2\.3 is no phantom, but .*--phantom-bundle"):
        refuse_phantom_bundle(own, real, allowed=False)
    assert refuse_phantom_bundle(own, real, allowed=True) == NOTE
    set_origin(own, "real")
    assert refuse_phantom_bundle(own, real, allowed=False) == ""


def test_the_kernel_marks_a_bundle_born_on_phantoms(run, own, tmp_path, capsys):
    arguments = ["kernel", "--competition", str(run / "competition"), "--bundle", str(own)]
    assert main([*arguments, "--out", str(tmp_path / "out" / "s.csv")]) == 0
    assert NOTE in capsys.readouterr().out
    log = (tmp_path / "out" / "kernel_log.jsonl").read_text()
    assert '"event": "origin"' in log and '"origin": "phantom"' in log


def test_a_run_by_hand_that_has_nothing_but_priors_is_an_error(run, nothing, tmp_path, capsys):
    listing = (run / "competition" / "test.csv").read_text()
    (nothing / "test.csv").write_text(listing)
    out = tmp_path / "out" / "s.csv"
    bundle = run / "oof" / "tiny" / "bundle"
    arguments = ["kernel", "--competition", str(nothing), "--bundle", str(bundle)]
    assert main([*arguments, "--out", str(out)]) == 1
    told = capsys.readouterr().err
    assert "the submission is written, but all of its 32 rows are priors" in told
    assert "there is no folder" in told
    assert len(out.read_text().splitlines()) == 33
