"""INT8 and FP8 weights as vLLM's scaled-GEMM kernels take them.

INT8  weight int8 (N, K), weight_scale float32 (N, 1)             activations per token or static
FP8   weight (K, N) as a view of rows, weight_scale float32 (N, 1), or one number where all channels agree
FP8 in 128 x 128 blocks: weight (N, K), weight_scale_inv float32 (ceil(N / 128), ceil(K / 128))
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from vllm_quant_kernels.canonical import CanonicalWeight
from vllm_quant_kernels.cuda.w8a8.weight import block_scales
from vllm_quant_kernels.scheme import ActivationScheme
from vllm_quant_kernels.sizes import round_up
from vllm_quant_kernels.static_range import static_int8
from vllm_quant_plugin.adapter.linear import VllmLinear

# CUTLASS reads rows and columns in 16 bytes.
ALIGNMENT, BLOCK = 16, 128
Static = Mapping[str, torch.Tensor]


def build_int8(weight: CanonicalWeight, act: ActivationScheme, static: Static | None, dtype: torch.dtype) -> VllmLinear:
    """An INT8 weight with one scale per channel, for INT8 activations."""
    from vllm_quant_plugin import compat_adapter as vllm

    n, k = weight.out_features, weight.in_features
    rows, columns = round_up(n, ALIGNMENT), round_up(k, ALIGNMENT)
    module = VllmLinear(n, k, rows, columns, dtype)
    config = vllm.Int8ScaledMMLinearLayerConfig(
        is_channelwise=True, is_static_input_scheme=not act.dynamic, input_symmetric=act.symmetric
    )
    scale, zero = (None, None) if act.dynamic else static_int8(static or {}, act.symmetric)
    device = weight.scales.device
    codes = (weight.plain().codes ^ 0x80).view(torch.int8)
    module.keep("weight", torch.nn.functional.pad(codes, (0, columns - k, 0, rows - n)))
    module.keep("weight_scale", torch.nn.functional.pad(weight.scales.float(), (0, 0, 0, rows - n)))
    module.keep("input_scale", None if scale is None else scale.to(device))
    module.keep("input_zero_point", None if zero is None else zero.to(device, torch.int8))
    module.keep("azp_adj", None)
    kernel = vllm.choose_scaled_mm_linear_kernel(config, int8_kernels(), quantization="int8_w8a8")
    names = ["weight", "weight_scale", "input_scale", "input_zero_point", "azp_adj"]
    module.kernel = kernel(config, layer_param_names=names)
    module.kernel.process_weights_after_loading(module)
    if zero is not None:
        # vLLM finds the zero point again from the range, cut off: 4.99998 becomes 4.
        zero = zero.to(device)
        sums = getattr(module, "weight").sum(dim=0, keepdim=True, dtype=torch.int32)  # noqa: B009  (a tensor, for mypy)
        module.keep("azp_adj", zero * sums)
        module.keep("input_zero_point", zero.squeeze())
    return module


def int8_kernels() -> dict[Any, list[Any]]:
    """vLLM's INT8 kernels of this platform, without those that this GPU lacks: CUTLASS has none for Blackwell."""
    from vllm_quant_plugin import compat_adapter as vllm

    platform = vllm.current_platform
    found = list(vllm._POSSIBLE_INT8_KERNELS.get(platform._enum, []))
    capability = platform.get_device_capability()
    if capability is not None and capability.major >= 10:
        found = [kernel for kernel in found if not kernel.__name__.startswith("Cutlass")]
    return {platform._enum: found}


def build_fp8(
    weight: CanonicalWeight, act: ActivationScheme | None, static: Static | None, dtype: torch.dtype
) -> VllmLinear:
    """An FP8 E4M3 weight with one scale per channel, or per 128 x 128 block; ``act`` None: 16-bit activations."""
    from vllm_quant_plugin import compat_adapter as vllm

    w, n, k = weight.plain(), weight.out_features, weight.in_features
    blocks = w.scales.shape[1] > 1
    columns = round_up(k, ALIGNMENT)
    rows = n if blocks else round_up(n, ALIGNMENT)
    module = VllmLinear(n, k, rows, columns, dtype)
    codes = torch.nn.functional.pad(w.codes, (0, columns - k, 0, rows - n)).view(torch.float8_e4m3fn)
    module.keep("input_scale", None)
    if blocks:
        scales = block_scales(w)
        assert scales is not None
        module.weight_block_size = [BLOCK, BLOCK]
        module.keep("weight", codes)
        module.keep("weight_scale_inv", scales)
        weight_key = vllm.create_fp8_quant_key(static=True, group_shape=vllm.GroupShape(BLOCK, BLOCK))
        act_key = vllm.create_fp8_quant_key(static=False, group_shape=vllm.GroupShape(1, BLOCK))
    else:
        scales = w.scales.float()
        one = act is not None and bool((scales == scales[0]).all())
        module.weight = vllm.ModelWeightParameter(
            data=codes.t(), input_dim=0, output_dim=1, weight_loader=vllm.no_loader
        )
        padded = torch.nn.functional.pad(scales, (0, 0, 0, rows - n), value=1.0)
        module.keep("weight_scale", scales[0, 0].clone() if one else padded)
        weight_key = vllm.kFp8StaticTensorSym if one else vllm.kFp8StaticChannelSym
        act_key = vllm.kFp8DynamicTokenSym if act is None or act.dynamic else vllm.kFp8StaticTensorSym
        if act is not None and not act.dynamic:
            module.keep("input_scale", (static or {})["scale"].float().reshape(()).to(scales.device))
    keys: dict[str, Any] = {
        "weight_quant_key": weight_key, "weight_shape": (rows, columns), "input_dtype": dtype, "out_dtype": dtype,
    }  # fmt: skip
    if act is None:
        module.kernel = vllm.init_wfp8_a16_linear_kernel(activation_quant_key=vllm.kFp8DynamicTensorSym, **keys)
    else:
        module.kernel = vllm.init_fp8_linear_kernel(activation_quant_key=act_key, **keys)
    module.kernel.process_weights_after_loading(module)
    return module
