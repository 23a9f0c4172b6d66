"""vLLM without this plugin loads what ``quantize`` writes, wherever its own support on a CPU reaches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vllm_quant_plugin.quantize.api import make_recipe, quantize_model

# Formats that in-tree vLLM 0.32 serves on a CPU with AVX-512 (without it, W8A8 alone).
_WIDE = {"awq": ("awq", {"samples": 8, "seq_len": 64}), "rtn": ("rtn", {}), "fp8": ("fp8", {})}
_PROGRAM = """
import gc, json, sys
from vllm import LLM, SamplingParams
answers = {}
for name, folder in json.loads(sys.argv[1]).items():
    llm = LLM(folder, enforce_eager=True, kv_cache_memory_bytes=16 << 20, max_model_len=64, max_num_seqs=1, seed=0)
    greedy = SamplingParams(temperature=0, max_tokens=4)
    out = llm.generate([{"prompt_token_ids": [0, 300, 301]}], greedy, use_tqdm=False)
    answers[name] = [llm.llm_engine.model_config.quantization, list(out[0].outputs[0].token_ids)]
    del llm
    gc.collect()
print("ANSWERS" + json.dumps(answers))
"""


@pytest.mark.engine
def test_in_tree_vllm_serves_the_output(small_model: Path, tmp_path: Path) -> None:
    static = {"activations": "static", "samples": 8, "seq_len": 64}
    cases = {"int8": ("int8", {}), "int8-static": ("int8", static)}
    if "avx512f" in Path("/proc/cpuinfo").read_text():
        cases |= _WIDE
    for name, (method, options) in cases.items():
        quantize_model(small_model, tmp_path / name, make_recipe(method, **options))
    folders = json.dumps({name: str(tmp_path / name) for name in cases})
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, folders],
        capture_output=True,
        text=True,
        # No entry point has this name, so none of this plugin's is loaded.
        env={**os.environ, "VLLM_PLUGINS": "none", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answers = json.loads(done.stdout.partition("ANSWERS")[2])
    assert set(answers) == set(cases)
    for name, (quantization, tokens) in answers.items():
        assert not quantization.startswith("vqp"), name
        assert len(tokens) == 4
        assert all(0 <= token < 4096 for token in tokens)
