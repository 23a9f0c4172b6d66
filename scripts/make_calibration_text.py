"""Make ``vllm_quant_plugin/quantize/data/calibration.txt``, the calibration text used when none is given.

Source: the Python standard library of the interpreter that runs this (PSF licence), half of it
prose (the language reference in ``pydoc_data.topics``), half code (``MODULES``). None of the
modules is in the held-out texts of the bundled model. Documents are separated by newline and NUL.
The shipped file was made with CPython 3.11.7.
"""

from __future__ import annotations

import sysconfig
from pathlib import Path
from pydoc_data.topics import topics

TARGET = Path(__file__).parents[1] / "vllm_quant_plugin" / "quantize" / "data" / "calibration.txt"
CHARS_PER_DOCUMENT = 12_000
CHARS_PER_KIND = 300_000
MODULES = (
    "argparse", "difflib", "dataclasses", "heapq", "textwrap", "tokenize", "urllib/parse", "pathlib", "shutil",
    "random", "inspect", "bisect", "calendar", "cmd", "codecs", "collections/__init__", "concurrent/futures/thread",
    "configparser", "contextlib", "csv", "datetime", "decimal", "doctest", "enum", "fractions", "functools", "gzip",
    "http/client", "html/parser", "ipaddress", "json/decoder", "logging/handlers", "mailbox", "numbers", "optparse",
    "pickle", "pprint", "queue", "selectors", "socketserver", "tarfile", "threading", "traceback", "typing", "uuid",
    "weakref", "xml/dom/minidom", "zipfile",
)  # fmt: skip


def _take(documents: list[str], budget: int) -> list[str]:
    taken = []
    for document in documents:
        text = document.strip().replace("\0", "")[:CHARS_PER_DOCUMENT]
        if len(text) < 200:
            continue
        taken.append(text)
        budget -= len(text)
        if budget <= 0:
            break
    return taken


def main() -> None:
    library = Path(sysconfig.get_paths()["stdlib"])
    code = _take([(library / f"{name}.py").read_text("utf-8") for name in MODULES], CHARS_PER_KIND)
    prose = _take([topics[name] for name in sorted(topics)], CHARS_PER_KIND)
    merged: list[str] = []
    # Alternate in proportion, so that any prefix of the file holds both kinds.
    while code or prose:
        merged.append((code if (len(code) * len(prose) == 0 and code) or len(code) > len(prose) else prose).pop(0))
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_text("\n\0".join(merged) + "\n", "utf-8")
    print(f"{TARGET}: {len(merged)} documents, {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main()
