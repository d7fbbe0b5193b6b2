"""Threads of numerical libraries in this process, and the kernels that OpenBLAS chooses.

Environment variables affect libraries that are loaded later; threadpoolctl affects those that are
loaded already.
"""

import os
import sys
from pathlib import Path

from threadpoolctl import threadpool_limits

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
BLAS_KERNELS = {
    "SkylakeX": {"avx512f", "avx512dq", "avx512bw", "avx512vl"},
    "Haswell": {"avx2", "fma"},
}
"""OpenBLAS's name for its kernels, fastest first, and what a processor must have for them."""


def limit_threads(threads: int) -> None:
    """Limit torch, OpenMP (and so FAISS) and BLAS in this process to `threads` threads each."""
    os.environ.update({name: str(threads) for name in THREAD_VARIABLES})
    choose_blas_kernels()
    limit_loaded_libraries(threads)


def limit_loaded_libraries(threads: int) -> None:
    """The part of `limit_threads` for libraries that this process has imported already."""
    threadpool_limits(limits=threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)  # torch has a setting of its own


def choose_blas_kernels() -> None:
    """Let OpenBLAS use AVX-512 or AVX2 if the CPU has it; a user's OPENBLAS_CORETYPE wins.

    The OpenBLAS in faiss-cpu does not recognize CPUs that are newer than itself, and falls back to
    SSE3 kernels, which are 4 times slower (measured on AMD Zen 5 and Intel Emerald Rapids). On Zen 4,
    SkylakeX is as fast as its own choice; Haswell was compared on no CPU that it knows.
    """
    flags = _cpu_flags()
    for name, needed in BLAS_KERNELS.items():
        if flags >= needed:
            os.environ.setdefault("OPENBLAS_CORETYPE", name)


def _cpu_flags() -> set[str]:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return set()

    with cpuinfo.open() as lines:
        flags = next((line for line in lines if line.startswith("flags")), "flags:")
    return set(flags.split(":", 1)[1].split())
