"""When vLLM refuses a model, the reason is one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from vllm_quant_plugin.errors import StartupError
from vllm_quant_plugin.evaluate.api import evaluate_model
from vllm_quant_plugin.text.windows import BUNDLED


@pytest.mark.engine
def test_the_reason_is_one_line(tmp_path: Path) -> None:
    folder = shutil.copytree(BUNDLED, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "nonsense"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(StartupError) as caught:
        evaluate_model(folder, windows=1)
    assert "nonsense" in caught.value.message
    assert "\n" not in caught.value.message
    assert "pydantic" not in caught.value.message
