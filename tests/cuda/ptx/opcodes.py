"""Opcode counts of every kernel's PTX: a change of the sources that is not about instructions keeps them."""

from __future__ import annotations

import collections
import csv
import re
from collections.abc import Iterable, Iterator

from tests.cuda.compiled import SOURCES, compile_unit
from tests.cuda.sass import ROOT, compiler

RECORD = ROOT / "tests" / "cuda" / "opcodes.csv"
TARGETS = ("sm_80", "sm_90a")
KEY = ("source", "target", "kernel")
# These count with what follows the first dot: ld.shared is not ld.global.
QUALIFIED = {"ld", "st", "cp", "wgmma", "mbarrier", "fence", "barrier", "cvt", "mma"}
ENTRY = re.compile(r"^(?:\.visible )?\.entry ", re.MULTILINE)
INSTRUCTION = re.compile(r"^\s*(?:@!?%?\w+\s+)?([a-z][A-Za-z0-9_.:]*)[^:\n]*;", re.MULTILINE)

Counts = dict[str, int]


def kernel_name(mangled: str) -> str:
    """The kernel and its template arguments, such as ``wna16<Half,4,8,0>``, without namespaces and parameters."""
    at, names = len("_ZN"), []
    while digits := re.match(r"\d+", mangled[at:]):
        at += len(digits[0])
        names.append(mangled[at : at + int(digits[0])])
        at += int(digits[0])
    arguments = [kind or value for kind, value in re.findall(r"(Half|BFloat16)|L[ib](\d+)E", mangled[at:])]
    return f"{names[-1]}<{','.join(arguments)}>" if arguments else names[-1]


def kernels(text: str) -> Iterator[tuple[str, str]]:
    """Name and body of each kernel."""
    for kernel in ENTRY.split(text)[1:]:
        mangled, body = kernel.split("(", 1)
        yield kernel_name(mangled), body


def opcode(instruction: str) -> str:
    parts = instruction.split(".")
    return ".".join(parts[: 2 if parts[0] in QUALIFIED else 1])


def count(text: str) -> dict[str, Counts]:
    """Opcodes of each kernel, those of inline assembly among them."""
    found: dict[str, Counts] = {}
    for name, body in kernels(text):
        assert name not in found
        found[name] = dict(collections.Counter(opcode(text) for text in INSTRUCTION.findall(body)))
    return found


def measure(source: str, target: str) -> dict[str, Counts]:
    """Counts of a file of kernels/cuda."""
    return count(compile_unit(source, target).ptx)


def read() -> tuple[str, dict[tuple[str, str], dict[str, Counts]]]:
    """The release of nvcc and, by source and target, the counts of each kernel."""
    found: dict[tuple[str, str], dict[str, Counts]] = collections.defaultdict(dict)
    with RECORD.open() as file:
        release = file.readline().removeprefix("# nvcc ").strip()
        for row in csv.DictReader(file):
            counts = {name: int(value) for name, value in row.items() if name not in KEY and value}
            found[row["source"], row["target"]][row["kernel"]] = counts
    return release, dict(found)


def write(rows: Iterable[tuple[str, str, str, Counts]]) -> None:
    rows = list(rows)
    names = sorted({name for *_, counts in rows for name in counts})
    with RECORD.open("w") as file:
        file.write(f"# nvcc {compiler()}\n")
        table = csv.writer(file, lineterminator="\n")
        table.writerow([*KEY, *names])
        for *key, counts in rows:
            table.writerow([*key, *(counts.get(name, "") for name in names)])


def units() -> list[tuple[str, str]]:
    return [(path.name, target) for path in sorted(SOURCES.glob("*.cu")) for target in TARGETS]


def differences(source: str, target: str, recorded: dict[str, Counts]) -> list[str]:
    """What the compiler emits other than recorded, one line per kernel."""
    found = measure(source, target)
    lines = [f"{source} {target}: {name} is new or gone" for name in found.keys() ^ recorded.keys()]
    for name in found.keys() & recorded.keys():
        changed = {
            op: (recorded[name].get(op, 0), found[name].get(op, 0))
            for op in found[name].keys() | recorded[name].keys()
            if found[name].get(op) != recorded[name].get(op)
        }
        if changed:
            lines.append(f"{source} {target}: {name} (recorded, now): {changed}")
    return sorted(lines)


def compare() -> int:
    """Print what differs from the record; the exit status."""
    release, recorded = read()
    if release != compiler():
        print(f"recorded with nvcc {release}, this is {compiler()}: nothing can be compared")
        return 1
    lines = [line for unit in units() for line in differences(*unit, recorded.get(unit, {}))]
    print("\n".join(lines) or "every kernel has the recorded opcodes")
    return bool(lines)


def record() -> None:
    """Write the record."""
    write((*unit, name, counts) for unit in units() for name, counts in measure(*unit).items())
