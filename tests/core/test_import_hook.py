"""A callback after a module's import: once, whether the module comes later or was there before."""

import importlib
import sys
from pathlib import Path

import pytest

from vllm_quant_plugin.import_hook import after_import


@pytest.fixture
def module_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "vqp_hooked_module.py").write_text("VALUE = 41\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "vqp_hooked_module", raising=False)
    return "vqp_hooked_module"


def test_runs_after_the_module_is_complete(module_name: str) -> None:
    seen: list[int] = []
    before = list(sys.meta_path)
    after_import(module_name, lambda: seen.append(sys.modules[module_name].VALUE))
    assert seen == []
    importlib.import_module(module_name)
    assert seen == [41]
    importlib.reload(sys.modules[module_name])
    assert sys.meta_path == before


def test_runs_at_once_when_already_imported(module_name: str) -> None:
    importlib.import_module(module_name)
    seen: list[bool] = []
    after_import(module_name, lambda: seen.append(True))
    assert seen == [True]


def test_a_module_that_does_not_exist_still_fails_to_import() -> None:
    after_import("vqp_no_such_module", lambda: pytest.fail("ran"))
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("vqp_no_such_module")
