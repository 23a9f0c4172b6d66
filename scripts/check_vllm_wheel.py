#!/usr/bin/env python3
"""Checks, without importing it, that a vLLM has every name and parameter this project uses.

For versions that cannot be imported on this machine (wheels built for CUDA):

    python scripts/check_vllm_wheel.py vllm-0.33.0-*.whl
    python scripts/check_vllm_wheel.py path/to/site-packages

It checks every import of vLLM in the project's packages, followed through re-exports to the
definition, and the parameters in the ``RELIED_ON`` tables of its compat modules, looked up
through base classes.
Exit code: 0 everything exists, 1 something is missing, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from static_names import Missing, Sources, member, parameters, resolve

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("vllm_quant_plugin", "kernels/vllm_quant_kernels", "serve/vllm_quant_serve")
MARKER = "<!-- written by scripts/check_vllm_wheel.py -->"


@dataclass(frozen=True)
class Check:
    """One check; ``problem`` is empty where it succeeded."""

    kind: str
    name: str
    parameters: tuple[str, ...]
    used_in: str
    found_in: str
    problem: str


def named(node: ast.AST) -> list[tuple[str, str]]:
    """``(module, name)`` for each vLLM import of one statement; the name is empty for ``import vllm.x``."""
    if isinstance(node, ast.Import):
        return [(alias.name, "") for alias in node.names if alias.name.split(".")[0] == "vllm"]
    if isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] == "vllm":
        return [(node.module or "", alias.name) for alias in node.names]
    return []


def catches_import_errors(handler: ast.ExceptHandler) -> bool:
    """Whether an ``except`` clause names ImportError or ModuleNotFoundError."""
    names = {node.id for node in ast.walk(handler.type or ast.Pass()) if isinstance(node, ast.Name)}
    return bool(names & {"ImportError", "ModuleNotFoundError"})


def excused(check: Check) -> Check:
    """The check of an import whose other side exists."""
    return replace(check, problem="", found_in="absent, another import serves") if check.problem else check


def check_imports(sources: Sources, used_in: str, node: ast.AST) -> list[Check]:
    """Check every import of vLLM under ``node``, at any depth.

    ``try: import ... except ImportError: import ...`` is how the code spans versions: one side has
    to exist completely.
    """
    found = [check_import(sources, used_in, module, name) for module, name in named(node)]
    if isinstance(node, ast.Try):
        fallbacks = [handler for handler in node.handlers if catches_import_errors(handler)]
        first = [check for child in node.body for check in check_imports(sources, used_in, child)]
        second = [check for handler in fallbacks for check in check_imports(sources, used_in, handler)]
        if second and not (any(c.problem for c in first) and any(c.problem for c in second)):
            first, second = ([excused(check) for check in side] for side in (first, second))
        others = [child for child in ast.iter_child_nodes(node) if child not in [*node.body, *fallbacks]]
        return [*first, *second, *(check for child in others for check in check_imports(sources, used_in, child))]
    for child in ast.iter_child_nodes(node):
        found += check_imports(sources, used_in, child)
    return found


def check_import(sources: Sources, used_in: str, module: str, name: str) -> Check:
    """Check one import of ``used_in``."""
    found_in = problem = ""
    try:
        if name:
            definition = resolve(sources, module, name)
            found_in = f"{definition.module}:{definition.name}"
        elif sources.tree(module) is None:
            raise Missing(f"there is no module {module}")
        else:
            found_in = module
    except Missing as error:
        problem = str(error)
    return Check("import", f"{module}:{name}".rstrip(":"), (), used_in, found_in, problem)


def check_signature(sources: Sources, used_in: str, name: str, wanted: tuple[str, ...]) -> Check:
    """Check that ``name`` ("module:qualified.name") has the parameters ``wanted``, in any order, and requires no other.

    A required parameter that we do not pass breaks our call, or vLLM's call of our override.
    """
    module, _, path = name.partition(":")
    found_in = problem = ""
    try:
        first, *rest = path.split(".")
        definition = resolve(sources, module, first)
        for part in rest:
            definition = member(sources, definition, part)
        found_in = f"{definition.module}:{definition.name}"
        if wanted:
            has = parameters(sources, definition)
            absent = [parameter for parameter in wanted if parameter not in has.names]
            added = [parameter for parameter in has.required if parameter not in wanted]
            words = [f"has no parameter {', '.join(absent)}"] * bool(absent)
            words += [f"requires {', '.join(added)} as well"] * bool(added)
            if words:
                problem = f"{found_in} {' and '.join(words)} (it has {', '.join(has.names)})"
    except Missing as error:
        problem = str(error)
    return Check("signature", name, wanted, used_in, found_in, problem)


def relied_on(tree: ast.Module) -> dict[str, tuple[str, ...]]:
    """The literal ``RELIED_ON`` of a module, read without importing it; empty where there is none."""
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "RELIED_ON" and node.value:
            return {str(name): tuple(wanted) for name, wanted in ast.literal_eval(node.value).items()}
    return {}


def run(sources: Sources, root: Path) -> list[Check]:
    """Every check of the project at ``root`` against ``sources``."""
    checks: list[Check] = []
    for file in sorted(file for package in PACKAGES for file in (root / package).rglob("*.py")):
        used_in = str(file.relative_to(root))
        tree = ast.parse(file.read_text(encoding="utf-8"))
        checks += sorted(set(check_imports(sources, used_in, tree)), key=lambda check: check.name)
        checks += [check_signature(sources, used_in, name, wanted) for name, wanted in relied_on(tree).items()]
    return checks


def version(sources: Sources) -> str:
    """The version that the sources state."""
    tree = sources.tree("vllm._version")
    for node in tree.body if tree else []:
        if isinstance(node, ast.Assign) and "version" in {ast.unparse(target) for target in node.targets}:
            return str(ast.literal_eval(node.value))
    return "unknown"


def table(checks: list[Check]) -> str:
    """The checks as a Markdown table, as docs/reference/compat.md has it."""
    rows = sorted({(check.name, ", ".join(check.parameters), check.found_in) for check in checks})
    lines = [f"| `{name}` | {wanted} | {f'`{found}`' if ':' in found else found} |" for name, wanted, found in rows]
    return "\n".join(["| name | parameters relied on | defined in |", "|---|---|---|", *lines, ""])


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vllm", type=Path, help="a vLLM wheel, or the folder that contains vllm/")
    parser.add_argument("--root", type=Path, default=ROOT, help="the project's repository")
    parser.add_argument("--json", action="store_true", help="print every check as JSON")
    parser.add_argument(
        "--update", type=Path, metavar="FILE", help="replace the table in docs/reference/compat.md by these checks"
    )
    options = parser.parse_args()
    if not options.vllm.exists():
        parser.error(f"{options.vllm} does not exist")
    sources = Sources(options.vllm, "vllm")
    if sources.tree("vllm") is None:
        parser.error(f"{options.vllm} holds no vllm/__init__.py")

    checks = run(sources, options.root)
    failed = [check for check in checks if check.problem]
    if options.json:
        print(json.dumps({"version": version(sources), "checks": [asdict(check) for check in checks]}, indent=1))
    for check in failed:
        print(f"{check.used_in}: {check.problem}", file=sys.stderr)
    count = {kind: sum(check.kind == kind for check in checks) for kind in ("import", "signature")}
    summary = (
        f"vLLM {version(sources)}: {count['import']} imports and {count['signature']} signatures checked,"
        f" {len(failed)} missing"
    )
    print(summary, file=sys.stderr)
    if options.update and not failed:
        head, _, _ = options.update.read_text(encoding="utf-8").partition(MARKER)
        options.update.write_text(f"{head}{MARKER}\n\n{summary}.\n\n{table(checks)}", encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
