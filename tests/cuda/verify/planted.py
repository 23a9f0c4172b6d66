"""A child of a verification with planted faults, in place of vllm_quant_kernels.cuda.verify.child.

    planted.py FAULTS --report FD [--import MODULE] TASK [NAME ...]      FAULTS: JSON, family or class -> what it does

Without a fault a family is right, and ours takes half of the other kernel's time.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time


def main() -> int:
    faults, report = json.loads(sys.argv[1]), int(sys.argv[3])
    task, *names = [word for word in sys.argv[4:] if word not in ("--import", "os")]

    def tell(**line: object) -> None:
        os.write(report, (json.dumps(line) + "\n").encode())

    print("a library prints this")
    for name in names or [task]:
        fault = faults.get(name, "")
        if task == "speed":
            tell(begin=name)
        tell(step=f"{name} begins")
        if fault == "hang":
            time.sleep(600)
        elif fault == "deaf hang":
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
            if os.fork() == 0:
                time.sleep(600)
            time.sleep(600)
        elif fault == "signal":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif fault == "garbage":
            os.write(report, b"Segmentation fault (core dumped)\n")
        elif fault == "flood":
            while True:
                os.write(report, b"x" * 65536)
        elif fault == "list":
            tell_raw = b'["status", "right"]\n'
            os.write(report, tell_raw)
        elif fault == "silence":
            return 0
        elif fault == "right, then dies":
            tell(status="right", reason="")
            os.kill(os.getpid(), signal.SIGABRT)
        elif fault == "right, then fails":
            tell(status="right", reason="")
            return 3
        elif fault in ("wrong", "absent", "died", "unfinished", "perfect"):
            tell(status=fault, reason="for this \x1b[31mreason\n")
            return 0
        elif fault == "bad timing":
            tell(**{"class": name, "timing": {"m": -1, "ours": "1"}})
        elif fault == "cannot":
            tell(**{"class": name, "reason": "ValueError: no kernel"})
            continue
        if task == "speed":
            slow = 3 if fault == "slow" else 0.5
            for m in (1, 64, 2048):
                timing = {"m": m, "n": 8, "k": 8, "ours": 10.0 * slow, "theirs": 10.0, "peer": "marlin"}
                tell(**{"class": name, "timing": timing})
    tell(status="right", reason="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
