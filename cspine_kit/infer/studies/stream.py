"""From a competition and a bundle to one answer for every study, in the order of their safety.

In: the rows wanted, a bundle, the time there is. Out: `Answer`s. Example::

    import time

    log = KernelLog(Path("kernel_log.jsonl"))
    run = Run(competition, bundle, Path(), log, started_s=time.monotonic())
    uids = [folder.name for folder in competition.test_images.iterdir()]
    for answer in run.answers(uids, on_headers=lambda spoken: print(len(spoken))):
        print(answer.study_uid, answer.source)

What is sound of the bundle is laid out; headers speak for every study; then the networks are loaded
and readers feed them. Torch and LightGBM are first imported here. Nothing raises: what is missing
costs what depends on it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cspine_kit.core.config import Config, load_config
from cspine_kit.core.errors import ArtifactError
from cspine_kit.core.execution import usable_cores
from cspine_kit.core.paths import Competition
from cspine_kit.core.runs import read_json
from cspine_kit.infer.answer import Answer, cause_of
from cspine_kit.infer.chains.governor import Governor, ladder
from cspine_kit.infer.log import KernelLog
from cspine_kit.infer.manifest import MANIFEST, lay_out, read_manifest
from cspine_kit.infer.patience import Patience, within
from cspine_kit.infer.studies.listing import HeaderModel, Survey
from cspine_kit.infer.studies.reading import ReadAhead

HEADERS_SHARE = 0.1
"""Header predictions may take this share of the time limit before the networks."""

RESERVE_SHARE = 0.05
"""The reserve takes no more than this share of a short time limit."""

DEFAULT_HOURS = 9.0
"""Where not even the bundle's config can be read."""


@dataclass
class Run:
    """One run of the kernel; `hours` overrides the bundle's limit, `started_s` is monotonic.

    `every_device`: wait for each to load, though others have answered everything.
    """

    competition: Competition
    bundle: Path
    scratch: Path
    log: KernelLog
    started_s: float
    hours: float | None = None
    patience: Patience = field(default_factory=Patience)
    every_device: bool = False
    governor: Governor | None = field(default=None, init=False)
    score: str = field(default="unknown", init=False)

    def told(self) -> dict[str, object]:
        """Seconds left, effort, and the out-of-fold score of the bundle, for the log."""
        if self.governor is None:
            return {"bundle": self.score}
        effort = self.governor.latest or "none yet"
        return {
            "seconds left": round(self.governor.left_s),
            "effort": str(effort),
            "bundle": self.score,
        }

    def answers(
        self, uids: Sequence[str], on_headers: Callable[[Sequence[Answer]], object]
    ) -> Iterator[Answer]:
        """One answer for every study.

        Args:
            uids: all studies.
            on_headers: called once with what headers say, before the networks are loaded.
        """
        root, config, why = self._open()
        limit_s = 3600.0 * (self.hours or (config.kernel.hours if config else DEFAULT_HOURS))
        headers, reason = self._headers(root, limit_s)
        survey = Survey(self.competition, uids, headers, reason)
        wait_s = min(HEADERS_SHARE * limit_s, self.patience.headers_s)
        survey.look(wait_s=wait_s, patience_s=min(self.patience.study_s, wait_s))
        spoken = survey.spoken
        on_headers(spoken)
        self.log.write("headers_written", studies=len(spoken))
        folders = survey.folders
        for uid in uids:
            if uid not in folders:
                yield survey.fallback(uid)
        if not folders:
            return
        if config is None:
            why = f"no models: {why}"
            self.log.write("models_unusable", cause=why)
            yield from (survey.fallback(uid).because(why) for uid in folders)
            return
        yield from self._from_images(root, config, survey, limit_s)

    def _open(self) -> tuple[Path, Config | None, str]:
        """The tree of the bundle's sound files, its config, and why there is none."""
        root, patience = self.scratch / "bundle", self.patience
        root.mkdir()
        try:
            manifest = within(patience.study_s, self._manifest)
            faults = lay_out(
                self.bundle, root, wait_s=patience.bundle_s, patience_s=patience.bundle_s / 2
            )
            for place, cause in faults.items():
                self.log.write("fault", stage="bundle", file=place, cause=cause)
            self.log.write("origin", origin=manifest["origin"], kit=manifest.get("kit"))
            self.score = _score_of(manifest)
            if not (root / "config.yaml").exists():
                raise ArtifactError(f"its config: {faults.get('config.yaml', 'not listed')}")
            return root, load_config(root / "config.yaml"), ""
        except Exception as error:  # noqa: BLE001 - without a bundle the priors stand
            self.log.write("fault", stage="bundle", cause=cause_of(error))
            return root, None, cause_of(error)

    def _manifest(self) -> dict[str, Any]:
        try:
            return read_manifest(self.bundle)
        except ArtifactError as error:
            self.log.write("fault", stage="bundle", file=MANIFEST, cause=cause_of(error))
            return read_manifest(self.bundle, copies=True)

    def _headers(self, root: Path, limit_s: float) -> tuple[HeaderModel | None, str]:
        """The header model, or None and why."""
        faults: dict[str, str] = {}
        try:
            from cspine_kit.stack.fallback.headers import HeaderFallback

            wait_s = min(self.patience.load_s, HEADERS_SHARE * limit_s)
            model = within(wait_s, HeaderFallback.load, root / "stack" / "header", faults)
        except Exception as error:  # noqa: BLE001 - networks may still speak
            faults["headers"] = cause_of(error)
            model = None
        for stage, cause in faults.items():
            self.log.write("fault", stage=stage, cause=cause)
        return model, f"no header model: {faults.get('headers')}"

    def _devices(self, config: Config) -> list[str]:
        """Names of the devices; the CPU where a driver hangs or breaks when it is asked."""
        from cspine_kit.vision import predict

        def ask() -> list[str]:
            predict.set_device_threads(config)
            return predict.devices()

        try:
            return within(self.patience.load_s, ask)
        except Exception as error:  # noqa: BLE001 - networks run on the CPU too
            self.log.write("fault", stage="devices", cause=cause_of(error))
            return ["cpu"]

    def _from_images(
        self, root: Path, config: Config, survey: Survey, limit_s: float
    ) -> Iterator[Answer]:
        try:
            from cspine_kit.infer.chains.ensemble import Ensemble
            from cspine_kit.infer.chains.loaded import chains_at
            from cspine_kit.infer.studies.devices import Devices
            from cspine_kit.infer.studies.worker import Worker

            names = self._devices(config)
        except Exception as error:  # noqa: BLE001 - without networks what is written stands
            cause = f"no models: {cause_of(error)}"
            self.log.write("models_unusable", cause=cause)
            yield from (survey.fallback(uid).because(cause) for uid in survey.folders)
            return
        reserve_s = min(60.0 * config.kernel.reserve_minutes, RESERVE_SHARE * limit_s)
        readers = config.kernel.readers or max(1, usable_cores() - 1)
        files = survey.files
        governor = Governor(
            ladder(config, _order(root), len(chains_at(root, config)) or None),
            deadline_s=self.started_s + limit_s - reserve_s,
            files=sum(files.values()),
            studies=len(files),
            readers=readers,
            networks=len(names),
        )
        self.governor = governor

        def build(name: str) -> Worker:
            ensemble = Ensemble(root, name, tolerant=True)
            ensemble.check(drop=True)
            for stage, cause in ensemble.faults.items():
                self.log.write("fault", stage=stage, device=name, cause=cause)
            for cause in ensemble.extras.problems if ensemble.extras else ():
                self.log.write("external_absent", device=name, cause=cause)
            return Worker(ensemble, governor, survey)

        self.log.write(
            "bundle",
            name=config.name,
            devices=names,
            readers=readers,
            efforts=[str(effort) for effort in governor.efforts],
            seconds_left=round(governor.left_s, 1),
        )
        folders = survey.folders
        with ReadAhead(
            folders,
            config.volumes,
            self.scratch,
            readers=readers,
            patience_s=self.patience.read_s,
        ) as readings:
            pool = Devices(
                *(names, build, readings, governor, survey),
                patience=self.patience,
                note=self.log.write,
                every_one=self.every_device,
                at_once=config.kernel.studies_at_once,
            )
            yield from _noting_effort(pool.answers(list(folders)), governor, self.log)
            if not pool.ever_ready:
                self.log.write("models_unusable", cause=f"no models: {pool.first_cause}")


def _score_of(manifest: dict[str, Any]) -> str:
    """What a bundle is worth, in words; its manifest is not believed to be whole."""
    try:
        a, b = (float(manifest["score"][form]) for form in ("per_exam", "global"))
    except (KeyError, TypeError, ValueError):
        return f"{manifest.get('name', '?')}, no score"
    return f"{manifest.get('name', '?')}, out-of-fold A {a:.4f} B {b:.4f}"


def _order(root: Path) -> tuple[str, ...]:
    """Members, least missed first; nothing where the bundle's file cannot be read."""
    from cspine_kit.stack.fallback.imputer import FILE as IMPUTER
    from cspine_kit.stack.fallback.imputer import Imputer

    try:
        return Imputer.from_json(read_json(root / "stack" / IMPUTER)).order
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ()


def _noting_effort(
    stream: Iterator[Answer], governor: Governor, log: KernelLog
) -> Iterator[Answer]:
    """The same answers; what was given up for time goes into the log."""
    last = str(governor.efforts[0])
    for answer in stream:
        effort = str(answer.details.get("effort", last))
        if effort != last:
            last = effort
            log.write("degraded", what=effort, seconds_left=round(governor.left_s, 1))
        yield answer
