"""lm-eval's tasks by name: what its vLLM backend is given and finds, with a stand-in; the real one where installed."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vllm_quant_plugin.compat import vllm_version
from vllm_quant_plugin.errors import StartupError, UsageError
from vllm_quant_plugin.evaluate.harness import run_tasks
from vllm_quant_plugin.text.windows import BUNDLED

TASK = """
task: completion
dataset_path: json
dataset_kwargs: {data_files: {test: DOCS}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{q}}"
doc_to_target: gold
doc_to_choice: "{{choices}}"
target_delimiter: ""
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
metadata: {version: 1.0}
"""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A harness that knows one task; what it was asked, once it was."""
    found: dict[str, Any] = {}

    class TaskManager:
        def __init__(self, include_path: str | None) -> None:
            found["include"] = include_path

        def match_tasks(self, names: list[str]) -> list[str]:
            return [name for name in names if name == "known"]

    def simple_evaluate(**arguments: Any) -> dict[str, Any]:
        found.update(arguments, vllm=importlib.metadata.version("vllm"))
        if arguments["limit"] == 0:
            raise ValueError("a long story\nno data for known")
        return {"results": {"known": {"alias": "known", "acc,none": 0.5, "acc_stderr,none": "N/A"}}}

    package, tasks = ModuleType("lm_eval"), ModuleType("lm_eval.tasks")
    vars(package).update(simple_evaluate=simple_evaluate, tasks=tasks)
    vars(tasks).update(TaskManager=TaskManager)
    monkeypatch.setitem(sys.modules, "lm_eval", package)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", tasks)
    return found


def test_what_the_backend_is_given(asked: dict[str, Any], tmp_path: Path) -> None:
    before = importlib.metadata.version
    scores = run_tasks(BUNDLED, ["known"], limit=3, include=tmp_path, dtype="float32")
    assert scores == {"known": {"acc,none": 0.5}}
    assert (asked["model"], asked["limit"], asked["include"]) == ("vllm", 3, str(tmp_path))
    assert asked["model_args"]["pretrained"] == str(BUNDLED)
    assert asked["model_args"]["dtype"] == "float32"
    # The backend asks for a distribution named vllm; the CPU wheel's has another name.
    assert asked["vllm"] == vllm_version() != "unknown"
    assert importlib.metadata.version is before


def test_what_cannot_be_run_is_one_line(asked: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="no task 'unknown'"):
        run_tasks(BUNDLED, ["known", "unknown"])
    with pytest.raises(StartupError, match="no data for known") as caught:
        run_tasks(BUNDLED, ["known"], limit=0)
    assert "\n" not in caught.value.message


@pytest.mark.engine
@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed")
def test_the_real_one(tmp_path: Path) -> None:
    lines = [("for i in ran", "ge(10):", "purple soup"), ("def __init__(se", "lf):", "rhinoceros")]
    docs = [json.dumps({"q": q, "choices": [wrong, right], "gold": 1}) for q, right, wrong in lines]
    (tmp_path / "docs.jsonl").write_text("\n".join(docs))
    (tmp_path / "completion.yaml").write_text(TASK.replace("DOCS", str(tmp_path / "docs.jsonl")))
    scores = run_tasks(BUNDLED, ["completion"], include=tmp_path)
    assert scores["completion"]["acc,none"] == 1
