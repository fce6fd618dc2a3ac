"""Which instructions OpenVINO's kernels are made of, read from what it reports of a compiled model.

Two reports are put together. Every operation of the runtime graph names its kernel (``brgconv_avx512_amx_i8``,
``jit_avx2_I8``, ``jit_gemm_I8``): the family, but not whether int8 products are added by VNNI. The compiled model names
the instructions that OpenVINO compiles for on this machine (``isa=Intel AVX-512 with Intel DL Boost``): whether VNNI
is there, but not whether the kernels use the largest family. Both follow ``ONEDNN_MAX_CPU_ISA``; the processor's flags
do not.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

# As kernels are named, the best first. oneDNN's own names are what ONEDNN_MAX_CPU_ISA takes.
_FAMILIES = ("amx", "avx512", "avx2", "avx", "sse42", "sve", "asimd", "neon", "rvv")
_VNNI = re.compile(r"DL Boost|AVX ?10|AMX")
_WITH_VNNI = ("avx512", "avx2")
_ISA = re.compile(r"isa=([^;]*)")
_INT8 = re.compile(r"_[iu]8$", re.IGNORECASE)
_INT16_SUMS = ("avx512", "avx2", "avx", "sse42")
UNKNOWN = "unknown"


def instruction_set(primitives: Iterable[str], requirements: str = "") -> str:
    """The instruction set of the multiplying kernels: ``amx``, ``avx512_vnni``, ``avx512``, ``avx2_vnni``, ``avx2`` ...

    Of the int8 kernels where there are any; else of all, and then nothing is said of VNNI. Where they are of several,
    all of them, joined by ``+``, the most frequent first: ``avx512_vnni+amx``. A kernel whose name holds none
    (``jit_gemm_I8``, ``ref_any``) is generated for the best that OpenVINO compiles for here, and counts where no other
    does.

    Args:
        primitives: ``primitiveType`` of each convolution and matrix product of the runtime graph.
        requirements: the compiled model's ``RUNTIME_REQUIREMENTS``, empty where OpenVINO has no such property. Then
            ``avx512?`` and ``avx2?`` leave open whether VNNI is there.
    """
    names = list(primitives)
    int8 = [name for name in names if _INT8.search(name)]
    match = _ISA.search(requirements)
    isa = match.group(1) if match else ""
    counts = Counter(_family(name.lower().split("_")) for name in int8 or names)
    named = [family for family, _ in counts.most_common() if family is not None]
    suffix = _vnni(isa) if int8 else ""
    found = [f"{name}{suffix if name in _WITH_VNNI else ''}" for name in named or [_family(_words(isa)) or UNKNOWN]]
    return "+".join(found)


def adds_in_int16(instructions: str) -> bool:
    """Whether int8 kernels of this instruction set add pairs of products in int16, which can overflow.

    x86 without VNNI multiplies with ``vpmaddubsw`` (docs/int8.md). Where the set is not known, no.
    """
    return any(part in _INT16_SUMS for part in instructions.split("+"))


def _vnni(isa: str) -> str:
    if not isa:
        return "?"
    return "_vnni" if _VNNI.search(isa) else ""


def _family(words: Iterable[str]) -> str | None:
    known = set(words)
    return next((family for family in _FAMILIES if family in known), None)


def _words(isa: str) -> list[str]:
    """The words of OpenVINO's text in the form in which kernels are named: ``Intel AVX-512 with ...``, ``AVX10.1``."""
    text = isa.lower().replace("avx-512", "avx512").replace("sse4.1", "sse42").replace("sse4.2", "sse42")
    return re.findall(r"[a-z0-9]+", re.sub(r"avx ?10", "avx512 ", text))
