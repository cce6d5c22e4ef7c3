"""The whole chain on a tiny competition, through the doors a user takes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from chain import CHAIN, CONFIG, folder_of

from cspine_kit.cli import main
from cspine_kit.core.anatomy import LEVELS, TARGETS
from cspine_kit.core.tables import read_table
from cspine_kit.data.volumes.read import read_both
from cspine_kit.infer.chains.asking import alone
from cspine_kit.infer.chains.ensemble import Ensemble
from cspine_kit.infer.manifest import open_bundle
from cspine_kit.infer.run import run_kernel

ROOT = Path(__file__).resolve().parents[1]
MEMBERS = ("resnet", "efficientnet", "seven")
OUT_OF_FOLD = ("oof_slices", "oof_levels", "oof_studies")
HEARING = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from cspine_kit.cli import main
sys.exit(main(sys.argv[1:]))
"""
"""`cspine` that hears Ctrl-C: children of a background shell, as in CI, are started deaf to it."""


def side_by_side(folder: Path) -> Path:
    """Tasks in two processes, where the tiny chain takes them in turn."""
    config = folder / "configs" / "tiny.yaml"
    text = config.read_text()
    assert text.count("  jobs: 1 ") == 1
    config.write_text(text.replace("  jobs: 1 ", "  jobs: 2 "))
    return folder


def stamps(folder: Path) -> dict[str, int]:
    """Modification times of what a finished run must not touch again."""
    skip = ("run.json", "results.csv")
    return {
        str(p.relative_to(folder)): p.stat().st_mtime_ns
        for p in folder.rglob("*")
        if p.is_file() and p.name not in skip and "kernels" not in p.parts
    }


def test_the_chain_leaves_what_the_contracts_say(run):
    tables = run / "oof" / "tiny" / "tables"
    oof = read_table(tables / "oof_slices.parquet", "oof_slices")
    assert set(oof["member"]) == set(MEMBERS)
    assert oof["study_uid"].nunique() == 14
    levels = read_table(tables / "levels.parquet", "levels")
    assert (levels.groupby(["study_uid", "model_fold"]).size() == 7).all()
    tables_of = ("studies", "slices", "coarse", "fine", "vertebra", "features", "predictions")
    for name in (*tables_of, "oof_levels", "oof_studies"):
        assert len(read_table(tables / f"{name}.parquet", name)), name


def test_the_submission_is_valid_and_comes_from_the_models(run, capsys):
    submission = run / "submissions" / "tiny" / "submission.csv"
    truth = run / "competition" / "solution.csv"
    assert main(["score", str(submission), "--truth", str(truth), "--json"]) == 0
    score = json.loads(capsys.readouterr().out)
    assert score["n_studies"] == 4 and 0 < score["metric_per_exam"] < 2
    log = [json.loads(x) for x in submission.with_name("kernel_log.jsonl").read_text().splitlines()]
    assert [e["source"] for e in log if e["event"] == "study"] == ["image"] * 4
    assert log[0]["event"] == "priors_written" and log[-1]["event"] == "end"


def test_results_name_every_model_and_the_ledger_has_one_row(run, capsys, monkeypatch):
    monkeypatch.chdir(run)
    assert main(["score", *CONFIG]) == 0
    printed = capsys.readouterr().out
    table = pd.read_csv("submissions/tiny/results.csv").set_index("model")
    expected = {"best_constant", "visibility_weighted_mean", "resnet", "efficientnet", "seven"}
    assert expected | {"mean_of_members", "stack"} <= set(table.index)
    assert all(model in printed for model in table.index)
    columns = ["per_exam", "per_exam_fold_mean", "per_exam_fold_std", "global"]
    assert np.isfinite(table[columns].to_numpy()).all()
    assert np.isfinite(table.loc[list(expected), ["test_per_exam", "test_global"]]).all(axis=None)
    assert len(pd.read_csv("submissions/leaderboard.csv")) == 1
    assert main(["score", *CONFIG, "--json"]) == 0
    assert [row["model"] for row in json.loads(capsys.readouterr().out)] == list(table.index)
    assert main(["leaderboard"]) == 0
    assert "tiny" in capsys.readouterr().out


def test_a_second_run_finds_everything_done(run, monkeypatch):
    monkeypatch.chdir(run)
    before = stamps(run)
    for verb in CHAIN:
        assert main([verb, *CONFIG]) == 0
    assert stamps(run) == before


@pytest.mark.slow
def test_a_killed_run_side_by_side_ends_as_one_in_turn(run, tmp_path):
    """Interrupted and killed in three places, two processes make the bytes that one made."""
    folder = side_by_side(folder_of(tmp_path / "clone"))
    shutil.copytree(run / "competition", folder / "competition", copy_function=shutil.copy2)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    for attempt in range(3):
        oof = subprocess.Popen(
            [sys.executable, "-c", HEARING, "oof", *CONFIG],
            cwd=folder, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        wanted = [
            "cache/coarse/*.arrow",
            "models/vertebra/fold_0/checkpoint.pt",
            "models/resnet/fold_*/*.pt",
        ]
        deadline = time.monotonic() + 300  # where it hangs: idle cores need a tenth
        while not list((folder / "oof" / "tiny").glob(wanted[attempt])):
            assert oof.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        oof.send_signal(signal.SIGKILL if attempt % 2 else signal.SIGINT)
        assert oof.wait(60) != 0
    for verb in CHAIN[:4]:
        command = [sys.executable, "-m", "cspine_kit", verb, *CONFIG]
        subprocess.run(command, cwd=folder, env=env, check=True, capture_output=True)
    networks, files = ("vertebra", *MEMBERS), ("weights.safetensors", "slices.parquet")
    models = Path("oof/tiny/models")
    made = [models / n / f"fold_{k}" / file for n in networks for k in (0, 1) for file in files]
    made += [Path(f"oof/tiny/tables/{name}.parquet") for name in ("levels", *OUT_OF_FOLD)]
    made.append(Path("submissions/tiny/submission.csv"))
    assert [p for p in made if (folder / p).read_bytes() != (run / p).read_bytes()] == []


def kernel_on(
    run: Path, bundle: Path, folder: Path, uids: list[str], hours: float | None = None
) -> tuple[pd.Series, list]:
    """Run the kernel on a competition folder whose test.csv names `uids`; probabilities and log."""
    rows = [(f"{uid}_{t}", uid, t) for uid in uids for t in TARGETS]
    frame = pd.DataFrame(rows, columns=["row_id", "StudyInstanceUID", "prediction_type"])
    frame.to_csv(folder / "test.csv", index=False)
    run_kernel(folder, bundle, folder / "out" / "submission.csv", hours=hours)
    found = pd.read_csv(folder / "out" / "submission.csv").set_index("row_id")["fractured"]
    assert found.index.tolist() == frame["row_id"].tolist()
    assert found.between(0, 1, inclusive="neither").all()
    log = (folder / "out" / "kernel_log.jsonl").read_text().splitlines()
    return found, [json.loads(line) for line in log]


def test_bad_studies_cost_only_themselves(run, bundle, tmp_path):
    source = sorted((run / "competition" / "test_images").iterdir())
    good, short, torn, bad = "1.1", "1.3", "1.5", "1.7"
    images = tmp_path / "test_images"
    for uid in (good, short, torn):
        shutil.copytree(source[0], images / uid)
    kept = sorted((images / short).iterdir(), key=lambda p: int(p.stem))
    for path in kept[: len(kept) // 2] + kept[len(kept) // 2 + 3 :]:
        path.unlink()
    (images / torn / "7.dcm").write_bytes(b"not a dicom file")
    (images / bad).mkdir()
    (images / bad / "1.dcm").write_bytes(b"")
    (images / "1.9").mkdir()
    uids = [good, short, torn, bad, "1.9", "1.11", "../../etc", good]
    found, log = kernel_on(run, bundle, tmp_path, list(dict.fromkeys(uids)))
    by_study = {e["study_uid"]: e for e in log if "study_uid" in e}
    priors = json.loads((bundle / "priors.json").read_text())

    def is_prior(uid):
        return all(abs(found[f"{uid}_{t}"] - priors[t]) < 1e-7 for t in TARGETS)

    assert by_study[good]["source"] == "image" and not is_prior(good)
    alone, _ = kernel_on(run, bundle, tmp_path, [good])
    assert (alone == found[alone.index]).all()
    assert by_study[torn]["source"] == "image" and by_study[torn]["problems"]
    for uid in (bad, "1.9", "1.11", "../../etc"):
        assert is_prior(uid) and by_study[uid]["source"] == "priors"
        assert by_study[uid]["cause"]
    assert short in by_study
    assert next(e for e in log if e["event"] == "end")["studies"] == 7


def test_little_time_gives_less_effort_and_a_whole_submission(run, bundle, tmp_path, monkeypatch):
    """On a real clock: networks that would need 24 s for these studies, and 8 s."""
    source = sorted((run / "competition" / "test_images").iterdir())
    uids = [f"1.{i}" for i in range(24)]
    (tmp_path / "test_images").mkdir()
    for i, uid in enumerate(uids):
        (tmp_path / "test_images" / uid).symlink_to(source[i % len(source)])
    predict = Ensemble.predict

    def slow(self, volume, folder, effort):
        full = self.efforts[0]
        share = effort.folds * len(effort.members) / effort.stride
        time.sleep(share / (full.folds * len(full.members)))
        found = predict(self, volume, folder, effort)
        shares = dict.fromkeys(effort.members, share / 4 / len(effort.members))
        return replace(found, costs=replace(found.costs, members_s=shares))

    monkeypatch.setattr(Ensemble, "predict", slow)
    start = time.monotonic()
    _, log = kernel_on(run, bundle, tmp_path, uids, hours=8 / 3600)
    assert time.monotonic() - start < 20
    studies = [e for e in log if e["event"] == "study"]
    assert sorted(e["study_uid"] for e in studies) == sorted(uids)
    assert all(e["source"] in ("image", "header") for e in studies)
    less = [e for e in log if e["event"] == "degraded"]
    assert less or any("no time" in e.get("cause", "") for e in studies)


def test_a_damaged_weight_costs_its_model_and_says_why(run, bundle, tmp_path):
    broken = tmp_path / "bundle"
    shutil.copytree(bundle, broken)
    weights = next(broken.glob("*weights.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    uid = sorted((run / "competition" / "test_images").iterdir())[0].name
    shutil.copytree(run / "competition" / "test_images" / uid, tmp_path / "test_images" / uid)
    _, log = kernel_on(run, broken, tmp_path, [uid])
    assert [e["source"] for e in log if e["event"] == "study"] == ["image"]
    assert any(weights.name in e.get("cause", "") for e in log)


def test_kernel_and_out_of_fold_run_agree(run, bundle, tmp_path):
    """A training study through the kernel's path gives the very rows of the out-of-fold tables."""
    tables = run / "oof" / "tiny" / "tables"
    oof = {n: read_table(tables / f"{n}.parquet", n) for n in OUT_OF_FOLD}
    uid = oof["oof_slices"]["study_uid"].iloc[0]
    expected, *scores = (t[t["study_uid"] == uid].reset_index(drop=True) for t in oof.values())
    ensemble = Ensemble(open_bundle(bundle, tmp_path))
    folder = run / "competition" / "train_images" / uid
    volumes, _ = read_both(folder, ensemble.config.volumes, uid)
    batch = ensemble.config.kernel.batch_size
    slices, _, found = alone(ensemble.tables(volumes, folder), batch)
    fold = expected["fold"].iloc[0]
    slices = slices[slices["model_fold"] == fold]
    slices = slices.sort_values(["member", "position"], ignore_index=True)
    logits = [c for c in expected.columns if c.startswith(("vertebra_", "fracture_"))]
    assert slices["position"].tolist() == expected["position"].tolist()
    np.testing.assert_allclose(slices[logits], expected[logits], atol=1e-5)
    for here, there, logit in zip(
        (found.levels, found.studies), scores, ("fracture", "overall"), strict=True
    ):
        own = here[here["model_fold"] == fold]
        assert len(own) == len(there) > 0
        np.testing.assert_allclose(own[logit], there[logit], atol=1e-5)


def test_submit_py_gives_the_kernels_rows(run, bundle, tmp_path):
    inputs = tmp_path / "input"
    shutil.copytree(bundle, inputs / "datasets" / "me" / "bundle")
    slug = inputs / "competitions" / "rsna"
    slug.mkdir(parents=True)
    (slug / "test_images").symlink_to(run / "competition" / "test_images")
    shutil.copy(run / "competition" / "test.csv", slug)
    out = tmp_path / "working" / "submission.csv"
    out.parent.mkdir()
    env = {**os.environ, "CSPINE_INPUT": str(inputs), "CSPINE_OUT": str(out)}
    script = run / "kernels" / "submit" / "submit.py"
    command = [sys.executable, str(script)]
    done = subprocess.run(
        command, env=env, cwd=out.parent, capture_output=True, text=True, check=True
    )
    assert "installed cspine_kit" in done.stdout and "PROOF PASSED" in done.stdout
    here = pd.read_csv(run / "submissions" / "tiny" / "submission.csv").set_index("row_id")
    there = pd.read_csv(out).set_index("row_id")
    np.testing.assert_allclose(there.loc[here.index], here, atol=1e-5)


def test_levels_are_seven_and_drawn(run, bundle, tmp_path, capsys):
    folder = sorted((run / "competition" / "test_images").iterdir())[0]
    picture = tmp_path / "levels.png"
    arguments = ["levels", str(folder), "--bundle", str(bundle), "--json", "--png", str(picture)]
    assert main(arguments) == 0
    levels = json.loads(capsys.readouterr().out)["levels"]
    assert list(levels) == list(LEVELS)
    centers = [levels[level]["center_z_mm"] for level in LEVELS]
    assert centers == sorted(centers, reverse=True)
    assert any(level["in_scan"] for level in levels.values())
    for level in levels.values():
        ends = level["first_slice"], level["last_slice"]
        assert 0 <= ends[0] <= ends[1] if level["in_scan"] else ends == (None, None)
        assert 0 <= level["confidence"] <= 1
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_real_ct_gets_its_rows_from_the_models(bundle, run, tmp_path, real_data):
    uid = "1.2.826.0.1.3680043.1"
    (tmp_path / "test_images").mkdir()
    (tmp_path / "test_images" / uid).symlink_to(real_data / "head_neck_ct")
    _, log = kernel_on(run, bundle, tmp_path, [uid])
    study = next(e for e in log if e.get("study_uid") == uid)
    assert study["event"] == "study" and study["source"] == "image" and study["slices"] == 90


def test_the_real_listing_without_images_gets_its_three_rows(bundle, tmp_path, real_data):
    shutil.copy(real_data / "test.csv", tmp_path)
    report = run_kernel(tmp_path, bundle, tmp_path / "submission.csv")
    rows = pd.read_csv(tmp_path / "submission.csv")["row_id"].tolist()
    assert rows == pd.read_csv(real_data / "sample_submission.csv")["row_id"].tolist()
    assert report.sources == {"priors": 3}
    assert all("no folder" in cause for cause in report.causes.values())


def test_the_real_config_plans_and_names_what_to_download(tmp_path, monkeypatch, capsys):
    (tmp_path / "configs").mkdir()
    for name in ("base.yaml", "rsna2022.yaml"):
        shutil.copy(ROOT / "configs" / name, tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    assert main(["oof", "--config", "configs/rsna2022.yaml"]) == 1
    printed = capsys.readouterr()
    assert "GPU h" in printed.out and "GB" in printed.out
    assert "kaggle competitions download" in printed.err
