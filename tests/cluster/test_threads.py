"""Thread limits reach libraries loaded before and after the call; OpenBLAS gets kernels by what the
processor can do.
"""

import json
import os
import subprocess
import sys

import pytest

from cluster import threads
from cluster.session import ROOT

PROGRAM = """
import json, sys
from cluster.threads import limit_threads
{before}
limit_threads(1)
import faiss, numpy, threadpoolctl, torch
pools = {{pool["num_threads"] for pool in threadpoolctl.threadpool_info()}}
print(json.dumps([torch.get_num_threads(), faiss.omp_get_max_threads(), *pools]))
"""


@pytest.mark.parametrize(
    "before",
    ["", "import faiss, numpy, torch; torch.set_num_threads(3); faiss.omp_set_num_threads(3)"],
)
def test_limit_threads_reaches_torch_faiss_and_blas(before: str) -> None:
    program = PROGRAM.format(before=before)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert json.loads(done.stdout) == [1, 1, 1]


@pytest.mark.parametrize(
    ("flags", "kernels"),
    [
        ("fma avx2 avx512f avx512dq avx512bw avx512vl", "SkylakeX"),
        ("fma avx2 avx512f", "Haswell"),
        ("sse2 avx", None),
    ],
)
def test_blas_kernels_are_the_widest_of_the_processor(
    flags: str, kernels: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "_cpu_flags", lambda: set(flags.split()))
    monkeypatch.setenv("OPENBLAS_CORETYPE", "")
    monkeypatch.delenv("OPENBLAS_CORETYPE")
    threads.choose_blas_kernels()
    assert os.environ.get("OPENBLAS_CORETYPE") == kernels
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Zen")
    threads.choose_blas_kernels()
    assert os.environ["OPENBLAS_CORETYPE"] == "Zen"
