"""The steps of `make gpu-check`, isolated from each other: a step that fails, hangs or takes too long affects no other.

    python scripts/gpu_check.py [--bundle FOLDER] [--steps build,tests,...] [--seconds N] [PYTEST ARGUMENTS]

Without --seconds all steps run to their end; with --bundle (gpu_bundle.py) they have eight minutes together, the most
telling first. Needs torch and pytest. Writes to the folder that OUT names, else build/gpu-check/results: summary.json,
written again after every step, and gpu-check.log with all output. The benchmarks write their JSON there too if OUT is
set or there is a bundle, else to benchmarks/results/. Exit 1: a step failed, hung, or ran out of time.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "scripts"))

from gpu_bundle import Bundle, unpack  # noqa: E402

BUILD = ROOT / "build" / "gpu-check"
TESTS = ROOT / "tests" / "gpu"
CONTEXT_LOST, NO_TESTS = 70, 5  # tests/gpu/conftest.py; pytest
BUNDLED_SECONDS = 480.0  # for all steps together, with a bundle
TEST_TIMEOUT = 150  # seconds that one test may take
RESTARTS = 12
PROBE_SECONDS, PROBES_AT_ONCE = 40.0, 4
# The tests on which the others depend come first.
ORDER = ("test_canonical.py", "test_linear.py", "test_quantize.py", "test_experts.py", "test_w8a8.py")
SANITIZER = "test_sanitizer.py"
# Benchmarks whose peers are operators of vLLM's extension library.
WITH_PEERS = ("gpu_linear.py", "gpu_w8a8.py")


@dataclass
class Outcome:
    """The result of a step. ``status``: passed, failed, hung, late (out of its time), or skipped."""

    status: str
    seconds: float = 0.0
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass
class Run:
    """The output folder, the deadline, what was brought along, and the implementations that a step found broken."""

    folder: Path
    deadline: float
    arguments: list[str]
    own_results: bool  # the benchmarks' JSON into ``folder``
    bundle: Bundle = field(default_factory=Bundle)
    broken: set[str] = field(default_factory=set)

    def left(self) -> float:
        return self.deadline - time.monotonic()

    def command(
        self, command: list[str], limit: float, progress: Path | None = None, timeout: float = TEST_TIMEOUT
    ) -> tuple[int | str, str]:
        """The exit status and the output; ``late`` after ``limit`` seconds, ``hung`` where ``progress``, a file that
        tests add to, did not grow for ``timeout`` seconds."""
        limit, begin = min(limit, self.left()), time.monotonic()
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        if self.bundle.site is not None:
            path = [os.environ.get("PYTHONPATH"), str(self.bundle.site)]
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, path))
        if progress:
            environment["VQP_GPU_PROGRESS"] = str(progress)
        output: list[bytes] = []
        with (self.folder / "gpu-check.log").open("ab") as log:
            log.write(f"$ {' '.join(command)}\n".encode())
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip

            def copy() -> None:
                assert process.stdout
                for line in process.stdout:
                    output.append(line)
                    for target in (log, sys.stdout.buffer):
                        target.write(line)
                        target.flush()

            reader = threading.Thread(target=copy, daemon=True)
            reader.start()
            status: int | str | None = None
            size, changed = -1, begin
            while status is None:
                time.sleep(0.05)
                now = time.monotonic()
                status = process.poll()
                if progress:
                    found = progress.stat().st_size if progress.exists() else 0
                    if found != size:
                        size, changed = found, now
                    elif status is None and now - changed > timeout:
                        status = "hung"
                if status is None and now - begin > limit:
                    status = "late"
            if isinstance(status, str):
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            reader.join(10)
        return status, b"".join(output).decode(errors="replace")


def test_files(wanted: Callable[[str], bool]) -> list[str]:
    names = sorted(path.name for path in TESTS.glob("test_*.py") if wanted(path.name))
    names.sort(key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))
    return [f"tests/gpu/{name}" for name in names]


def run_tests(run: Run, files: list[str], limit: float, timeout: float = TEST_TIMEOUT) -> Outcome:
    """Run pytest, and again in a new process after a test that faulted the GPU, crashed or hung."""
    base = [sys.executable, "-m", "pytest", "-c", "tests/gpu/pytest.ini", *files, *run.arguments]
    end, progress = time.monotonic() + limit, run.folder / "progress.txt"
    counts: dict[str, int] = {}
    failed: dict[str, str] = {}
    resume: list[str] = []
    status: int | str = "late"
    for _ in range(RESTARTS):
        progress.unlink(missing_ok=True)
        status, _ = run.command([*base, *resume], end - time.monotonic(), progress, timeout)
        reported = [line.split(" ", 1) for line in (progress.read_text() if progress.exists() else "").splitlines()]
        for word, name in reported:
            counts[word] = counts.get(word, 0) + 1
            if word == "failed":
                failed[name] = "failed"
        broken = status in (CONTEXT_LOST, "hung") or (isinstance(status, int) and status < 0)
        if not broken or not reported:
            break
        last = reported[-1][1]
        failed[last] = "no answer" if status == "hung" else f"the process ended with {status}"
        resume = ["--resume-after", last]
    progress.unlink(missing_ok=True)
    result = "late" if status == "late" else "failed" if failed or status not in (0, NO_TESTS) else "passed"
    return Outcome(result, detail={"counts": counts, "failed": failed})


def build(run: Run, limit: float) -> Outcome:
    """Build for this machine's GPU, in a folder of its own: make's may have been configured without CUDA.

    A library that was brought along takes the place of the build.
    """
    if run.bundle.library is not None:
        os.environ["VQP_CUDA_LIBRARY"] = str(run.bundle.library)
        return Outcome("passed", detail={"brought along": run.bundle.library.name})
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    capability = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0].replace(".", "")
    # Hopper's own instructions need the "a" that CMake's "native" leaves out.
    target = f"{'90a' if capability == '90' else capability}-real"
    if shutil.which("nvcc") is None and Path("/usr/local/cuda/bin/nvcc").is_file():
        os.environ.setdefault("CUDACXX", "/usr/local/cuda/bin/nvcc")
    configure = ["cmake", "-S", "kernels", "-B", str(BUILD), "-DVQP_CUDA=ON", f"-DVQP_CUDA_ARCHITECTURES={target}"]
    jobs = str(len(os.sched_getaffinity(0)))
    for command in (configure, ["cmake", "--build", str(BUILD), "--target", "vqp_cuda", "--parallel", jobs]):
        status, _ = run.command(command, limit)
        if status:
            return Outcome("late" if status == "late" else "failed")
    return Outcome("passed", detail={"target": target})


def benchmark(run: Run, name: str, file: str, limit: float, flags: list[str]) -> Outcome:
    """``limit`` ends a benchmark that hangs; its file holds the results until then."""
    command = [sys.executable, f"benchmarks/{file}", *flags]
    if run.bundle.peers is not None and file in WITH_PEERS:
        command += ["--peers-library", str(run.bundle.peers)]
    if run.broken and file in WITH_PEERS:
        command += ["--without", ",".join(sorted(run.broken))]
    if run.own_results:
        command += ["--json", str(run.folder / f"{name}.json")]
    status, output = run.command(command, limit)
    lines = [line for line in output.splitlines() if line.startswith("absent")]
    return Outcome("passed" if status == 0 else "late" if status == "late" else "failed", detail={"absent": lines})


def device(run: Run, limit: float) -> Outcome:
    script = "import torch; print(torch.__version__, torch.cuda.get_device_name(), torch.cuda.get_device_properties(0))"
    status, output = run.command([sys.executable, "-c", script], limit)
    run.command(["nvidia-smi"], limit)
    return Outcome("failed" if status else "passed", detail={"device": output.strip()})


def serve(run: Run, limit: float) -> Outcome:
    """Serve with the whole plugin in vLLM, where it is installed; VQP_SERVE_MODEL names a larger 16-bit model."""
    if importlib.util.find_spec("vllm") is None:
        return Outcome("skipped", detail={"reason": "vLLM is not installed: no server was started"})
    model = os.environ.get("VQP_SERVE_MODEL", "vllm_quant_plugin/data/stdlib-llama")
    return benchmark(run, "serve", "gpu_serve.py", limit, [model])


def families(run: Run, limit: float) -> Outcome:
    """Correctness of every kernel family; benchmarks leave out what died or hung: it would take them along."""
    target = run.folder / "families.json"
    seconds = str(round(min(limit, run.left()) - 5))
    status, _ = run.command(
        [sys.executable, "scripts/gpu_families.py", "--seconds", seconds, "--json", str(target)], limit
    )
    found = json.loads(target.read_text()) if target.is_file() else {}
    bad = {name: row for name, row in found.items() if row["status"] not in ("right", "absent")}
    if any(name.startswith("wna16-int4") and row["status"] in ("died", "hung") for name, row in bad.items()):
        run.broken |= {"vqp", "vqp-no-pdl"}
    detail = {"right": sum(row["status"] == "right" for row in found.values()), "not right": bad}
    return Outcome("passed" if status == 0 else "late" if status == "late" else "failed", detail=detail)


def probes(run: Run, limit: float) -> Outcome:
    """Each peer in a process of its own: one that hangs is left out of the benchmarks."""
    end, script = time.monotonic() + limit, str(ROOT / "benchmarks" / "gpu_probe.py")
    more = [] if run.bundle.peers is None else ["--peers-library", str(run.bundle.peers)]
    listing = subprocess.run([sys.executable, script, "--list"], capture_output=True, text=True, check=True, cwd=ROOT)

    def probe(name: str) -> tuple[str, dict[str, Any]]:
        status, output = run.command([sys.executable, script, name, *more], min(PROBE_SECONDS, end - time.monotonic()))
        return name, {"status": status, "last": "".join(output.splitlines()[-1:])[:200]}

    with concurrent.futures.ThreadPoolExecutor(PROBES_AT_ONCE) as pool:
        found = dict(pool.map(probe, listing.stdout.split()))
    run.broken |= {name.partition("-m")[0] for name, row in found.items() if row["status"] not in (0, 1)}
    return Outcome("failed" if any(row["status"] != 0 for row in found.values()) else "passed", detail=found)


def engine(run: Run, limit: float) -> Outcome:
    """Engines in process with the plugin in vLLM, from the bundle or installed here."""
    if not run.bundle.has_vllm and importlib.util.find_spec("vllm") is None:
        return Outcome("skipped", detail={"reason": "vLLM is neither here nor in a bundle: no engine was started"})
    flags = ["--seconds", str(round(min(limit, run.left()) - 5))]
    if run.bundle.prepared is not None:
        flags += ["--prepared", str(run.bundle.prepared)]
    return benchmark(run, "engine", "gpu_engine.py", limit, flags)


Step = Callable[[Run, float], Outcome]
# In the order of worth when the machine may be taken away after any of them. Seconds are limits, not estimates.
STEPS: dict[str, tuple[float, Step]] = {
    "device": (60, device),
    "build": (400, build),
    "families": (130, families),
    "probes": (60, probes),
    "linear": (100, lambda run, limit: benchmark(run, "linear", "gpu_linear.py", limit, ["--quick"])),
    "engine": (240, engine),
    "w8a8": (120, lambda run, limit: benchmark(run, "w8a8", "gpu_w8a8.py", limit, ["--quick", "--repeats", "8"])),
    "tests": (500, lambda run, limit: run_tests(run, test_files(lambda name: name != SANITIZER), limit)),
    "experts": (240, lambda run, limit: benchmark(run, "experts", "gpu_experts.py", limit, [])),
    "sanitizer": (560, lambda run, limit: run_tests(run, test_files(lambda name: name == SANITIZER), limit, 300)),
    "layers": (400, lambda run, limit: benchmark(run, "layers", "gpu_linear.py", limit, ["--layers"])),
    "plans": (240, lambda run, limit: benchmark(run, "plans", "gpu_plans.py", limit, [])),
    "serve": (3600, serve),
}


def figures(folder: Path) -> list[str]:
    """The results in one table: what the JSON files of the steps say, as far as they came."""
    lines = []
    for name in ("linear", "w8a8", "experts", "layers"):
        for row in _rows(folder / f"{name}.json", "cases"):
            times = sorted((result["us"], peer) for peer, result in row.get("results", {}).items())
            case = row.get("case") or " ".join(str(row.get(key)) for key in ("kind", "mode", "m", "n", "k"))
            lines.append(f"{name:8} {case:32} " + ", ".join(f"{peer} {us:.1f} us" for us, peer in times))
    for row in _rows(folder / "engine.json", "rows"):
        shown = [(key, value) for key, value in row.items() if key not in ("part", "name", "load_seconds")]
        text = [f"{key} {value:,.1f}" if isinstance(value, float) else f"{key} {value}" for key, value in shown]
        lines.append(f"engine   {row['name']:32} {', '.join(text)}")
    return lines


def _rows(path: Path, key: str) -> list[dict[str, Any]]:
    return list(json.loads(path.read_text())[key]) if path.is_file() else []


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", default=",".join(STEPS), help=f"of {', '.join(STEPS)}")
    parser.add_argument("--seconds", type=float, help="for all steps together")
    parser.add_argument("--bundle", type=Path, help="a folder with what the machine lacks (gpu_bundle.py)")
    arguments, rest = parser.parse_known_args()
    names = arguments.steps.split(",")
    if unknown := [name for name in names if name not in STEPS]:
        parser.error(f"no step {', '.join(unknown)}: there are {', '.join(STEPS)}")
    out = os.environ.get("OUT")
    folder = Path(out) if out else BUILD / "results"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpu-check.log").unlink(missing_ok=True)
    if importlib.util.find_spec("vllm_quant_kernels") is None:
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT / "kernels"), os.environ.get("PYTHONPATH")]))
    seconds = arguments.seconds or (BUNDLED_SECONDS if arguments.bundle else float("inf"))
    run = Run(folder, time.monotonic() + seconds, rest, bool(out or arguments.bundle))
    if arguments.bundle is not None:
        run.bundle = unpack(arguments.bundle, BUILD / "bundle")
    outcomes: dict[str, Outcome] = {}
    for name in names:
        limit, step = STEPS[name]
        begin = time.monotonic()
        if run.left() < 10:
            outcomes[name] = Outcome("late", detail={"reason": "no time was left for it"})
        elif name != "build" and outcomes.get("build", Outcome("passed")).status != "passed":
            outcomes[name] = Outcome("skipped", detail={"reason": "the kernels were not built"})
        else:
            print(f"== {name}", flush=True)
            try:
                outcomes[name] = step(run, limit)
            except (OSError, subprocess.SubprocessError) as error:  # a program that is not there
                outcomes[name] = Outcome("failed", detail={"error": str(error)})
        outcomes[name].seconds = round(time.monotonic() - begin, 1)
        table = {step: dataclasses.asdict(outcome) for step, outcome in outcomes.items()}
        (folder / "summary.json").write_text(json.dumps(table, indent=1) + "\n")
    print("== gpu-check")
    for name, outcome in outcomes.items():
        print(f"{name:10} {outcome.status:8} {outcome.seconds:7.1f} s  {json.dumps(outcome.detail)[:300]}")
    print("\n".join(figures(folder)))
    return int(any(outcome.status not in ("passed", "skipped") for outcome in outcomes.values()))


if __name__ == "__main__":
    raise SystemExit(main())
