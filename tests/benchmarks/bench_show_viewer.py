"""The viewer from upload to result beside the kernel's own functions on the same study.

Run: python tests/benchmarks/bench_show_viewer.py [--bundle DIR] [--studies DIR] [--pairs 5]

In turn: a study judged by `Predictor`, whose functions are the kernel's, and the same study as a
.zip given to a running viewer by HTTP, asked for its state every 50 ms. Times are of the wall, and
of the processor (both in this process, with all threads). Memory is the most that the process held.
"""

import argparse
import io
import json
import resource
import sys
import time
import urllib.request
import zipfile
from pathlib import Path
from urllib.parse import urlencode

import pandas as pd
from goals import record

ROOT = Path(__file__).resolve().parents[2]

from cspine_kit.core.execution import tune_process  # noqa: E402
from cspine_kit.infer.predictor import Predictor  # noqa: E402
from cspine_kit.show.viewer.server import Server  # noqa: E402

FAILED, DONE = "failed", "done"


def packed(folder: Path) -> bytes:
    """A study as somebody's export."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for path in sorted(folder.iterdir()):
            file.write(path, path.name)
    return buffer.getvalue()


def ask(
    server: Server, method: str, path: str, data: bytes | None = None, **query: str
) -> dict[str, object]:
    """One request of the page."""
    url = f"{server.url}{path}?{urlencode({'secret': server.secret, **query})}"
    request = urllib.request.Request(url, data=data, method=method)
    with urllib.request.urlopen(request) as answer:
        found: dict[str, object] = json.loads(answer.read())
    return found


def visit(server: Server, archive: bytes) -> dict[str, float]:
    """Seconds from the upload's first byte to picture, result (also of the processor), heat."""
    name = str(ask(server, "POST", "visits", b"")["visit"])
    start, used = time.perf_counter(), time.process_time()
    found: dict[str, float] = {}
    ask(server, "PUT", f"visits/{name}", archive, name="export.zip")
    ask(server, "POST", f"visits/{name}/judge", b"", consent="1")
    while "heat" not in found:
        state = ask(server, "GET", f"visits/{name}")
        now = time.perf_counter() - start
        if state["stage"] == FAILED:
            raise SystemExit(f"the viewer failed: {state['cause']}")
        if state["preview"]:
            found.setdefault("picture", now)
        if state["result"] is not None and "result" not in found:
            found |= {"result": now, "result_cpu": time.process_time() - used}
        if state["stage"] == DONE:
            found["heat"] = now
        time.sleep(0.05)
    ask(server, "POST", f"visits/{name}/end", b"")
    return found


def main() -> None:
    demo = ROOT / "oof" / "demo"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, default=demo / "bundle")
    parser.add_argument("--studies", type=Path, default=demo / "competition" / "test_images")
    parser.add_argument("--pairs", type=int, default=5)
    args = parser.parse_args()
    tune_process()
    predictor, rows = Predictor(args.bundle, phantom_bundle=True), []
    folders = [p for p in sorted(args.studies.iterdir()) if p.is_dir()]
    judged = (p for p in folders if predictor.predict(p).ok)  # the first warms everything up
    with Server(args.bundle, port=0) as server:
        server.predictor()
        for _, folder in zip(range(args.pairs), judged, strict=False):
            start, used = time.perf_counter(), time.process_time()
            predictor.predict(folder)
            own = {"kernel": time.perf_counter() - start, "kernel_cpu": time.process_time() - used}
            rows.append({"slices": len(list(folder.iterdir()))} | own)
            rows[-1] |= visit(server, packed(folder))
    table = pd.DataFrame(rows)
    table["times"] = table["result"] / table["kernel"]
    table["times_cpu"] = table["result_cpu"] / table["kernel_cpu"]
    sys.stdout.write(table.to_string(index=False, float_format="{:.2f}".format) + "\n")
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    median = table.median()
    sys.stdout.write(
        f"median: result after {median['times']:.2f} times the kernel's own wall time, "
        f"{median['times_cpu']:.2f} of processor time; first picture after at most "
        f"{table['picture'].max():.1f} s; {held:.2f} GiB\n"
    )
    record("upload to result, times the kernel's own", median["times"], 1.3, most=True)
    record("first picture (s)", table["picture"].max(), 5.0, most=True)
    record("viewer's memory (GiB)", held, 2.0, most=True)


if __name__ == "__main__":
    main()
