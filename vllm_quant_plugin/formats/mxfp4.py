"""GPT-OSS checkpoints (``quant_method: mxfp4``): experts in MXFP4, everything else in 16 bits. Sized, not served."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from vllm_quant_plugin.formats.fields import Fields
from vllm_quant_plugin.formats.fp4 import MXFP4, Fp4Format
from vllm_quant_plugin.formats.host import Host
from vllm_quant_plugin.schemes import ModelScheme, Rule, Storage, StoredScheme

SCHEME = StoredScheme.of(MXFP4, Storage("mxfp4"))


class Mxfp4Format(Fp4Format):
    name: ClassVar[str] = "mxfp4"
    methods: ClassVar[tuple[str, ...]] = ("mxfp4", "gpt_oss_mxfp4")

    def parse(self, config: Mapping[str, Any]) -> ModelScheme:
        fields = Fields(config)
        # The list names what is not an expert: that is in 16 bits here whatever it says.
        fields.harmless(("quant_method", "modules_to_not_convert", "dequantize"))
        fields.finish()
        return ModelScheme("mxfp4", None, (Rule(".experts.", SCHEME, "contains"),))

    def in_tree(self, scheme: StoredScheme, host: Host) -> str | None:
        return "MXFP4 experts on a CPU without AMX" if host.device == "cpu" and not host.has_amx else None
