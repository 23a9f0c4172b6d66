"""The plugin's quantization configs: one class per vLLM method, and which layer gets which method.

The names come from the formats (``Format.vllm_methods``). ``vqp_fp8`` and ``vqp_int8`` also quantize a 16-bit
checkpoint while it loads (``vllm_quant_plugin.online``).
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import torch

from vllm_quant_plugin import compat
from vllm_quant_plugin.errors import CheckpointError
from vllm_quant_plugin.formats import Host, formats, get_format, parse_quantization_config, plugin_method
from vllm_quant_plugin.formats.base import Headers
from vllm_quant_plugin.formats.registry import refined
from vllm_quant_plugin.formats.verdict import Verdict, described_parts, judge, stored_parts
from vllm_quant_plugin.loader.reordered import refuse_unordered
from vllm_quant_plugin.methods.headers import stored_modules
from vllm_quant_plugin.online import ALIASES, online_scheme, quantizes_online
from vllm_quant_plugin.schemes import ModelScheme, StoredScheme, names_module
from vllm_quant_plugin.side_config import with_method
from vllm_quant_plugin.transforms import ATTENTION, PartTransforms, refuse_unplaced

logger = compat.init_logger(__name__)


def host() -> Host:
    """The platform that vLLM runs on."""
    return Host.local("cpu" if compat.current_platform.is_cpu() else "cuda")


class VqpConfig(compat.QuantizationConfig):
    """Base of the registered configs; ``config_class`` makes them.

    Attributes:
        name: registered with vLLM.
        names: every name it answers to (aliases).
        model: schemes of the checkpoint, or of the online quantization.
    """

    name: ClassVar[str]
    names: ClassVar[tuple[str, ...]]

    def __init__(self, model: ModelScheme | None = None) -> None:
        super().__init__()
        self.model = model if model is not None else online_scheme(self.name, {})

    def __reduce__(self) -> tuple[Callable[[str], VqpConfig], tuple[str], dict[str, Any]]:
        """By the method's name: vLLM sends configs to processes that have not made the class yet."""
        return _unpickle, (self.name,), self.__dict__

    def get_name(self) -> str:
        return self.name

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16, torch.float32]

    @classmethod
    def get_min_capability(cls) -> int:
        return 80

    @classmethod
    def get_config_filenames(cls) -> list[str]:
        """Where vLLM looks for the config when config.json has none."""
        return [file for format in formats() if cls.name in format.vllm_methods for file in format.config_files]

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> VqpConfig:
        if str(config.get("quant_method", "")).lower() in cls.names:
            return cls(online_scheme(cls.name, config))
        return cls(parse_quantization_config(with_method(config)))

    @classmethod
    def override_quantization_method(
        cls, hf_quant_cfg: dict[str, Any], user_quant: str | None, hf_config: Any = None
    ) -> str | None:
        """Claim a checkpoint that the user gave to this method, or one that in-tree vLLM rejects."""
        method = str(hf_quant_cfg.get("quant_method", "")).lower()
        if method in cls.names:
            return user_quant if user_quant in cls.names else method
        if user_quant is not None and user_quant not in cls.names:
            return None
        try:
            model = parse_quantization_config(hf_quant_cfg)
        except CheckpointError:
            if user_quant is not None:
                raise
            return None
        ours = plugin_method(model)
        together = {format.mixed_method for format in formats() if format.matches(hf_quant_cfg)}
        if cls.name != ours and not (user_quant is not None and cls.name in together):
            if user_quant is not None:
                raise CheckpointError(
                    f"--quantization {user_quant} does not read {model.method} checkpoints of this kind",
                    f"use --quantization {ours}" if ours else "leave --quantization out",
                )
            return None
        if user_quant is not None:
            return user_quant
        verdict = _verdict(model, hf_config)
        if verdict.claimed == cls.name:
            logger.info_once("%s takes this checkpoint: in-tree vLLM does not serve %s.", cls.name, verdict.in_tree)
            return cls.name
        return None

    @property
    def kv_cache_scheme(self) -> dict[str, Any] | None:
        """The checkpoint's own KV-cache scheme: vLLM's attention layers switch to an FP8 cache when there is one.

        Raises:
            CheckpointError: scales that are not per tensor.
        """
        scheme = self.model.raw.get("kv_cache_scheme")
        if not isinstance(scheme, dict):
            return None
        if scheme.get("strategy", "tensor") != "tensor" or scheme.get("type", "float") != "float":
            raise CheckpointError(
                f"kv_cache_scheme of {scheme.get('type')} per {scheme.get('strategy')} is not supported",
                "float per tensor is; remove kv_cache_scheme from config.json for a 16-bit KV cache",
            )
        return scheme

    @staticmethod
    def get_cache_scale_mapper() -> Any:
        """Names of KV-cache scales: vLLM's own, and compressed-tensors' ``output_scale`` of k_proj and v_proj."""
        from vllm_quant_plugin.compat_layers import WeightsMapper

        suffixes = {f".{part}_proj.output_scale": f".attn.{part}_scale" for part in "qkv"}
        return WeightsMapper(orig_to_new_suffix=suffixes) | compat.QuantizationConfig.get_cache_scale_mapper()

    def get_checkpoint_weight_mapper(self) -> Any:
        """Tensors by the names that the formats give them. Keeps ``g_idx``, which the default drops.

        A checkpoint's attention module has the transforms that are the attention layer's inside it in vLLM.
        """
        from vllm_quant_plugin.compat_layers import WeightsMapper

        renamed: dict[str, str] = {}
        for scheme in self.model.schemes():
            format = get_format(scheme)
            renamed |= {f".{leaf}": f".{format.leaf(scheme, leaf)}" for leaf in format.leaves}
        inside = [one.leaf for one in self.model.online if one.location in ATTENTION]
        return WeightsMapper(
            orig_to_new_regex={re.compile(rf"(?<!\.attn)\.{re.escape(leaf)}\."): f".attn.{leaf}." for leaf in inside},
            orig_to_new_suffix={old: new for old, new in renamed.items() if old != new},
        )

    def maybe_update_config(self, model_name: str, hf_config: Any = None, revision: str | None = None) -> None:
        """Take from the checkpoint's headers what its config does not tell: modules in 16 bits, a quantized LM head.

        vLLM calls this once, before it builds the model.

        Args:
            model_name: a folder or a Hub id; without safetensors the config alone counts.

        Raises:
            CheckpointError: no layer is there for a transform, or vLLM's model file cannot reorder fused rows.
        """
        if quantizes_online(self.model.method):
            return
        modules = dict(stored_modules(model_name, revision))
        self.model = refined(self.model, list(modules.items()), getattr(hf_config, "architectures", None))
        refuse_unordered(self.model, modules, hf_config)
        if modules and self.model.online:
            # A head that is tied to the embedding has no tensors of its own.
            matrices = {"lm_head": True} | {
                name: any(len(tensor.shape) > 1 for tensor in tensors.values())
                for name, tensors in modules.items()
                if self.model.transform_held_by(name) is None
            }
            refuse_unplaced(self.model.online, matrices)

    def apply_vllm_mapper(self, hf_to_vllm_mapper: Any) -> None:
        """Rename modules from checkpoint to vLLM names. Regular expressions stay."""
        rules = []
        for rule in self.model.rules:
            if rule.mode in ("path", "contains"):
                mapped = hf_to_vllm_mapper.apply_list([rule.pattern])
                rules += [replace(rule, pattern=pattern) for pattern in mapped]
            else:
                rules.append(rule)
        kept, undeclared = (
            frozenset(hf_to_vllm_mapper.apply_list(sorted(names))) for names in (self.model.kept, self.model.undeclared)
        )
        transforms = tuple(one.renamed(hf_to_vllm_mapper.apply_list) for one in self.model.transforms)
        self.model = replace(self.model, rules=tuple(rules), transforms=transforms, kept=kept, undeclared=undeclared)

    def scheme_of(self, prefix: str, cls_name: str = "Linear") -> StoredScheme | None:
        """StoredScheme of the vLLM module ``prefix``, fused parts agreeing.

        Raises:
            CheckpointError: fused parts differ, or the checkpoint stores what the config leaves in 16 bits quantized.
        """
        stem, dot, leaf = prefix.rpartition(".")
        parts = self.packed_modules_mapping.get(leaf)
        if names_module(self.model.kept, prefix):  # stored fused, as Glm4's gate_up_proj
            return None
        if parts:
            scheme = self.model.scheme_for_fused(prefix, parts, cls_name)
        else:
            scheme = self.model.scheme_for(prefix, cls_name)
        if scheme is None:
            self.model.refuse_undeclared(prefix, *(f"{stem}{dot}{part}" for part in parts or ()))
        return scheme

    @functools.cached_property
    def transform_tensors(self) -> Any:
        """What the checkpoint stores of the model's transforms: a ``TransformTensors``."""
        from vllm_quant_plugin.loader.transform_tensors import TransformTensors

        return TransformTensors()

    def transforms_of(self, prefix: str) -> list[PartTransforms]:
        """Online transforms of the vLLM module ``prefix``, by the modules that it fuses; none where none has any."""
        stem, _, last = prefix.rpartition(".")
        names = [f"{stem}.{part}" if stem else part for part in self.packed_modules_mapping.get(last) or [last]]
        parts = [PartTransforms(name, self.model.online_at(name)) for name in names]
        return parts if any(part.applications for part in parts) else []

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> Any:
        # Model layers are imported only where a model is built, not where flags are parsed.
        from vllm_quant_plugin.methods.dispatch import method_for

        return method_for(self, layer, prefix)


def _verdict(model: ModelScheme, hf_config: Any) -> Verdict:
    """Who serves ``model``: by the checkpoint's headers where they can be had, else by its config alone.

    The headers are read each time: a checkpoint may be written again under its name while the process lives.
    """
    name = str(getattr(hf_config, "_name_or_path", None) or "")
    modules: list[tuple[str, Headers]] = []
    with contextlib.suppress(CheckpointError):  # the loading says what is wrong with it
        modules = list(stored_modules(name, getattr(hf_config, "_commit_hash", None))) if name else []
    if not modules:
        return judge(model, host(), described_parts(model, hf_config))
    model = refined(model, modules, getattr(hf_config, "architectures", None))
    return judge(model, host(), stored_parts(modules, model))


@functools.cache
def config_class(name: str) -> type[VqpConfig]:
    """The config of the vLLM method ``name``; the same class each time."""
    names = (name, *(alias for alias, method in ALIASES.items() if method == name))
    title = "".join(word.title() for word in name.split("_"))
    return type(f"{title}Config", (VqpConfig,), {"name": name, "names": names, "__module__": __name__})


def _unpickle(name: str) -> VqpConfig:
    cls = config_class(name)
    return cls.__new__(cls)
