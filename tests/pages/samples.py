"""One of each page, from recorded figures: written to files, or served."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from vllm_quant_plugin.evaluate.html import html_report
from vllm_quant_plugin.evaluate.report import Divergence, EvalReport, LayerError, TextResult
from vllm_quant_serve.plan.api import PlanRequest, plan_in_context
from vllm_quant_serve.plan.output.compare_html import write_comparison
from vllm_quant_serve.plan.output.explain import explain
from vllm_quant_serve.plan.output.html import write_page
from vllm_quant_serve.plan.search.compare import compare
from vllm_quant_serve.supervise.actuals import Actuals
from vllm_quant_serve.supervise.session import Session
from vllm_quant_serve.supervise.state import State

CONFIGS = Path(__file__).parents[1] / "serve" / "plan" / "configs"
# `vllm-quant quantize` of the bundled model (AWQ): quality.json, and the errors of quantization.json.
RECORDED = Path(__file__).with_name("quality.json")
# A folder may have any name, and a page shows it.
MARKUP = "<img src=x onerror=document.title='hacked'><script>document.title='hacked'</script>\"'&amp;"


def model_folder(parent: Path, config: str, name: str) -> Path:
    """A folder of that name which holds a config only."""
    folder = parent / name
    folder.mkdir()
    (folder / "config.json").write_text((CONFIGS / f"{config}.json").read_text())
    return folder


def write_plan(folder: Path, target: Path, **request: Any) -> None:
    """``plan --html``."""
    context, plan = plan_in_context(PlanRequest(str(folder), **request))
    write_page(replace(plan, model=f"models/{folder.name}"), explain(context, plan), target)


def write_compare(folder: Path, target: Path) -> None:
    """``plan --compare --html``."""
    rows = compare(PlanRequest(str(folder), gpu=("h100:4",)))
    write_comparison(f"models/{folder.name}", rows, target, devices="4 x H100 SXM 80GB")


def recorded_report() -> tuple[EvalReport, dict[str, float]]:
    """The recorded quality report, and the energy lost in each module."""
    found = json.loads(RECORDED.read_text())
    report = dict(found["report"])

    def divergence(kl: dict[str, Any]) -> Divergence:
        return Divergence(**{**kl, "histogram": tuple(kl["histogram"])})

    texts = [TextResult(**{**text, "kl": divergence(text["kl"]), "noise": divergence(text["noise"])})
             for text in report.pop("texts")]  # fmt: skip
    layers = [LayerError(**layer) for layer in report.pop("layers")]
    return EvalReport(**report, texts=texts, layers=layers), found["lost"]


def write_quality(target: Path, name: str = "stdlib-llama-awq") -> None:
    """``quality.html``."""
    report, lost = recorded_report()
    target.write_text(html_report(report, name, "INT4 g128 asym (awq)", lost), "utf-8")


def fill(session: Session) -> None:
    """A quarter of an hour of a server that has work for a while, as the supervisor records it."""
    session.state, now = State.READY, time.time()
    session.ready_at, session.load_seconds = time.monotonic() - 900, 32.5
    plan = session.plan
    assert plan is not None
    session.actuals = Actuals(
        weight_bytes=plan["weight_bytes_per_rank"] * 101 // 100,
        kv_bytes=plan["kv_bytes"]["value"],
        kv_tokens=plan["kv_tokens"]["value"],
    )
    for i in range(180):
        load = max(0.0, math.sin(i / 24)) * (1 + 0.08 * math.sin(1.7 * i))
        sample = {"time": now - 5 * (179 - i), "running": float(round(24 * load)), "generation_rate": 920 * load,
                  "waiting": float(round(max(0.0, 24 * load - 19))), "prompt_rate": 310 * load,
                  "kv_usage": 0.62 * load, "bandwidth_utilization": 0.5 * min(load, 1.0)}  # fmt: skip
        if load > 0.05:
            sample |= {"ttft": 0.021 + 0.16 * load**3, "tpot": 0.011 + 0.016 * load}
        session.history.samples.append(sample)
    events = {-933: "plan: BF16 LlamaForCausalLM on H100 SXM 80GB: weights 14.1 MiB, KV cache 72.08 GiB, of 79.10 GiB",
              -932: "started vLLM, process 25474", -900: "ready after 32.5 s: http://127.0.0.1:8000/v1"}  # fmt: skip
    for seconds, message in events.items():
        session.report.event("note", message)
        session.report.history[-1]["time"] = now + seconds
    # Only that it lives, and how much it has to do.
    session.server = SimpleNamespace(alive=True, pid=25474)  # type: ignore[assignment]
    session.in_flight = lambda: 23  # type: ignore[method-assign]
