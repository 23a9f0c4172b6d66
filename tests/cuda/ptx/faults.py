"""What the interpreter raises where hardware would fault, hang, or do what PTX leaves undefined."""

from __future__ import annotations


class PtxFault(AssertionError):
    """``str(fault)`` begins with what is wrong; the interpreter adds the CTA, the warp and the instruction."""
