"""Stands in for torchvision where it is not installed: vLLM's multimodal models import it and only images need it."""

from __future__ import annotations

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

_NAME = "torchvision"


class _StandIn(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock(name=f"{self.__name__}.{name}")


class _Finder(MetaPathFinder, Loader):
    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self, is_package=True) if fullname.partition(".")[0] == _NAME else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def stand_in_for_torchvision() -> None:
    """Let ``import torchvision`` succeed; transformers is told first that it is absent, so that it takes other code."""
    if find_spec(_NAME) is not None:
        return
    from transformers.utils import is_torchvision_available

    is_torchvision_available()  # remembers its answer
    sys.meta_path.append(_Finder())
