"""One call of the real `kaggle` client: its environment, its time limit, what it said.

In: arguments, an environment with credentials. Out: what the client printed, without credentials,
or an error that says whether the request may be repeated. Example::

    client = ClientProcess(Path("oof/demo/push"))
    client.ask("datasets", "status", "me/cspine-kit-bundle").text

The client ends with 0 on most failures (kaggle 2.2.4: a refused push, a file that was not
uploaded), so an exit status of 0 does not count as sent: what it prints must say so. It sets no
timeout, so every call has one.
It is never imported: importing logs in, and its globals would follow.
"""

import logging
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cspine_kit.core.errors import CSpineError
from cspine_kit.ship.secrets import Redactor

logger = logging.getLogger(__name__)


class ServiceError(CSpineError):
    """The service or its client refused; names the command, the answer and the next step."""


class NoAnswer(ServiceError):
    """Nobody knows whether the request was served: ask for the state before repeating it."""


@dataclass(frozen=True)
class Waits:
    """Seconds between questions and until patience ends.

    `first_s` grows by `growth` up to `most_s`; a question without an answer is asked `attempts`
    times; one client call may take `call_s`, an upload longer by its size.
    """

    first_s: float = 10.0
    growth: float = 1.5
    most_s: float = 120.0
    attempts: int = 4
    call_s: float = 300.0
    dataset_s: float = 3600.0
    queue_s: float = 3600.0

    def delays(self) -> "Delays":
        """A fresh series of growing waits."""
        return Delays(self, self.first_s)


@dataclass
class Delays:
    """One series of growing waits."""

    waits: Waits
    next_s: float

    def sleep(self) -> None:
        """Wait, longer each time."""
        time.sleep(self.next_s)
        self.next_s = min(self.next_s * self.waits.growth, self.waits.most_s)


@dataclass(frozen=True)
class Reply:
    """What one client call printed, without credentials."""

    command: str
    status: int
    out: str
    err: str

    @property
    def text(self) -> str:
        """Both streams."""
        return f"{self.out}\n{self.err}".strip()

    def tail(self) -> str:
        """The end of what was said, for an error."""
        return self.text[-600:] or "no output"


_PASSED_ON = frozenset(
    {
        "PATH",
        "HOME",
        "USERPROFILE",
        "SYSTEMROOT",
        "LANG",
        "LC_ALL",
        "LC_CTYPE",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "REQUESTS_CA_BUNDLE",
        "CURL_CA_BUNDLE",
        "XDG_CONFIG_HOME",
        "KAGGLE_USERNAME",
        "KAGGLE_KEY",
        "KAGGLE_API_TOKEN",
        "KAGGLE_CONFIG_DIR",
        "KAGGLE_API_ENVIRONMENT",
    }
)
"""All that the client sees of this process: its way out, its credentials, nothing else."""

TEMPORARY = "tmp"
"""Folder of the client's temporary files, inside its own."""

_PROXIES = frozenset({"http_proxy", "https_proxy", "no_proxy"})
_ENVIRONMENTS = (None, "PROD", "LOCALHOST")

_LOGIN = re.compile(r"Authentication required to call the Kaggle API|\b401 Client Error")
_BROKEN = re.compile(r"^(?:ModuleNotFoundError|ImportError): .*", re.MULTILINE)
_CANCELED = "User cancelled operation"
_NO_ANSWER = re.compile(
    r"Max retries exceeded|Connection ?(aborted|refused|reset|error)|RemoteDisconnected"
    r"|Connection broken|IncompleteRead|timed out|NewConnectionError|ProtocolError|ProxyError"
    r"|Name or service not known|Temporary failure|\b(429|5\d\d) (Server|Client) Error"
    r"|Too many requests|internal server error|Service Unavailable"
    r"|Traceback \(most recent call last\)",
    re.IGNORECASE,
)


def _executable() -> Path:
    """The client beside this Python, whose version the kit pins.

    Raises:
        ServiceError: it is not installed there.
    """
    found = Path(sys.executable).with_name("kaggle")
    if not found.exists():
        raise ServiceError(f"{found} is missing: install the kit's dependencies (kaggle, six)")
    return found


@dataclass
class ClientProcess:
    """One user's client. `calls` lists what was run and how many seconds each took."""

    folder: Path
    waits: Waits = field(default_factory=Waits)
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    calls: list[tuple[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Prepare an environment that holds nothing the client need not see.

        TMPDIR is the push's own: the client keeps half-done uploads there, to take them up again.

        Raises:
            ServiceError: KAGGLE_API_ENVIRONMENT has a value that ends at the real service.
        """
        named = self.environment.get("KAGGLE_API_ENVIRONMENT")
        if named not in _ENVIRONMENTS:
            raise ServiceError(
                f"KAGGLE_API_ENVIRONMENT={named!r}: the client would take that for the real "
                "service; unset it"
            )
        self.redact = Redactor.of(self.environment)
        self.child_environment = {
            name: value
            for name, value in self.environment.items()
            if name in _PASSED_ON or name.lower() in _PROXIES
        }
        temporary = (self.folder / TEMPORARY).absolute()
        own = {"TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"}
        self.child_environment.update(own)

    def run(
        self,
        arguments: Sequence[str],
        *,
        timeout_s: float | None = None,
        on_line: Callable[[str], None] | None = None,
    ) -> Reply:
        """Run one client command.

        Raises:
            ServiceError: the credentials were refused.
            NoAnswer: the network failed, the service broke down or the time ran out.
        """
        limit = self.waits.call_s if timeout_s is None else timeout_s
        command = "kaggle " + " ".join(arguments)
        (self.folder / TEMPORARY).mkdir(parents=True, exist_ok=True)
        start, lines, expired = time.monotonic(), [], threading.Event()
        with tempfile.TemporaryFile("w+", errors="replace") as errors:
            process = subprocess.Popen(
                [str(_executable()), *arguments],
                env=self.child_environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                errors="replace",
            )

            def give_up() -> None:
                expired.set()
                process.kill()

            timer = threading.Timer(limit, give_up)
            timer.start()
            try:
                for line in process.stdout or ():
                    lines.append(line)
                    if on_line is not None:
                        on_line(line)
                status = process.wait()
            finally:
                timer.cancel()
                process.kill()
                process.wait()
            errors.seek(0)
            reply = Reply(command, status, self.redact("".join(lines)), self.redact(errors.read()))
        seconds = time.monotonic() - start
        self.calls.append((" ".join(arguments[:2]), round(seconds, 3)))
        with (self.folder / "client.log").open("a") as log:
            stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z")
            log.write(
                f"{stamp} {self.redact(command)} -> {status}, {seconds:.1f} s\n{reply.text}\n"
            )
        if status and _LOGIN.search(reply.text):
            raise ServiceError(
                f"{command}: the service refused the credentials. Set KAGGLE_API_TOKEN, or "
                "KAGGLE_USERNAME and KAGGLE_KEY, or log in with `kaggle auth login`; a stale "
                "KAGGLE_API_TOKEN or ~/.kaggle/access_token wins over a good key"
            )
        broken = _BROKEN.search(reply.err) if status else None
        if broken:
            raise ServiceError(
                f"{command}: the client cannot start ({broken.group()}); install the kit's "
                "dependencies again (kaggle 2.2.4 needs six and does not say so)"
            )
        if expired.is_set():
            raise NoAnswer(f"{command} gave no answer in {limit:.0f} s and was ended")
        # The client repeats some requests by itself and says so: only an end in failure counts.
        if _CANCELED in reply.out or (status and _NO_ANSWER.search(reply.text)):
            raise NoAnswer(f"{command}: {reply.tail()}")
        return reply

    def ask(self, *arguments: str) -> Reply:
        """Run a command that changes nothing, again where there was no answer."""
        delays = self.waits.delays()
        for attempt in range(1, self.waits.attempts + 1):
            try:
                return self.run(arguments)
            except NoAnswer as error:
                if attempt == self.waits.attempts:
                    raise
                logger.warning("%s; asking again", error)
                delays.sleep()
        raise NoAnswer(f"kaggle {' '.join(arguments)} was never asked: waits.attempts is 0")
