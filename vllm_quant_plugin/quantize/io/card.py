"""The model card (README.md) of an output folder. No torch."""

from __future__ import annotations

import shlex
from pathlib import Path

from vllm_quant_plugin.architecture.sharding import TP_SIZES
from vllm_quant_plugin.evaluate.quality import unmeasured_quality
from vllm_quant_plugin.quantize.estimate.preflight import Preflight
from vllm_quant_plugin.quantize.io.report import QuantizeReport
from vllm_quant_plugin.sizes import format_size

_WORST = 5


def _bits_table(report: QuantizeReport, plan: Preflight) -> list[str]:
    """How many modules and weights have which scheme; for mixed precision."""
    found: dict[str, tuple[int, int]] = {}
    for module in plan.modules:
        scheme = report.recipe.scheme_for(module.name)
        name = scheme.describe() if scheme else "16-bit"
        count, weights = found.get(name, (0, 0))
        found[name] = count + 1, weights + module.out_features * module.in_features
    total = sum(weights for _, weights in found.values())
    rows = [f"| {name} | {count} | {weights / total:.1%} |" for name, (count, weights) in sorted(found.items())]
    return ["", "| scheme | modules | share of the weights |", "|---|---|---|", *rows]


def model_card(report: QuantizeReport, plan: Preflight) -> str:
    """Markdown with the recipe, sizes, per-module errors, a place for the quality, and how to serve it."""
    name, source = Path(report.output).name, Path(report.model).name
    served = [device for device, reason in plan.stock_vllm.items() if reason is None]
    alone = f"vLLM also serves it without the plugin on: {', '.join(served)}." if served else "It needs the plugin."
    legal = [str(tp) for tp in TP_SIZES if tp not in plan.tp_problems]
    lines = [
        "---",
        "library_name: vllm",
        "tags: [quantized, vllm-quant-plugin]",
        "---",
        f"# {name}",
        "",
        f"{source}, quantized with vllm-quant-plugin {report.versions.get('vllm-quant-plugin', '')}.",
        "",
        f"- Recipe: {report.recipe.describe()}",
        f"- Tensors: {format_size(report.bytes_before)} before, {format_size(report.bytes_after)} after"
        f" ({report.bits_per_weight:.2f} bits per quantized weight, {report.modules} modules)",
        f"- Tensor-parallel sizes: {', '.join(legal)}",
    ]
    if report.recipe.rules:
        lines += _bits_table(report, plan)
    lines += [
        "",
        "```",
        f"vllm-quant serve {shlex.quote(name)}",
        f"vllm serve {shlex.quote(name)}",
        "```",
        "",
        f"In the folder that holds it. The second line is vLLM's own server with the plugin installed. {alone}",
        "",
        "## Quality",
        "",
        *unmeasured_quality(name),
    ]
    if report.errors:
        worst = sorted(report.errors.items(), key=lambda item: -item[1])[:_WORST]
        lines += ["", "Modules that lost most on the calibration text (share of their output's energy):", ""]
        lines += ["| module | lost |", "|---|---|", *(f"| `{module}` | {error:.2%} |" for module, error in worst)]
    lines += ["", f"`quantization.json` holds all that is needed to repeat it: `vllm-quant reproduce {name}`."]
    return "\n".join(lines) + "\n"
