"""The commands of the `kaggle` client that a push needs, each answer read from what it prints.

In: names, folders. Out: typed answers. Example::

    client = KaggleClient(ClientProcess(Path("oof/demo/push")))
    client.kernel_status("me/cspine-kit-submit")          # None: there is no such kernel
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cspine_kit.core.runs import read_json
from cspine_kit.ship.kaggle.process import ClientProcess, ServiceError
from cspine_kit.ship.kaggle.service import KERNEL_METADATA


class NotArrived(ServiceError):
    """Files did not arrive, and nothing was made without them (kaggle 2.2.5 and newer)."""

    def __init__(self, text: str, missing: list[str]) -> None:
        super().__init__(text)
        self.missing = missing


@dataclass(frozen=True)
class DatasetStatus:
    """State of a dataset (`ready`, ...) and its version; None where the service does not say."""

    status: str
    version: int | None


@dataclass(frozen=True)
class KernelStatus:
    """State of a kernel's last session (`COMPLETE`, ...) and why it failed."""

    status: str
    failure: str | None

    @property
    def ended(self) -> bool:
        """Whether the session is over, well or not."""
        return self.status in {"COMPLETE", "ERROR", "CANCEL_ACKNOWLEDGED"}


SLOWEST_UPLOAD = 200_000
"""Bytes per second below which an upload counts as hanging."""

_OWNER = re.compile(r"^- username: (\S+)", re.MULTILINE)
_ABSENT = re.compile(r"\b40[34]\b|not found|denied|forbidden", re.IGNORECASE)
_UPLOADED = re.compile(r"^Upload successful: (.+) \([^()]*\)\s*$", re.MULTILINE)
_LOST = re.compile(r"^Upload unsuccessful: (\S+)", re.MULTILINE)
_DATASET_SENT = re.compile(
    r"Your private Dataset is being created|Dataset version is being created"
)
_DATASET_ERROR = re.compile(r"Dataset (?:version )?creation error: (.*)")
_KERNEL_SENT = re.compile(r"Kernel version (?:(\d+) )?successfully pushed")
_KERNEL_ERROR = re.compile(r"Kernel push error: (.*)", re.DOTALL)
_BAD_SOURCES = re.compile(r"The following are not valid (\w+) sources.*")
_KERNEL_STATUS = re.compile(r'has status "(?:KernelWorkerStatus\.)?(\w+)"')
_FAILURE = re.compile(r'Failure message: "(.*)"', re.DOTALL)
_NEXT_PAGE = re.compile(r"^Next Page Token = (\S+)", re.MULTILINE)


@dataclass(frozen=True)
class KaggleClient:
    """The commands, over the process that runs them."""

    process: ClientProcess

    def owner(self) -> str | None:
        """Who is logged in; None where the client does not say."""
        found = _OWNER.search(self.process.ask("config", "view").out)
        return found.group(1) if found and found.group(1) != "None" else None

    def dataset_status(self, ref: str) -> DatasetStatus | None:
        """State of a dataset; None where the service shows none under this name.

        Raises:
            ServiceError: an answer that means neither.
        """
        full = self.process.ask("datasets", "status", ref, "--format", "json")
        found = re.search(r"^\{.*\}\s*$", full.out, re.MULTILINE)
        if found:
            answer = json.loads(found.group())
            return DatasetStatus(answer["status"], answer.get("current_version_number") or None)
        # A dataset in its making may have a status but no version yet.
        plain = self.process.ask("datasets", "status", ref)
        words = plain.out.split()
        if not plain.status and words:
            return DatasetStatus(words[-1], None)
        if _ABSENT.search(plain.text):
            return None
        raise ServiceError(f"{plain.command}: {plain.tail()}")

    def dataset_files(self, ref: str) -> dict[str, int]:
        """Bytes of every file of a dataset's current version, by name."""
        sizes: dict[str, int] = {}
        page: tuple[str, ...] = ()
        while True:
            command = ("datasets", "files", ref, "--format", "json", "--page-size", "200", *page)
            reply = self.process.ask(*command)
            found = re.search(r"^\[.*\]\s*$", reply.out, re.MULTILINE | re.DOTALL)
            if not found:
                raise ServiceError(f"{reply.command}: {reply.tail()}")
            sizes.update({row["name"]: int(row["size"]) for row in json.loads(found.group())})
            more = _NEXT_PAGE.search(reply.out)
            if not more:
                return sizes
            page = ("--page-token", more.group(1))

    def send_dataset(
        self,
        folder: Path,
        sizes: Mapping[str, int],
        *,
        new: bool,
        notes: str,
        on_file: Callable[[str], None],
    ) -> list[str]:
        """Create a dataset or a new version of it.

        Args:
            folder: flat, with dataset-metadata.json.
            sizes: bytes of each file that must arrive.
            new: create it, or add a version.
            notes: what a new version's page says.
            on_file: told the name of each file that arrived.

        Returns:
            Names of files that did NOT arrive although the dataset was made.

        Raises:
            NotArrived: files were lost on the way, and nothing was made.
            ServiceError: the service refused.
            NoAnswer: it may or may not have been made.
        """

        def watch(line: str) -> None:
            found = _UPLOADED.match(line)
            if found:
                on_file(found.group(1))

        verb = ("create",) if new else ("version", "-m", notes)
        limit = self.process.waits.call_s + sum(sizes.values()) / SLOWEST_UPLOAD
        reply = self.process.run(
            ["datasets", *verb, "-p", str(folder)], timeout_s=limit, on_line=watch
        )
        refused = _DATASET_ERROR.search(reply.out)
        if refused or not _DATASET_SENT.search(reply.out):
            if not refused and (lost := _LOST.findall(reply.text)):
                raise NotArrived(f"{reply.command}: files did not arrive: {', '.join(lost)}", lost)
            answer = refused.group(1) if refused else reply.tail()
            raise ServiceError(f"{reply.command}: the service refused the dataset: {answer}")
        return sorted(set(sizes) - set(_UPLOADED.findall(reply.out)))

    def kernel_status(self, ref: str) -> KernelStatus | None:
        """State of a kernel's last session; None where the service shows no such kernel.

        Raises:
            ServiceError: an answer that means neither.
        """
        reply = self.process.ask("kernels", "status", ref)
        found = _KERNEL_STATUS.search(reply.out)
        if found:
            failure = _FAILURE.search(reply.out)
            return KernelStatus(found.group(1), failure.group(1) if failure else None)
        if _ABSENT.search(reply.text):
            return None
        raise ServiceError(f"{reply.command}: {reply.tail()}")

    def push_kernel(self, folder: Path) -> int | None:
        """Save and start the kernel of a folder, once.

        Returns:
            The version; None where the service did not say it.

        Raises:
            ServiceError: the service refused, or saved it without one of its sources.
            NoAnswer: it may or may not have been saved.
        """
        reply = self.process.run(["kernels", "push", "-p", str(folder)])
        refused = _KERNEL_ERROR.search(reply.out)
        if refused:
            raise ServiceError(f"{reply.command}: the service refused: {refused.group(1).strip()}")
        sources = _BAD_SOURCES.search(reply.out)
        if sources:
            raise ServiceError(
                f"{reply.command}: {sources.group()}. The version was saved without it and cannot "
                "work; check the name, and that you joined the competition"
            )
        sent = _KERNEL_SENT.search(reply.out)
        if not sent:
            raise ServiceError(f"{reply.command}: {reply.tail()}")
        return int(sent.group(1)) if sent.group(1) else None

    def kernel_output(self, ref: str, folder: Path, pattern: str) -> None:
        """Fetch the log, and the output files whose whole name matches (never a path)."""
        target = ("-p", str(folder), "--force")
        reply = self.process.ask(
            "kernels", "output", ref, *target, "--file-pattern", f"^(?:{pattern})$"
        )
        if reply.status:
            raise ServiceError(f"{reply.command}: {reply.tail()}")

    def kernel_saved(self, ref: str, folder: Path) -> tuple[str, dict[str, Any]]:
        """Source and settings of the kernel's last version, as the service has them."""
        folder.mkdir(parents=True, exist_ok=True)
        reply = self.process.ask("kernels", "pull", ref, "-p", str(folder), "-m")
        path = folder / KERNEL_METADATA
        if reply.status or not path.exists():
            raise ServiceError(f"{reply.command}: {reply.tail()}")
        settings = dict(read_json(path))
        return (folder / settings["code_file"]).read_text(), settings

    def submit(self, competition: str, ref: str, version: int, file: str, message: str) -> str:
        """Submit a kernel version to a code competition, once; returns the service's words.

        Raises:
            ServiceError: the service refused.
            NoAnswer: it may or may not have been accepted.
        """
        what = ("-k", ref, "-v", str(version), "-f", file, "-m", message)
        reply = self.process.run(["competitions", "submit", competition, *what])
        words = reply.out.strip().splitlines()
        if reply.status or not words or "success" not in words[-1].lower():
            raise ServiceError(f"{reply.command}: {reply.tail()}")
        return words[-1]

    def submissions(self, competition: str) -> list[dict[str, Any]]:
        """The user's latest submissions: description, status, publicScore, ..."""
        reply = self.process.ask("competitions", "submissions", competition, "--format", "json")
        if "No submissions found" in reply.out:
            return []
        found = re.search(r"^\[.*\]\s*$", reply.out, re.MULTILINE | re.DOTALL)
        if not found:
            raise ServiceError(f"{reply.command}: {reply.tail()}")
        return list(json.loads(found.group()))
