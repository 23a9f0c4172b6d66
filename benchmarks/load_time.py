"""Loading a 1B-parameter Llama: time and peak memory of the plugin beside in-tree vLLM.

    python benchmarks/load_time.py [--folder DIR] [--threads 1] [--repeat 3] [--vocabulary 32000] [--json FILE]

Every load is a process of its own that calls vLLM's model loader (what vLLM logs as "Model loading took"), on a
checkpoint in the page cache. Cases take turns; the minimum of each figure is reported. Seconds are CPU time, which
excludes the time that other processes take.

    load       vLLM's loader: building the modules, reading, repacking
    repack     of that, what the quantized layers' methods do to the loaded tensors: the plugin's conversions, in-tree
               process_weights_after_loading
    held       growth of anonymous memory when everything is loaded (weights, and what vLLM keeps beside them: oneDNN
               copies of 16-bit matrices)
    peak       the largest growth of anonymous memory while loading
    resident   the same with the pages of the mapped checkpoint, which the kernel reclaims when it needs them

Goals: the plugin's load at most 1.2 times in-tree's load of the same checkpoint without in-tree's repacking, that is,
reading and copying it; and peak at most 1.3 x held + the largest layer (gate_up, a byte per weight: 34 MB).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llama_1b import HIDDEN, INTERMEDIATE, VOCABULARIES, Shape, write
from rich.console import Console
from rich.table import Table

LAYER_BYTES = 2 * INTERMEDIATE * HIDDEN  # gate_up


@dataclass(frozen=True)
class Case:
    """One way of loading: a checkpoint's format and vLLM's ``--quantization``."""

    name: str
    format: str
    quantization: str | None


CASES = (
    Case("plugin AWQ", "awq", "vqp_awq"),
    Case("in-tree AWQ", "awq", None),
    Case("plugin GPTQ", "gptq", "vqp_gptq"),
    Case("in-tree GPTQ", "gptq", None),
    Case("in-tree BF16", "bf16", None),
    Case("plugin INT8 online", "bf16", "vqp_int8"),
)


class PeakMemory:
    """The largest growth of memory between enter and exit: ``anonymous`` is sampled."""

    anonymous = resident = 0

    def __enter__(self) -> PeakMemory:
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
        self._base = _status()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def _sample(self) -> None:
        while not self._stop.wait(0.002):
            self.anonymous = max(self.anonymous, _status()["RssAnon"] - self._base["RssAnon"])

    def held(self) -> int:
        """Growth of anonymous memory since enter."""
        return _status()["RssAnon"] - self._base["RssAnon"]

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        self.resident = _status()["VmHWM"] - self._base["VmRSS"]


def _status() -> dict[str, int]:
    """Bytes by field of /proc/self/status."""
    rows = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {row[0][:-1]: int(row[1]) * 1024 for row in rows if row[-1] == "kB"}


class Stopwatch:
    """Sums the CPU time of every call of what it wraps; nested calls count once."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._depth = 0
        self._wrapped: set[tuple[Any, str]] = set()

    def wrap(self, owner: Any, name: str) -> None:
        if (owner, name) in self._wrapped:
            return
        self._wrapped.add((owner, name))
        inner = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            self._depth += 1
            start = time.process_time()
            try:
                return inner(*args, **kwargs)
            finally:
                self._depth -= 1
                if not self._depth:
                    self.seconds += time.process_time() - start

        setattr(owner, name, timed)

    def wrap_quantized(self, model: Any) -> None:
        """The loading of every quantized layer of ``model``."""
        for module in model.modules():
            method = type(getattr(module, "quant_method", None))
            if hasattr(method, "process_weights_after_loading") and "Unquantized" not in method.__name__:
                self.wrap(method, "process_weights_after_loading")


def load_once(folder: Path, quantization: str | None) -> dict[str, Any]:
    """Load ``folder`` with vLLM's loader in this process."""
    import torch
    from vllm.config import set_current_vllm_config
    from vllm.distributed import init_distributed_environment, initialize_model_parallel
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.model_loader import base_loader, get_model_loader

    from vllm_quant_plugin.loader.matrix import MatrixLoader

    arguments = EngineArgs(
        model=str(folder), quantization=quantization, dtype="bfloat16", skip_tokenizer_init=True, enforce_eager=True,
        max_model_len=256,
    )  # fmt: skip
    config = arguments.create_engine_config()
    watch = Stopwatch()
    watch.wrap(MatrixLoader, "finish")
    create = base_loader.initialize_model

    def create_watched(*args: Any, **kwargs: Any) -> Any:
        model = create(*args, **kwargs)
        watch.wrap_quantized(model)
        return model

    base_loader.initialize_model = create_watched
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.accelerator.empty_cache = lambda: None  # as vLLM's CPU worker does: there is no accelerator
    with tempfile.TemporaryDirectory() as scratch, set_current_vllm_config(config):
        init_distributed_environment(1, 0, f"file://{scratch}/rendezvous", 0, "gloo")
        initialize_model_parallel(1, 1, backend="gloo")
        loader = get_model_loader(config.load_config)
        with PeakMemory() as peak:
            start, cpu = time.perf_counter(), time.process_time()
            model = loader.load_model(config, config.model_config)
            seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        held = peak.held()
    tensors = {t.data_ptr(): t.nbytes for t in (*model.parameters(), *model.buffers())}
    return {
        "wall_s": seconds,
        "load_s": cpu,
        "repack_s": watch.seconds,
        "weights": sum(tensors.values()),
        "held": held,
        "peak_anonymous": peak.anonymous,
        "peak_resident": peak.resident,
    }


def measure(case: Case, folder: Path, threads: int) -> dict[str, Any]:
    """``load_once`` in a new process."""
    environment = {
        **os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }  # fmt: skip
    command = [sys.executable, __file__, "--worker", str(folder), case.quantization or "none"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{case.name} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def minimum(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The minimum of every figure."""
    return {key: min(run[key] for run in runs) for key in runs[0]}


def show(console: Console, rows: dict[str, dict[str, Any]]) -> None:
    table = Table(title="Loading: minimum over all repetitions")
    for column in ("", "wall s", "load CPU s", "repack CPU s", "weights MB", "held MB", "peak MB", "resident MB"):
        table.add_column(column, justify="right" if column else "left", no_wrap=not column)
    for name, row in rows.items():
        sizes = (f"{row[key] / 1e6:.0f}" for key in ("weights", "held", "peak_anonymous", "peak_resident"))
        table.add_row(name, *(f"{row[key]:.2f}" for key in ("wall_s", "load_s", "repack_s")), *sizes)
    console.print(table)
    goals = Table(title="Goals")
    for column in ("", "measured", "at most"):
        goals.add_column(column, justify="right" if column else "left")
    for name in ("AWQ", "GPTQ"):
        ours, theirs = rows.get(f"plugin {name}"), rows.get(f"in-tree {name}")
        if ours is None:
            continue
        if theirs is not None:
            ratio = ours["load_s"] / (theirs["load_s"] - theirs["repack_s"])
            goals.add_row(f"{name}: load over reading and copying", f"{ratio:.2f}", "1.20")
        peak = (ours["peak_anonymous"] - LAYER_BYTES) / ours["held"]
        goals.add_row(f"{name}: (peak - one layer) over what is held", f"{peak:.2f}", "1.30")
    console.print(goals)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where checkpoints are kept; a temporary one by default")
    parser.add_argument("--vocabulary", type=int, choices=sorted(VOCABULARIES), default=32000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="names of cases, in quotes")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        folder, quantization = options.worker
        print(json.dumps(load_once(Path(folder), None if quantization == "none" else quantization)))
        return
    cases = [case for case in CASES if not options.only or case.name in options.only]
    with tempfile.TemporaryDirectory() as scratch:
        root = options.folder or Path(scratch)
        folders = {case: write(Shape(case.format, options.vocabulary), root) for case in cases}
        runs: dict[Case, list[dict[str, Any]]] = {case: [] for case in cases}
        for _ in range(options.repeat):
            for case in cases:
                runs[case].append(measure(case, folders[case], options.threads))
    show(Console(), {case.name: minimum(found) for case, found in runs.items()})
    if options.json:
        every = [{**asdict(case), "runs": found} for case, found in runs.items()]
        options.json.write_text(json.dumps({"threads": options.threads, "cases": every}, indent=1) + "\n")


if __name__ == "__main__":
    main()
