"""llm-compressor's side of a job: run by path with the interpreter of its own environment, JOB.json FD.

Nothing of this project can be imported here. Events go to descriptor FD as JSON lines, everything else to
the caller's log file. Job: ``model``, ``output`` (folders), ``tokens`` (windows, or empty), ``scheme`` (one entry of
compressed-tensors' config_groups), ``ignore`` (modules left alone), ``smooth`` (strength or null), ``kv_cache``
(compressed-tensors' kv_cache_scheme or null), ``seed``.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from typing import Any

_PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    except (OSError, AttributeError):
        return


def run(job: dict[str, Any], emit: Any) -> None:
    """llm-compressor 0.14: one pass over the calibration windows, saved as compressed-tensors."""
    import torch
    from datasets import Dataset
    from llmcompressor import oneshot  # type: ignore[import-not-found]
    from llmcompressor.modifiers import Modifier  # type: ignore[import-not-found]
    from llmcompressor.modifiers.quantization import QuantizationModifier  # type: ignore[import-not-found]
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier  # type: ignore[import-not-found]
    from transformers import AutoModelForCausalLM

    torch.manual_seed(job["seed"])
    # On CPUs float32 is the faster and the more exact; the caller stores what stays in its own dtype.
    dtype = "auto" if torch.cuda.is_available() else torch.float32
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=dtype, local_files_only=True)
    total = model.config.get_text_config().num_hidden_layers * (2 if job["smooth"] is not None else 1)
    done = 0

    class Progress(Modifier):
        """Counts the layers that a pass has been through."""

        def on_initialize(self, state: Any, **kwargs: Any) -> bool:
            return True

        def on_sequential_epoch_end(self, *args: Any, **kwargs: Any) -> None:
            nonlocal done
            done += 1
            emit(what=f"step {done}", done=min(done, total), total=total)

    recipe: list[Any] = []
    if job["smooth"] is not None:
        recipe.append(SmoothQuantModifier(smoothing_strength=job["smooth"]))
    cache = {"kv_cache_scheme": job["kv_cache"]} if job["kv_cache"] else {}
    recipe.append(QuantizationModifier(config_groups={"group_0": job["scheme"]}, ignore=job["ignore"], **cache))
    recipe.append(Progress())
    data: dict[str, Any] = {}
    if job["tokens"]:
        rows = {"input_ids": job["tokens"], "attention_mask": [[1] * len(row) for row in job["tokens"]]}
        data = {
            "dataset": Dataset.from_dict(rows), "num_calibration_samples": len(job["tokens"]),
            "max_seq_length": len(job["tokens"][0]), "shuffle_calibration_samples": False, "pipeline": "sequential",
        }  # fmt: skip
    oneshot(model=model, recipe=recipe, **data)
    model.save_pretrained(job["output"], save_compressed=True)
    emit(what="saved", done=total, total=total)


def main(arguments: list[str]) -> None:
    """Run the job in ``arguments[0]``, events to descriptor ``arguments[1]``."""
    _die_with_parent()
    os.environ["HF_HUB_OFFLINE"] = "1"
    with open(arguments[0], encoding="utf-8") as file:
        job = json.load(file)
    with os.fdopen(int(arguments[1]), "w", buffering=1) as events:

        def emit(**event: Any) -> None:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            print(json.dumps({**event, "peak": peak}), file=events)

        run(job, emit)
        emit()


if __name__ == "__main__":
    main(sys.argv[1:])
