"""The offline Kaggle dataset: everything the kernel needs in one flat folder, each file hashed.

In: a finished run (`make oof`, `make stack`), one phantom study. Out: the bundle folder with
`manifest.json` and `dataset-metadata.json`, and `kernels/submit/kernel-metadata.json`. Example::

    manifest = build_bundle(config, paths, paths.bundle, proof=folder)
    manifest["score"], sum(sizes_of(paths.bundle).values())

What travels is a list, not a folder: nothing that names a training study is on it. The folder is
flat because the kaggle client skips sub-folders; the manifest maps flat names back.
"""

import csv
import math
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cspine_kit import __version__
from cspine_kit.core.anatomy import TARGETS
from cspine_kit.core.config import Config, PhantomConfig, resolved_yaml
from cspine_kit.core.errors import ArtifactError
from cspine_kit.core.metric import best_constant, metric
from cspine_kit.core.paths import RunPaths
from cspine_kit.core.resolved import changed
from cspine_kit.core.runs import (
    file_hash,
    fingerprint,
    is_fresh,
    publish,
    read_json,
    stored_key,
    write_json,
)
from cspine_kit.core.tables import read_table
from cspine_kit.data.confidence import FILE as CALIBRATION
from cspine_kit.data.folds import load_folds
from cspine_kit.data.labels import training_labels
from cspine_kit.infer.manifest import (
    CHAINS,
    COPY,
    FORMAT,
    MANIFEST,
    PRIORS,
    PROOF,
    open_bundle,
    verify_bundle,
)
from cspine_kit.ship.kaggle.service import (
    CODE_FILE,
    KERNEL_METADATA,
    check_names,
    kernel_metadata,
)
from cspine_kit.vision.names import MODEL_FILE, VERTEBRA, WEIGHTS_FILE
from cspine_kit.vision.oof.lineage import check_lineages

SEPARATOR = "__"
KIT_WHEEL = "cspine_kit"

PROOF_PHANTOM = PhantomConfig(
    studies=1, test_studies=1, size_px=96, difficulty="easy", masked=0, boxed=0, seed=41
)
"""The competition whose test study travels: the kernel proves itself on it after a push."""


def _priors(config: Config, paths: RunPaths) -> dict[str, float]:
    """The best constant on all training labels: what is predicted where nothing else can be."""
    labels = training_labels(read_table(paths.table("studies"), "studies"))
    constant = best_constant(labels[list(TARGETS)].to_numpy(), config.stack.form)
    return {target: float(p) for target, p in zip(TARGETS, constant, strict=True)}


def _score(config: Config, paths: RunPaths) -> dict[str, Any]:
    """Out-of-fold score of the model that ships, of this run's tables and stack settings.

    Raises:
        ArtifactError: no score, no finite one, or one of other tables or another config.
    """
    from cspine_kit.stack.pipeline import stack_key

    scores = paths.stack / "scores.csv"
    if not scores.exists():
        raise ArtifactError(
            f"{scores} is missing: a bundle needs its out-of-fold score (make stack)"
        )
    if not is_fresh(scores, stack_key(config, paths)):
        raise ArtifactError(
            f"{scores} is the score of other tables or of another config; run make stack again"
        )
    with scores.open(newline="") as handle:
        shipped = [row for row in csv.DictReader(handle) if row.get("ships") == "True"]
    try:
        [row] = shipped
        values = {form: float(row[form] or "nan") for form in ("per_exam", "global")}
    except (KeyError, ValueError) as error:
        raise ArtifactError(
            f"{scores} must score exactly one model that ships, it has {len(shipped)} "
            f"({error}); run make stack again"
        ) from error
    if not all(math.isfinite(value) for value in values.values()):
        raise ArtifactError(f"{scores}: the score of {row['model']} is not finite: {values}")
    return {"model": row["model"], **values}


def _chain_losses(config: Config, paths: RunPaths, ships: str) -> dict[str, float]:
    """Out-of-fold loss of what ships by fold: which chains are kept where time is short.

    Raises:
        ArtifactError: no out-of-fold predictions of the model that ships.
    """
    from cspine_kit.stack.scores.baselines import wide_predictions

    path = paths.table("predictions")
    if not path.exists():
        raise ArtifactError(f"{path} is missing: run make stack first")
    table = read_table(path, "predictions")
    probs = wide_predictions(table, ships)
    fold = table.drop_duplicates("study_uid").set_index("study_uid")["fold"].loc[probs.index]
    labels = training_labels(read_table(paths.table("studies"), "studies"))
    truth = labels.set_index("study_uid")[list(TARGETS)].loc[probs.index].to_numpy()
    values, form = probs.to_numpy(), config.stack.form
    of = {k: (fold == k).to_numpy() for k in sorted(set(fold))}
    return {str(k): float(metric(truth[rows], values[rows], form)) for k, rows in of.items()}


def _boosters(value: Any) -> Iterator[str]:
    """Names of all booster files in a saved stack."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from map(str, part) if key == "boosters" else _boosters(part)


def _contents(config: Config, paths: RunPaths) -> dict[str, Path]:
    """Files of the run that travel, by their place in the bundle's tree.

    Raises:
        ArtifactError: one of them is missing.
    """
    networks = (*config.stage, *config.members)
    kept = [(network, name) for network in networks for name in (MODEL_FILE, WEIGHTS_FILE)]
    files = {
        f"models/{network}/fold_{fold}/{name}": paths.model(network, fold) / name
        for network, name in (*kept, (VERTEBRA, CALIBRATION))
        for fold in range(config.folds.n)
    }
    for source in files.values():
        if not source.exists():
            raise ArtifactError(f"{source} is missing: run make oof first")
    names = ["imputer.json", "external.json"]
    for index in ("models/stack.json", "header/header.json"):
        if not (paths.stack / index).exists():
            raise ArtifactError(f"{paths.stack / index} is missing: run make stack first")
        folder = index.split("/")[0]
        boosters = sorted(set(_boosters(read_json(paths.stack / index))))
        names += [index, *(f"{folder}/{name}" for name in boosters)]
    files |= {f"stack/{name}": paths.stack / name for name in names}
    for source in files.values():
        if not source.exists():
            raise ArtifactError(f"{source} is missing: run make stack first")
    return files


def check_models(bundle: Path) -> None:
    """Load everything of a bundle and run every network once, on the CPU.

    Raises:
        ArtifactError: a file cannot be loaded, or a network gives no finite numbers; names it.
    """
    from cspine_kit.infer.chains.ensemble import Ensemble

    with tempfile.TemporaryDirectory() as scratch:
        try:
            faults = Ensemble(open_bundle(bundle, Path(scratch)), "cpu").check()
        except ArtifactError:
            raise
        except Exception as error:
            raise ArtifactError(
                f"bundle {bundle} does not load: {type(error).__name__}: {error}"
            ) from error
    if faults:
        raise ArtifactError(f"bundle {bundle}: networks do not run: {faults}")


def _travelling(config: Config, paths: RunPaths) -> Config:
    """The config of what ships: the members that the stack kept, and nothing that names training
    studies or files of this machine.

    Raises:
        ArtifactError: there is no stack.
    """
    saved = paths.stack / "models" / "stack.json"
    if not saved.exists():
        raise ArtifactError(f"{saved} is missing: run make stack first")
    kept = read_json(saved)["members"]
    members = {name: model for name, model in config.members.items() if name in kept}
    folds = config.folds.model_copy(update={"file": None})
    return config.model_copy(update={"exclude": {}, "folds": folds, "members": members})


def build_bundle(config: Config, paths: RunPaths, out: Path, *, proof: Path) -> dict[str, Any]:
    """Write the bundle unless it is there with the same content; returns its manifest.

    Args:
        config: of the run.
        paths: its folder.
        out: the bundle.
        proof: folder of the phantom study that travels, of `PROOF_PHANTOM`.

    Raises:
        ArtifactError: the run is not finished, is another config's or has no out-of-fold score, a
            model does not load or cannot prove that it never saw its fold, a wheel cannot be had or
            does not fit, a file looks like a credential, or the bundle that is there was changed.
        ConfigError: a name or license the service would refuse.
    """
    from cspine_kit.infer.proof import pack_study
    from cspine_kit.ship.bundle.wheelhouse import (
        SOURCE_ROOT,
        check_wheels,
        fill_wheelhouse,
        kit_sources,
    )
    from cspine_kit.ship.secrets import refuse_secrets

    check_names(config)
    score = _score(config, paths)
    if older := changed(config, paths):
        raise ArtifactError(
            f"{paths.root} was not made from this config, or not to its end: {', '.join(older)}; "
            "run make oof and make stack again"
        )
    travels = _travelling(config, paths)
    files, priors = _contents(travels, paths), _priors(config, paths)
    folds = load_folds(paths.folds)
    fold_of = dict(zip(folds["study_uid"], folds["fold"], strict=True))
    check_lineages(paths, [*travels.stage, *travels.members], fold_of)
    chains = _chain_losses(config, paths, score["model"])
    refuse_secrets([*files.values(), *kit_sources()])
    sources = {str(p.relative_to(SOURCE_ROOT)): file_hash(p) for p in kit_sources()}
    held = {place: file_hash(path) for place, path in files.items()}
    packed = {path.name: file_hash(path) for path in sorted(proof.iterdir())}
    key = fingerprint(FORMAT, config, sources, held, priors, score, chains, packed)
    if is_fresh(out, key):
        return verify_bundle(out)
    if out.exists() and stored_key(out) is None and any(out.iterdir()):
        raise ArtifactError(f"{out} is not empty and is no finished bundle; name another folder")
    with publish(out, key) as folder:
        folder.mkdir(parents=True)
        places = {place.replace("/", SEPARATOR): place for place in files}
        for name, place in places.items():
            shutil.copyfile(files[place], folder / name)
        (folder / "config.yaml").write_text(resolved_yaml(travels))
        write_json(folder / PRIORS, priors)
        write_json(folder / CHAINS, chains)
        pack_study(proof, folder / PROOF)
        fill_wheelhouse(config.bundle, folder)
        check_wheels(config.bundle, folder)
        listed = {
            path.name: {
                "place": places.get(path.name, path.name),
                "sha256": file_hash(path),
                "bytes": path.stat().st_size,
                "apart": _changes_seldom(path),
            }
            for path in sorted(folder.iterdir())
        }
        manifest = {
            "format": FORMAT,
            "kit": __version__,
            "name": config.name,
            "origin": "real" if config.competition.phantom is None else "phantom",
            "hours": config.kernel.hours,
            "score": score,
            "weights": config.bundle.weights,
            "files": listed,
        }
        write_json(folder / MANIFEST, manifest)
        for name in (MANIFEST, "config.yaml", *(w.name for w in folder.glob(f"{KIT_WHEEL}-*.whl"))):
            shutil.copyfile(folder / name, folder / (name + COPY))
        check_models(folder)
    return manifest


def sizes_of(bundle: Path) -> dict[str, int]:
    """Bytes of each file."""
    return {path.name: path.stat().st_size for path in sorted(bundle.iterdir())}


def _changes_seldom(path: Path) -> bool:
    """True for what goes to Kaggle in the dataset that is sent once per training."""
    foreign = path.suffix == ".whl" and not path.name.startswith(f"{KIT_WHEEL}-")
    return foreign or path.name.endswith(WEIGHTS_FILE)


def write_kernel_metadata(config: Config, folder: Path) -> None:
    """Write `kernel-metadata.json` beside submit.py, where it does not say the same already.

    Raises:
        ArtifactError: the folder holds no submit.py.
    """
    if not (folder / CODE_FILE).is_file():
        raise ArtifactError(f"{folder / CODE_FILE} is missing; name the folder of the kernel")
    metadata, path = kernel_metadata(config), folder / KERNEL_METADATA
    if not path.exists() or read_json(path) != metadata:
        write_json(path, metadata)
