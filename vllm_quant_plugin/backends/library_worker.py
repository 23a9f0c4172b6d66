"""The side of GPTQModel and AutoAWQ of a job: ``python -m ... JOB.json FD``. Its output goes to the caller's log file.

Job: ``library``, ``method``, ``model`` and ``output`` (folders), ``tokens`` (windows), ``seed``, ``bits``,
``group_size``, ``symmetric``; for GPTQ also ``act_order``, ``damp``, ``mse``, ``static_groups``.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from vllm_quant_plugin.backends.process import peak_memory

_PR_SET_PDEATHSIG = 1
Emit = Callable[..., None]


def _die_with_parent() -> None:
    """Do not outlive a parent that is killed (Linux)."""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    except (OSError, AttributeError):
        return


def run_gptqmodel(job: dict[str, Any], emit: Emit) -> None:
    """GPTQModel 7.6: AWQ or GPTQ."""
    import torch
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
    from gptqmodel.quantization import FORMAT, METHOD

    common = {"bits": job["bits"], "group_size": job["group_size"], "sym": job["symmetric"]}
    options: dict[str, Any] = {}
    if job["method"] == "awq":
        config = QuantizeConfig(**common, quant_method=METHOD.AWQ, format=FORMAT.GEMM)
        if not torch.cuda.is_available():
            options["backend"] = BACKEND.AWQ_TORCH
    else:
        config = QuantizeConfig(
            **common, desc_act=job["act_order"], act_group_aware=False, mse=job["mse"], damp_percent=job["damp"],
            static_groups=job["static_groups"],
        )  # fmt: skip
    # On CPUs float32 is the faster and the more exact; its AWQ kernels take 16-bit types only.
    wide = job["method"] == "gptq" and not torch.cuda.is_available()
    model = GPTQModel.load(job["model"], config, **({"dtype": torch.float32} if wide else {}))
    layers = model.model.config.get_text_config().num_hidden_layers

    class Callback:
        def layer_complete(self, *, layer_idx: int, submodule_finalized: bool) -> None:
            if submodule_finalized:
                emit(what=f"layer {layer_idx}", done=layer_idx + 1, total=layers)

    model.layer_callback = Callback()
    windows = [{"input_ids": window, "attention_mask": [1] * len(window)} for window in job["tokens"]]
    model.quantize(windows, batch_size=1, calibration_sort=None, **options)
    model.save(job["output"])


def _keep_weights_between_scales(quantizer_class: Any) -> None:
    """Let AutoAWQ's search of a scale try every candidate on the original weights, on a CPU too.

    It keeps them as ``{name: tensor.cpu()}``, which on a CPU is no copy: the first candidate multiplies the kept
    weights in place, every later one is judged on that, and the model stays multiplied by it.
    """
    upstream = quantizer_class._compute_best_scale

    def compute_best_scale(
        self: Any, x: Any, w_mean: Any, x_mean: Any, module2inspect: Any, *args: Any, **kwargs: Any
    ) -> Any:
        state = module2inspect.state_dict
        module2inspect.state_dict = lambda: {name: tensor.clone() for name, tensor in state().items()}
        try:
            return upstream(self, x, w_mean, x_mean, module2inspect, *args, **kwargs)
        finally:
            del module2inspect.state_dict

    quantizer_class._compute_best_scale = compute_best_scale


def run_autoawq(job: dict[str, Any], emit: Emit) -> None:
    """AutoAWQ 0.2.9: 4-bit AWQ."""
    import awq.quantize.quantizer as quantizer
    import torch
    from awq import AutoAWQForCausalLM
    from transformers import AutoTokenizer

    def counted(items: Any, **_: Any) -> Any:
        for index, item in enumerate(items):
            yield item
            emit(what=f"layer {index}", done=index + 1, total=len(items))

    quantizer.tqdm = counted
    _keep_weights_between_scales(quantizer.AwqQuantizer)
    tokenizer = AutoTokenizer.from_pretrained(job["model"], local_files_only=True)
    dtype = "auto" if torch.cuda.is_available() else torch.float32
    model = AutoAWQForCausalLM.from_pretrained(job["model"], device_map="cpu", torch_dtype=dtype)
    config = {
        "zero_point": not job["symmetric"], "q_group_size": job["group_size"], "w_bit": job["bits"], "version": "GEMM"
    }  # fmt: skip
    tokens = job["tokens"]
    model.quantize(
        tokenizer, quant_config=config, calib_data=tokens,
        max_calib_samples=len(tokens), max_calib_seq_len=len(tokens[0]),
    )  # fmt: skip
    model.save_quantized(job["output"])


def main(arguments: list[str]) -> None:
    """Run the job in ``arguments[0]``, events to descriptor ``arguments[1]``."""
    _die_with_parent()
    with open(arguments[0], encoding="utf-8") as file:
        job = json.load(file)
    if (os.cpu_count() or 1) <= 2:
        # GPTQModel's worker pool reserves cores that a small machine does not have.
        os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    with os.fdopen(int(arguments[1]), "w", buffering=1) as events:

        def emit(**event: Any) -> None:
            print(json.dumps({**event, "peak": peak_memory()}), file=events)

        import torch

        torch.manual_seed(job["seed"])
        {"gptqmodel": run_gptqmodel, "autoawq": run_autoawq}[job["library"]](job, emit)
        emit()


if __name__ == "__main__":
    main(sys.argv[1:])
