"""Bundles: what they hold, that they are the same twice, and everything they are refused for."""

import json
import os
import shutil
import threading
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from finished_run import Run, make_config, make_run, write_scores
from safetensors.torch import load_file, save_file

from cspine_kit import __version__
from cspine_kit.core.anatomy import TARGETS
from cspine_kit.core.errors import ArtifactError, ConfigError
from cspine_kit.core.metric import metric
from cspine_kit.core.runs import file_hash, read_json, write_json
from cspine_kit.core.tables import read_table
from cspine_kit.infer.manifest import FORMAT, lay_out, open_bundle, read_manifest, verify_bundle
from cspine_kit.ship.bundle.build import build_bundle, write_kernel_metadata
from cspine_kit.ship.bundle.wheelhouse import check_wheels, fill_wheelhouse, supported_tags
from cspine_kit.ship.kaggle import service
from cspine_kit.ship.kaggle.parcels import write_parcels
from cspine_kit.ship.rehearsal.inputs import layouts
from cspine_kit.ship.secrets import harmless, refuse_secrets

KIT_WHEEL = f"cspine_kit-{__version__}-py3-none-any.whl"
GDCM = "python_gdcm-3.2.6-{tag}-{tag}-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl"


@pytest.fixture(scope="module")
def built(tmp_path_factory, chain) -> Run:
    run = make_run(tmp_path_factory.mktemp("built"), chain)
    build_bundle(run.config, run.paths, run.paths.bundle, proof=run.proof)
    return run


@pytest.fixture
def run(tmp_path, chain) -> Run:
    """A finished run without a bundle: refusals come before anything is built."""
    return make_run(tmp_path, chain)


def build(run: Run) -> dict:
    return build_bundle(run.config, run.paths, run.paths.bundle, proof=run.proof)


def test_a_bundle_holds_every_file_with_its_hash_and_opens_as_a_tree(built, tmp_path):
    manifest = read_json(built.paths.bundle / "manifest.json")
    names = {p.name for p in built.paths.bundle.iterdir() if p.is_file()}
    copies = {f"{name}.copy" for name in ("manifest.json", "config.yaml", KIT_WHEEL)}
    assert names == {*manifest["files"], *copies, "manifest.json"}
    for name, entry in manifest["files"].items():
        path = built.paths.bundle / name
        assert (entry["sha256"], entry["bytes"]) == (file_hash(path), path.stat().st_size)
    assert manifest["score"] == {"model": "stack", "per_exam": 0.3, "global": 0.31}
    tree = open_bundle(built.paths.bundle, tmp_path)
    with pytest.raises(ArtifactError, match=r"opened in .* before; open .* in a new folder"):
        open_bundle(built.paths.bundle, tmp_path)
    weights = built.paths.model("vertebra", 1) / "weights.safetensors"
    same = tree / "models" / "vertebra" / "fold_1" / "weights.safetensors"
    assert same.read_bytes() == weights.read_bytes()


def test_weights_may_lie_in_a_dataset_of_their_own_and_count_by_their_hash(built, tmp_path):
    parcels = write_parcels(built.config, built.paths.bundle, tmp_path / "upload")
    weights, code = parcels
    assert {name.rpartition("__")[2] for name in weights.sizes} == {"weights.safetensors"}
    (tmp_path / "competition").mkdir()
    for name, layout in layouts(built.config, tmp_path / "competition", parcels).items():
        for place, folder in layout.items():
            (tmp_path / name / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(folder, tmp_path / name / place, dirs_exist_ok=True)
        [mounted] = (tmp_path / name).rglob(code.ref.rpartition("/")[2])
        tree = open_bundle(mounted, tmp_path / f"{name}_tree")
        assert len(list(tree.rglob("weights.safetensors"))) == len(weights.sizes)
    [older] = (tmp_path / "old").rglob(weights.ref.rpartition("/")[2])
    victim = older / next(iter(weights.sizes))
    victim.write_bytes(b"of another training")
    mounted = older.with_name(code.ref.rpartition("/")[2])
    faults = lay_out(mounted, tmp_path / "partial", wait_s=60.0, patience_s=60.0)
    [fault] = faults.values()
    assert f"{victim} is not what the manifest's hash says" in fault


def test_a_dozen_files_that_hang_cost_themselves(built, tmp_path, monkeypatch):
    """The disk below some files never answers: those behind them are looked at in time."""
    wanted = [n for n in read_manifest(built.paths.bundle)["files"] if not n.endswith(".whl")]
    hanging, never = set(wanted[:12]), threading.Event()

    def hashed(path):
        if path.name in hanging:
            never.wait(30.0)
        return file_hash(path)

    monkeypatch.setattr("cspine_kit.infer.manifest.file_hash", hashed)
    bundle, tree = built.paths.bundle, tmp_path / "tree"
    faults = lay_out(bundle, tree, wait_s=12.0, patience_s=6.0)
    assert set(faults.values()) == {"could not be read in time"}
    assert len(faults) == 12 and len(wanted) > 12
    assert len([p for p in tree.rglob("*") if p.is_file()]) == len(wanted) - 12
    never.set()


def test_the_same_run_gives_the_same_bytes_and_a_second_build_does_nothing(built, tmp_path):
    again = tmp_path / "again"
    build_bundle(built.config, built.paths, again, proof=built.proof)
    first = {p.name: file_hash(p) for p in built.paths.bundle.iterdir()}
    assert {p.name: file_hash(p) for p in again.iterdir()} == first
    before = {p: p.stat().st_mtime_ns for p in again.iterdir()}
    build_bundle(built.config, built.paths, again, proof=built.proof)
    assert {p: p.stat().st_mtime_ns for p in again.iterdir()} == before


def test_the_kits_wheel_holds_the_package_and_no_cache(built):
    with zipfile.ZipFile(built.paths.bundle / KIT_WHEEL) as wheel:
        names = wheel.namelist()
    assert "cspine_kit/infer/run.py" in names
    assert not [name for name in names if "__pycache__" in name or "tests/" in name]


def test_the_kernel_metadata_asks_for_what_the_competition_allows(built):
    write_kernel_metadata(built.config, built.kernel)
    path = built.kernel / "kernel-metadata.json"
    assert json.loads(path.read_text()) == {
        "id": "me/cspine-kit-tiny-submit",
        "title": "cspine kit tiny submit",
        "code_file": "submit.py",
        "language": "python",
        "kernel_type": "script",
        "is_private": True,
        "enable_gpu": True,
        "enable_tpu": False,
        "enable_internet": False,
        "machine_shape": "NvidiaTeslaT4",
        "docker_image_pinning_type": "original",
        "dataset_sources": ["me/cspine-kit-tiny-bundle", "me/cspine-kit-tiny-weights"],
        "competition_sources": ["rsna"],
        "kernel_sources": [],
        "model_sources": [],
    }
    with pytest.raises(ArtifactError, match=r"submit\.py is missing"):
        write_kernel_metadata(built.config, built.kernel.parent)


def test_a_model_that_saw_its_own_fold_does_not_travel(built, run):
    assert not list(built.paths.bundle.glob("*studies.json*")), "ids of training studies stay"
    folder = run.paths.model("vertebra", 1)
    learned = read_json(folder / "studies.json")
    write_json(folder / "studies.json", learned[1:])
    with pytest.raises(ArtifactError, match="another hash of its training studies"):
        build(run)
    write_json(folder / "studies.json", learned)
    folds = pd.read_csv(run.paths.folds, dtype=str)
    folds.loc[folds["study_uid"] == learned[0], "fold"] = "1"
    folds["group"] = folds["study_uid"]
    folds.to_csv(run.paths.folds, index=False)
    write_scores(run.paths, run.config)
    with pytest.raises(ArtifactError, match="learned from 1 studies of its own fold"):
        build(run)


@pytest.mark.parametrize("damage", ["changed", "missing", "added", "other copy"])
def test_a_bundle_that_changed_after_it_was_built_is_refused(built, tmp_path, damage):
    bundle = tmp_path / "bundle"
    shutil.copytree(built.paths.bundle, bundle)
    shutil.copy(built.paths.bundle.with_name("bundle.key"), tmp_path)
    victim = next(bundle.glob("*vertebra*weights.safetensors"))
    if damage == "changed":
        victim.write_bytes(victim.read_bytes()[:-1] + b"?")
    elif damage == "missing":
        victim.unlink()
    elif damage == "other copy":
        victim = bundle / "config.yaml.copy"
        victim.write_text("name: other\n")
    else:
        victim = bundle / "notes.txt"
        victim.write_text("mine")
    for check in (
        lambda: verify_bundle(bundle),
        lambda: build_bundle(built.config, built.paths, bundle, proof=built.proof),
    ):
        with pytest.raises(ArtifactError, match=victim.name):
            check()


GOOD = {"place": "a/b.json", "sha256": "0" * 64}
BROKEN_MANIFESTS = {
    "{}": "no manifest",
    "[1, 2]": "no manifest",
    "null": "no manifest",
    "[" * 100_000: "no manifest",
    '{"format": "x", "files": {}}': "not known",
    json.dumps({"format": FORMAT, "files": []}): "lists no files",
    json.dumps({"format": FORMAT, "files": {}}): "names no origin",
    json.dumps({"format": FORMAT, "files": {}, "origin": "moon"}): "names no origin",
    **{
        json.dumps({"format": FORMAT, "origin": "real", "files": files}): words
        for words, files in (
            ("no place or no sha256", {"b.json": None}),
            ("no place or no sha256", {"b.json": "text"}),
            ("no place or no sha256", {"b.json": {"place": "b.json"}}),
            ("no place or no sha256", {"b.json": {"place": 7, "sha256": "0"}}),
            ("lie outside", {"b.json": GOOD | {"place": "../b.json"}}),
            ("lie outside", {"b.json": GOOD | {"place": "/etc/passwd"}}),
            ("lie outside", {"b.json": GOOD | {"place": ""}}),
            ("lie outside", {"b.json": GOOD | {"place": "a\0b"}}),
            ("no plain file name", {"../b.json": GOOD}),
            ("no plain file name", {"": GOOD}),
            ("at one place", {"a.json": GOOD, "b.json": GOOD}),
        )
    },
}


@pytest.mark.parametrize("text", BROKEN_MANIFESTS, ids=range(len(BROKEN_MANIFESTS)))
def test_a_malformed_manifest_is_refused_in_words(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    (tmp_path / "scratch").mkdir()
    for opened in (
        lambda: verify_bundle(tmp_path),
        lambda: open_bundle(tmp_path, tmp_path / "scratch"),
        lambda: lay_out(tmp_path, tmp_path / "scratch", wait_s=1, patience_s=1),
    ):
        with pytest.raises(ArtifactError, match=BROKEN_MANIFESTS[text]):
            opened()


def test_a_manifest_with_random_injuries_is_sound_or_refused_in_words(built, tmp_path):
    data = (built.paths.bundle / "manifest.json").read_bytes()
    rng = np.random.default_rng(7)
    refused = 0
    for _ in range(300):
        text = bytearray(data)
        at = int(rng.integers(0, len(text)))
        if rng.random() < 0.5:
            text[at] ^= 1 << int(rng.integers(0, 8))
        else:
            del text[at : at + int(rng.integers(1, 200))]
        (tmp_path / "manifest.json").write_bytes(bytes(text))
        try:
            files = read_manifest(tmp_path)["files"]
        except ArtifactError:
            refused += 1
        else:
            assert all({"place", "sha256"} <= set(entry) for entry in files.values())
    assert 0 < refused < 300


def test_what_travels_is_a_list_and_names_no_training_study(built):
    """Everything but code and weights is text, and none of it holds a training id."""
    for name in ("scores.csv", "worth.csv", "operating.csv", "run.json"):
        assert (built.paths.stack / name).exists(), "it is there and must stay here"
    manifest = read_json(built.paths.bundle / "manifest.json")
    places = {entry["place"] for entry in manifest["files"].values()}
    stack = {place for place in places if place.startswith("stack/")}
    fixed = {"stack/models/stack.json", "stack/header/header.json", "stack/imputer.json"}
    fixed |= {"stack/external.json"}
    # Trees travel where they ship; on few studies a formula of the members may ship alone.
    assert fixed <= stack and all(place.endswith(".txt") for place in stack - fixed)
    rest = {place for place in places if not place.startswith(("stack/", "models/"))}
    assert rest == {KIT_WHEEL, "config.yaml", "priors.json", "chains.json", "proof.pack"}
    uids = set(read_table(built.paths.table("studies"), "studies")["study_uid"])
    for path in built.paths.bundle.iterdir():
        if ".whl" not in path.name and path.suffix not in (".safetensors", ".pack"):
            text = path.read_text()
            assert not [uid for uid in uids if uid in text], path.name


def test_a_bundle_says_what_it_was_born_on_and_what_each_chain_lost(built, tmp_path):
    manifest = read_json(built.paths.bundle / "manifest.json")
    assert (manifest["origin"], manifest["hours"]) == ("real", built.config.kernel.hours)
    losses = read_json(built.paths.bundle / "chains.json")
    assert set(losses) == {"0", "1"} and all(0 < loss < 5 for loss in losses.values())
    table = read_table(built.paths.table("predictions"), "predictions")
    labels = read_table(built.paths.table("studies"), "studies").set_index("study_uid")
    own = table[(table["model"] == "stack") & (table["fold"] == 1)]
    wide = own.pivot(index="study_uid", columns="target", values="prob")[list(TARGETS)]
    truth = labels.loc[wide.index, list(TARGETS)].to_numpy()
    assert losses["1"] == pytest.approx(metric(truth, wide.to_numpy(), "per_exam"))


def test_a_bundle_whose_weights_do_not_load_is_not_built(run):
    weights = run.paths.model("resnet", 1) / "weights.safetensors"
    weights.write_bytes((run.paths.model("efficientnet", 1) / "weights.safetensors").read_bytes())
    with pytest.raises(ArtifactError, match=r"resnet.*does not fit its model\.json"):
        build(run)
    weights.write_bytes(b"no weights")
    with pytest.raises(ArtifactError, match="does not load"):
        build(run)
    assert not run.paths.bundle.exists()


def test_a_bundle_whose_network_gives_no_numbers_is_not_built(run):
    path = run.paths.model("resnet", 1) / "weights.safetensors"
    state = {name: value.clone() for name, value in load_file(path).items()}
    next(v for v in state.values() if v.is_floating_point()).view(-1)[0] = float("nan")
    save_file(state, path)
    with pytest.raises(ArtifactError, match=r"networks do not run: .*resnet fold 1.*NaN"):
        build(run)


def test_no_bundle_of_another_configs_models(run):
    """The score is fresh, the models are not of this config: volumes of 2 mm, a kernel of 3 mm."""
    fine = run.config.volumes.fine.model_copy(update={"spacing_mm": 3.0})
    volumes = run.config.volumes.model_copy(update={"fine": fine})
    changed = Run(
        run.config.model_copy(update={"volumes": volumes}), run.paths, run.kernel, run.proof
    )
    with pytest.raises(
        ArtifactError, match=r"not made from this config.*: volumes.fine; run make oof"
    ):
        build(changed)
    assert not run.paths.bundle.exists()


def test_no_bundle_without_the_out_of_fold_score_of_this_very_run(run):
    scores = run.paths.stack / "scores.csv"
    write_scores(run.paths, run.config, per_exam=float("nan"))
    with pytest.raises(ArtifactError, match="not finite"):
        build(run)
    write_scores(run.paths, run.config, ships=False)
    with pytest.raises(ArtifactError, match="exactly one model that ships, it has 0"):
        build(run)
    write_scores(run.paths, run.config)
    scores.with_name("scores.csv.key").write_text("of another config\n")
    with pytest.raises(ArtifactError, match="of other tables or of another config"):
        build(run)
    scores.unlink()
    with pytest.raises(ArtifactError, match="out-of-fold score"):
        build(run)
    assert not run.paths.bundle.exists()


def test_no_bundle_without_every_model(run):
    (run.paths.model("resnet", 1) / "weights.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"resnet/fold_1/weights\.safetensors is missing"):
        build(run)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("imputer.json", '{"username": "me", "key": "0123456789abcdef0123456789abcdef"}'),
        ("external.json", "KAGGLE_API_TOKEN=KGAT_0123456789abcdef0123"),
    ],
)
def test_no_bundle_with_a_credential(run, name, text):
    (run.paths.stack / name).write_text(text)
    with pytest.raises(ArtifactError, match=r"credential") as error:
        build(run)
    assert name in str(error.value) and "0123456789abcdef" not in str(error.value)
    with pytest.raises(ArtifactError, match="credential file by its name"):
        refuse_secrets([run.paths.stack / "kaggle.json"])


def test_programs_that_need_no_credentials_see_none():
    seen = harmless(
        {"PATH": "/bin", "PIP_INDEX_URL": "u", "https_proxy": "p", "KAGGLE_KEY": "k"}
        | {"GITHUB_TOKEN": "t", "AWS_SECRET_ACCESS_KEY": "s", "PYTHONPATH": "x"}
    )
    assert set(seen) == {"PATH", "PIP_INDEX_URL", "https_proxy"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dataset": "short"}, r"bundle\.dataset 'short' has 5 characters, allowed are 6\.\.50"),
        ({"kernel": "k" * 51}, r"bundle\.kernel .* has 51 characters, allowed are 5\.\.50"),
        ({"dataset": "With Spaces"}, "lowercase letters and digits"),
        ({"kernel": "two--dashes"}, "joined by one dash"),
        ({"owner": "Me And You"}, "no Kaggle name"),
        ({"license": "apache2"}, "not a license of the service; there are .*apache-2.0"),
    ],
)
def test_names_that_the_service_would_refuse(run, changes, words):
    with pytest.raises(ConfigError, match=words):
        build(run.with_bundle(**changes))


def test_an_unknown_owner_is_fine_until_a_push():
    config = make_config(owner=None)
    service.check_names(config)
    with pytest.raises(ConfigError, match=r"bundle\.owner is not known"):
        service.check_owner(config)


def test_both_datasets_need_a_name_of_their_own():
    with pytest.raises(ConfigError, match=r"bundle\.weights and bundle\.dataset are both"):
        service.check_names(make_config(weights="cspine-kit-tiny-bundle"))


def test_limits_of_a_dataset():
    service.check_size({"a.txt": 10})
    with pytest.raises(ArtifactError, match="1001 files"):
        service.check_size({f"{i}.txt": 1 for i in range(1001)})
    with pytest.raises(ArtifactError, match=r"101\.0 GB.*largest files are big"):
        service.check_size({"small": 1, "big": 101 * 10**9})
    with pytest.raises(ArtifactError, match="may alter: a\\+b"):
        service.check_size({"a+b.txt": 1})


@pytest.mark.parametrize("wheels", [["python-gdcm"], ["python-gdcm>=3"], ["x==1; bad"]])
def test_a_wheel_must_be_pinned(wheels):
    with pytest.raises(ConfigError, match=r"bundle\.wheels"):
        make_config(wheels=wheels)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([GDCM.format(tag="cp312"), GDCM.format(tag="cp313")], None),
        (
            [GDCM.format(tag="cp312")],
            r"Python 3\.13 needs exactly one wheel of python-gdcm==3\.2\.6",
        ),
        ([GDCM.format(tag="cp311")], r"cp311.* fits none of bundle\.pythons \['3\.12', '3\.13'\]"),
        (["python_gdcm-3.2.6-cp312-cp312-win_amd64.whl"], "win_amd64.* fits none"),
        (["python_gdcm-3.2.6-cp312-cp312-manylinux_2_39_x86_64.whl"], "fits none.* glibc 2.35"),
        ([GDCM.format(tag="cp312").replace("3.2.6", "3.2.5")], "was not asked for"),
        (["gdcm-1.1-py3-none-any.whl"], "was not asked for"),
        (["python_gdcm-3.2.6-cp312.whl"], "no wheel name"),
        (
            [GDCM.format(tag="cp312"), "python_gdcm-3.2.6-cp312-abi3-manylinux_2_28_x86_64.whl"],
            r"Python 3\.12 needs exactly one",
        ),
    ],
)
def test_wheels_are_checked_against_the_target_pythons_by_their_tags(tmp_path, names, words):
    bundle = make_config(wheels=["python-gdcm==3.2.6"], hashes=[]).bundle
    for name in (KIT_WHEEL, *names):
        (tmp_path / name).touch()
    if words is None:
        check_wheels(bundle, tmp_path)
        return
    with pytest.raises(ArtifactError, match=words):
        check_wheels(bundle, tmp_path)


def test_supported_tags_follow_python_and_glibc():
    def tags(python: str, glibc: str) -> set[str]:
        return {str(tag) for tag in supported_tags(python, glibc)}

    assert {"cp312-cp312-manylinux_2_35_x86_64", "py3-none-any"} <= tags("3.12", "2.35")
    assert {"cp38-abi3-manylinux2014_x86_64"} <= tags("3.13", "2.35")
    assert "cp312-cp312-manylinux_2_35_x86_64" not in tags("3.12", "2.34")


def fake_wheel(folder: Path, tag: str) -> None:
    """The smallest wheel that pip takes for `somelib`."""
    info = "somelib-1.0.dist-info"
    with zipfile.ZipFile(folder / f"somelib-1.0-{tag}-{tag}-manylinux_2_28_x86_64.whl", "w") as w:
        w.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: somelib\nVersion: 1.0\n")
        w.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nTag: {tag}-{tag}-manylinux_2_28_x86_64\n")


def test_the_wheelhouse_gets_a_wheel_for_every_python_or_says_what_is_missing(
    tmp_path, monkeypatch
):
    index, house = tmp_path / "index", tmp_path / "house"
    for folder in (index, house):
        folder.mkdir()
    for name in [n for n in os.environ if n.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setattr(
        "cspine_kit.ship.bundle.wheelhouse._build_kit_wheel", lambda to: (to / KIT_WHEEL).touch()
    )
    bundle = make_config(wheels=["somelib==1.0"], hashes=[]).bundle
    fake_wheel(index, "cp312")
    with pytest.raises(ArtifactError, match=r"pip download failed: .*somelib==1\.0"):
        fill_wheelhouse(bundle, house)
    fake_wheel(index, "cp313")
    fill_wheelhouse(bundle, house)
    check_wheels(bundle, house)
    made = list(house.glob("somelib*.whl"))
    assert len(made) == 2
    hashes = [file_hash(wheel) for wheel in made]
    check_wheels(bundle.model_copy(update={"hashes": hashes}), house)
    with pytest.raises(ArtifactError, match=r"not the one that bundle\.hashes names: its SHA-256"):
        check_wheels(bundle.model_copy(update={"hashes": hashes[:1]}), house)


def test_a_folder_with_other_things_is_not_overwritten(run):
    run.paths.bundle.mkdir(parents=True)
    (run.paths.bundle / "mine.txt").touch()
    with pytest.raises(ArtifactError, match="not empty and is no finished bundle"):
        build(run)
    assert (run.paths.bundle / "mine.txt").exists()
