"""The static check of vLLM's names: it passes on the installed vLLM and sees what is missing.

The fake trees below are small vLLMs that re-export, inherit and load lazily the way vLLM
does, so that the check is held to follow each of these, and to fail where one leads nowhere.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts/check_vllm_wheel.py"

VLLM = {
    "vllm/__init__.py": "from .version import __version__\n",
    "vllm/_version.py": "version = '9.9.9'\n",
    "vllm/version.py": "from ._version import version as __version__\n",
    "vllm/layers/__init__.py": "from vllm.layers.linear import *\nfrom .linear import Method as Renamed\n",
    "vllm/layers/linear.py": (
        "class Base:\n"
        "    def apply(self, layer, x, bias=None): ...\n"
        "class Method(Base):\n"
        "    def create(self, layer, *, size: int, **extra): ...\n"
        "class Fields:\n"
        "    first: int\n"
        "    second: int = 0\n"
        "try:\n"
        "    import fast\n"
        "except ImportError:\n"
        "    FALLBACK = 1\n"
    ),
    "vllm/platforms.py": (
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n"
        "    current: int\n"
        "    hidden: int\n"
        "def __getattr__(name):\n"
        "    if name == 'current': return 1\n"
    ),
}
COMPAT = """\
from vllm import __version__
from vllm.layers import FALLBACK, Fields, Method, Renamed
from vllm.layers import linear
from vllm.platforms import current
import vllm.layers.linear
RELIED_ON: dict[str, tuple[str, ...]] = {
    "vllm.layers:Renamed.create": ("size", "layer"),
    "vllm.layers:Method.apply": ("layer", "x", "bias"),
    "vllm.layers:Fields": ("second", "first"),
}
"""


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def check(vllm: Path, root: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), str(vllm), "--root", str(root), *flags]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def project(folder: Path, compat: str = COMPAT) -> Path:
    return write(folder / "project", {"vllm_quant_plugin/compat.py": compat})


def installed_vllm() -> Path:
    spec = importlib.util.find_spec("vllm")
    assert spec
    assert spec.origin
    return Path(spec.origin).parent.parent


def test_the_installed_vllm_has_everything() -> None:
    result = check(installed_vllm(), ROOT)
    assert result.returncode == 0, result.stderr


def test_the_committed_result_covers_every_name() -> None:
    report = json.loads(check(installed_vllm(), ROOT, "--json").stdout)
    table = (ROOT / "docs/reference/compat.md").read_text()
    missing = [
        item["name"]
        for item in report["checks"]
        if f"| `{item['name']}` | {', '.join(item['parameters'])} |" not in table
    ]
    assert not missing, (
        "run scripts/check_vllm_wheel.py on the newest supported wheel with --update docs/reference/compat.md"
    )


def test_wheels_and_folders_read_alike(tmp_path: Path) -> None:
    folder = write(tmp_path / "tree", VLLM)
    wheel = tmp_path / "vllm-9.9.9-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in VLLM.items():
            archive.writestr(name, text)
    reports = [check(path, project(tmp_path), "--json") for path in (folder, wheel)]
    assert [report.returncode for report in reports] == [0, 0], reports[0].stderr
    assert reports[0].stdout == reports[1].stdout
    report = json.loads(reports[0].stdout)
    assert report["version"] == "9.9.9"
    found = {item["name"]: item["found_in"] for item in report["checks"]}
    assert found["vllm.layers:Renamed"] == "vllm.layers.linear:Method"
    assert found["vllm.layers:Method.apply"] == "vllm.layers.linear:Base.apply"
    assert found["vllm:__version__"] == "vllm._version:version"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("vllm/layers/linear.py", "class Fields", "class Other"), "vllm.layers has no Fields"),
        (("vllm/layers/linear.py", "size: int", "extent: int"), "has no parameter size"),
        (("vllm/layers/linear.py", "def apply", "def call"), "has no apply"),
        (("vllm/layers/linear.py", "x, bias", "x, y, bias"), "requires y as well"),
        (("vllm/layers/linear.py", "second: int = 0", "second: int = 0\n    third: int"), "requires third as well"),
        (("vllm/layers/linear.py", "second: int", "third: int"), "has no parameter second"),
        (("vllm/layers/__init__.py", "Method as Renamed", "Base"), "vllm.layers has no Renamed"),
        (("vllm/layers/__init__.py", "from .linear", "from .moved"), "there is no module vllm.layers.moved"),
        (("vllm/platforms.py", "'current'", "'hidden'"), "vllm.platforms has no current"),
        (("vllm/_version.py", "version", "number"), "vllm._version has no version"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, change: tuple[str, str, str], says: str) -> None:
    file, old, new = change
    assert old in VLLM[file]
    tree = write(tmp_path / "tree", {**VLLM, file: VLLM[file].replace(old, new)})
    result = check(tree, project(tmp_path))
    assert result.returncode == 1
    assert says in result.stderr
    assert "Traceback" not in result.stderr


def test_a_missing_module_is_named(tmp_path: Path) -> None:
    tree = write(tmp_path / "tree", {name: text for name, text in VLLM.items() if "platforms" not in name})
    result = check(tree, project(tmp_path))
    assert result.returncode == 1
    assert "there is no module vllm.platforms" in result.stderr


SPAN = """\
RELIED_ON: dict[str, tuple[str, ...]] = {{}}
try:
    from vllm.layers.new import Method
except ImportError:
    from vllm.layers.linear import {fallback} as Method
"""


def test_an_import_with_a_fallback_needs_one_of_its_sides(tmp_path: Path) -> None:
    old = write(tmp_path / "old", VLLM)
    new = write(tmp_path / "new", {**VLLM, "vllm/layers/new.py": "class Method: ...\n", "vllm/layers/linear.py": ""})
    spanning = project(tmp_path / "a", SPAN.format(fallback="Method"))
    for tree, found in ((old, "vllm.layers.linear:Method"), (new, "vllm.layers.new:Method")):
        result = check(tree, spanning, "--json")
        assert result.returncode == 0, result.stderr
        places = {item["found_in"] for item in json.loads(result.stdout)["checks"]}
        assert places == {found, "absent, another import serves"}
    result = check(old, project(tmp_path / "b", SPAN.format(fallback="Gone")))
    assert result.returncode == 1
    assert "vllm.layers.linear has no Gone" in result.stderr


def test_a_failed_check_leaves_the_committed_result_alone(tmp_path: Path) -> None:
    document = tmp_path / "compat.md"
    document.write_text("before\n<!-- written by scripts/check_vllm_wheel.py -->\nold\n")
    broken = write(tmp_path / "broken", {**VLLM, "vllm/platforms.py": ""})
    assert check(broken, project(tmp_path), "--update", str(document)).returncode == 1
    assert document.read_text().endswith("old\n")
    sound = write(tmp_path / "sound", VLLM)
    assert check(sound, project(tmp_path), "--update", str(document)).returncode == 0
    assert document.read_text().startswith("before\n<!-- written")
    assert "| `vllm.layers:Fields` | second, first | `vllm.layers.linear:Fields` |" in document.read_text()


@pytest.mark.parametrize("path", ["absent", "."])
def test_wrong_usage_is_one_line(tmp_path: Path, path: str) -> None:
    result = check(tmp_path / path, project(tmp_path))
    assert result.returncode == 2
    assert "Traceback" not in result.stderr


def test_an_untested_version_gets_one_warning_with_the_range(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm_quant_plugin import compat

    monkeypatch.setattr(compat, "vllm_version", lambda: "0.99.1")
    with pytest.warns(RuntimeWarning, match=r"0\.32 to 0\.33.*0\.99\.1"):
        compat.warn_if_untested()
    monkeypatch.setattr(compat, "vllm_version", lambda: "0.33.7")
    compat.warn_if_untested()
