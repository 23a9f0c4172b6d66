"""The module that a kernel of vLLM packs and runs, and integer weights in it.

Parameters have the layout in which vLLM's compressed-tensors method hands them to its mixed-precision kernels; GPTQ's
and AWQ's methods hand over the same tensors, transposed:

    weight_packed      int32 (N, K bits / 32)      codes dense along each row
    weight_scale       (N, groups)
    weight_zero_point  int32 (N bits / 32, groups) zero points dense down each column
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import torch

from vllm_quant_kernels.canonical import CanonicalWeight
from vllm_quant_kernels.packing import pack_dense
from vllm_quant_kernels.scheme import PER_CHANNEL
from vllm_quant_kernels.sizes import round_up
from vllm_quant_plugin.adapter import integers
from vllm_quant_plugin.adapter.forms import Form, forms

# Zero points are packed along the output, in whole words.
ROWS = 32


class VllmLinear(torch.nn.Module):
    """What vLLM's kernels see as their layer, and the work beside the kernel: gather, padding, offsets.

    Args:
        kernel: an object of vLLM with ``apply_weights(layer, x)``; set when the parameters are there.
        n, k: output and input features, without padding.
        rows, columns: the same as the kernel gets them.
    """

    kernel: Any
    source: torch.Tensor | None
    offsets: torch.Tensor | None

    def __init__(self, n: int, k: int, rows: int, columns: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.n, self.k, self.rows, self.columns = n, k, rows, columns
        # The names that kernels of vLLM read.
        self.input_size = self.input_size_per_partition = columns
        self.output_size = self.output_size_per_partition = rows
        self.output_partition_sizes = self.logical_widths = [rows]
        self.params_dtype = self.orig_dtype = dtype
        self.weight_block_size: list[int] | None = None
        self.has_bias, self.bias = False, None
        self.register_parameter("source", None)
        self.register_parameter("offsets", None)
        self.group = PER_CHANNEL
        # Whether ``source`` has padding columns, which read a zero behind the last feature.
        self.gathers_zeros = False

    def keep(self, name: str, tensor: torch.Tensor | None) -> None:
        """Make ``tensor`` a parameter, so that vLLM counts and moves it."""
        value = None if tensor is None else torch.nn.Parameter(tensor, requires_grad=False)
        self.register_parameter(name, value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., K) to (..., N)."""
        rows = x.reshape(-1, self.k)
        if self.source is not None:
            if self.gathers_zeros:
                rows = torch.nn.functional.pad(rows, (0, 1))
            rows = rows.index_select(1, self.source)
        elif self.columns != self.k:
            rows = torch.nn.functional.pad(rows, (0, self.columns - self.k))
        out = self.kernel.apply_weights(self, rows, None)
        if self.rows != self.n:
            out = out[:, : self.n].contiguous()
        if self.offsets is not None:
            size = self.columns if self.group == PER_CHANNEL else self.group
            sums = rows.view(rows.shape[0], -1, size).sum(dim=2, dtype=torch.float32).to(x.dtype)
            out = torch.addmm(out, sums, self.offsets.t())
        return out.view(*x.shape[:-1], self.n)


def choose(weight: CanonicalWeight, dtype: torch.dtype) -> tuple[type[Any], Any, integers.Layout, Form] | None:
    """The kernel that vLLM chooses for an integer weight: (class, config, layout, form); None where it has none."""
    from vllm_quant_plugin import compat_adapter as vllm

    found = integers.layouts(weight)
    by_size = {layout.group: layout for layout in found}
    for form in forms(weight.bits, integers.zeros_of(weight), tuple(by_size)):
        if not integers.fits(weight, form):
            continue
        layout = by_size[form.group]
        shape = (layout.count, padded_rows(weight.out_features, form))
        config = vllm.MPLinearLayerConfig(
            full_weight_shape=shape, partition_weight_shape=shape, weight_type=vllm.weight_type(form.bits, form.zeros),
            act_type=dtype, group_size=form.group, zero_points=form.zeros,
        )  # fmt: skip
        kernel = _chosen(config)
        # Kernels of ours that serve other methods are in the same list; Exllama reads groups of 32 and more.
        if kernel is not None and kernel.__module__.startswith("vllm.") and _reads(kernel, form):
            return kernel, config, layout, form
    return None


def _chosen(config: Any) -> type[Any] | None:
    from vllm_quant_plugin import compat_adapter as vllm

    try:
        return vllm.choose_mp_linear_kernel(config)
    except ValueError:
        return None


def _reads(kernel: type[Any], form: Form) -> bool:
    return form.group != 16 or "Humming" in kernel.__name__


def padded_rows(n: int, form: Form) -> int:
    """Rows that the kernel gets: whole words of zero points."""
    return round_up(n, ROWS) if form.zeros else n


def build_integers(weight: CanonicalWeight, dtype: torch.dtype) -> VllmLinear:
    """``weight`` packed by the kernel that vLLM chooses for it.

    Raises:
        ValueError: vLLM has none.
    """
    from vllm_quant_plugin import compat_adapter as vllm

    chosen = choose(weight, dtype)
    if chosen is None:
        raise ValueError("vLLM has no kernel for this weight")
    kernel, config, layout, form = chosen
    converted = integers.convert(weight, layout, form, dtype)
    n, rows = weight.out_features, config.partition_weight_shape[1]
    module = VllmLinear(n, weight.in_features, rows, layout.count, dtype)
    module.group = layout.group
    packed: dict[str, Any] = {"packed_factor": Fraction(32, form.bits), "weight_loader": vllm.no_loader}

    def padded(table: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(table, (0, 0, 0, rows - n))

    module.weight_packed = vllm.PackedvLLMParameter(
        data=pack_dense(padded(converted.codes), form.bits), input_dim=1, output_dim=0, packed_dim=1, **packed
    )
    module.weight_scale = vllm.GroupQuantScaleParameter(
        data=padded(converted.scales).contiguous(), input_dim=1, output_dim=0, weight_loader=vllm.no_loader
    )
    if converted.zeros is not None:
        words = pack_dense(padded(converted.zeros).t().contiguous(), form.bits).t().contiguous()
        module.weight_zero_point = vllm.PackedvLLMParameter(
            data=words, input_dim=1, output_dim=0, packed_dim=0, **packed
        )
    module.kernel = kernel(
        config, w_q_param_name="weight_packed", w_s_param_name="weight_scale", w_zp_param_name="weight_zero_point"
    )
    module.kernel.process_weights_after_loading(module)
    # Not before: Humming replaces all parameters that it finds.
    if layout.source is not None:
        module.keep("source", layout.source.to(torch.int32))
        module.gathers_zeros = bool((layout.source == module.k).any())
    module.keep("offsets", converted.offsets)
    return module
