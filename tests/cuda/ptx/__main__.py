"""python -m tests.cuda.ptx check     compares every source and target with tests/cuda/opcodes.csv
python -m tests.cuda.ptx record    writes that file
"""

from __future__ import annotations

import sys

from tests.cuda.ptx import opcodes


def main(command: str) -> int:
    if command == "check":
        return opcodes.compare()
    if command == "record":
        opcodes.record()
        return 0
    raise SystemExit(__doc__)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
