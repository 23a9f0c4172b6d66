"""``register``: idempotent, passive, and one warning on a vLLM outside the tested range."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import warnings

import pytest

from vllm_quant_plugin import compat, plugin
from vllm_quant_plugin.compat import TESTED

NAMES = {"vqp_awq", "vqp_gptq", "vqp_fp8", "vqp_int8", "int8", "vqp_compressed_tensors"}


def test_idempotent() -> None:
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS, get_quantization_config

    plugin.register()
    once = list(QUANTIZATION_METHODS)
    classes = {name: get_quantization_config(name) for name in NAMES}
    plugin.register()
    assert list(QUANTIZATION_METHODS) == once
    assert set(once) >= NAMES
    assert {name: get_quantization_config(name) for name in NAMES} == classes
    assert classes["int8"] is classes["vqp_int8"]


def test_a_config_reaches_a_process_that_has_not_made_its_class() -> None:
    from vllm_quant_plugin.methods.config import config_class

    config = config_class("vqp_gptq").from_config({"quant_method": "gptq", "bits": 4, "group_size": 64})
    assert copy.deepcopy(config).model == config.model
    code = (
        "import pickle, sys\n"
        "config = pickle.load(sys.stdin.buffer)\n"
        "print(type(config).__name__, config.get_name(), config.model.default.group_size)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(config), capture_output=True, check=False)
    assert result.returncode == 0, result.stderr.decode()
    assert result.stdout.split() == [b"VqpGptqConfig", b"vqp_gptq", b"64"]


def test_passive() -> None:
    """In a fresh process: no device touched, no model layer imported, no thread setting changed."""
    code = (
        "import sys, torch\n"
        "threads = torch.get_num_threads()\n"
        "from vllm_quant_plugin.plugin import register\n"
        "register()\n"
        "assert not torch.cuda.is_initialized()\n"
        "assert threads == torch.get_num_threads()\n"
        "layers = [m for m in sys.modules if m.startswith('vllm.model_executor.layers.fused_moe')]\n"
        "print(len(layers), 'vllm_quant_kernels.cpu.ops' in sys.modules)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split("\n")[-2] == "0 False"


@pytest.mark.parametrize("version", ["0.30.0", "0.3.20", "0.34.1", "1.0", "unknown"])
def test_untested_version_warns_once(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "vllm_version", lambda: version)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        compat.warn_if_untested()
    assert [str(w.message) for w in caught] == [
        f"vllm-quant-plugin was tested with vLLM {TESTED[0]} to {TESTED[-1]}; this is {version}"
    ]


@pytest.mark.parametrize("version", ["0.32.0", "0.33.0", "0.33.1rc1"])
def test_tested_version_is_quiet(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "vllm_version", lambda: version)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compat.warn_if_untested()


def test_register_warns_at_most_once_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin.register()
    monkeypatch.setattr(compat, "vllm_version", lambda: "0.99")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plugin.register()
