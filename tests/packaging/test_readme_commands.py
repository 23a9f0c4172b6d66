"""Which commands ``make test-readme`` finds on the pages."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("readme_commands", ROOT / "scripts/readme_commands.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_commands_are_those_of_the_shell_blocks(script: ModuleType) -> None:
    page = """
Run `vllm-quant plan OUT --gpu h100:2`, not `vllm-quant plan`.

```yaml
make: no command
```
```sh
MODEL=folder
vllm-quant quantize $MODEL \\
    -m gptq -o OUT   # writes OUT
vllm-quant serve MODEL [flags]
```
```
vllm-quant eval OUT --reference MODEL
what it prints
```
"""
    assert script.commands(page) == [
        "vllm-quant plan OUT --gpu h100:2", "MODEL=folder", "vllm-quant quantize $MODEL      -m gptq -o OUT",
        f"vllm-quant eval OUT --reference {script.MODEL}",
    ]  # fmt: skip


def test_the_readme_is_read(script: ModuleType) -> None:
    found = script.commands((ROOT / "README.md").read_text("utf-8"))
    assert script.ACTIVATE in found
    assert [line.split()[0] for line in found if script.SERVERS.match(line)] == ["vllm-quant", "vllm", "vllm"]
    assert all((ROOT / page).is_file() for page in script.PAGES)
    for line in script.EXAMPLES[1:]:
        assert any((ROOT / word).is_file() for word in line.split() if word.startswith("examples/")), line


def test_the_session_reports_each_command(script: ModuleType, tmp_path: Path) -> None:
    program = script.program(["A=it\\'s", 'python -c "import sys; sys.exit(3)"', "make test", "make --version"])
    done = subprocess.run(["bash"], input=program, cwd=tmp_path, capture_output=True, text=True, check=True)
    codes = [line.rpartition(" ")[0] for line in done.stdout.splitlines() if line.startswith("@ ")]
    assert codes == ["@ 0 0", "@ 1 3", "@ 3 0"], "make test is skipped"
    assert "$ A=it\\'s" in done.stdout
