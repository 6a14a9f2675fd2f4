"""libasvp in onnxruntime: sessions that come, run at once, and go."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from tests.helpers.native_sessions import RANK2, model, normal, options, perturb, run, session


def in_a_process(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_registering_twice_does_no_harm(library):
    twice = options(library, library)
    content = model(RANK2).SerializeToString()
    x = normal(1, 6, 7, 9)
    wanted = perturb(library, x, **RANK2)
    for chosen in (twice, twice, options(library)):
        opened = ort.InferenceSession(content, chosen, providers=["CPUExecutionProvider"])
        np.testing.assert_array_equal(run(opened, x), wanted)


@pytest.mark.parametrize("sessions", [1, 4])
def test_four_threads_run_at_once(library, sessions):
    made = model(RANK2, {**RANK2, "axis": 2})
    opened = [session(made, library, threads=2) for _ in range(sessions)]
    maps = [normal(1 + i % 3, 16, 40 + i, 50, seed=i) for i in range(12)]
    wanted = [run(opened[0], x) for x in maps]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            got = pool.map(lambda i: run(opened[i % sessions], maps[i]), range(12))
            for y, expected in zip(got, wanted, strict=True):
                np.testing.assert_array_equal(y, expected)


LOOP = """
    import ctypes, gc, sys
    from concurrent.futures import ThreadPoolExecutor
    from pathlib import Path
    import numpy as np, onnxruntime as ort
    library, content = sys.argv[1], Path(sys.argv[2]).read_bytes()
    x = np.random.default_rng(0).standard_normal((1, 16, 64, 64)).astype(np.float32)
    def opened():
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.register_custom_ops_library(library)
        return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    def mapped():
        return library in Path("/proc/self/maps").read_text()
    class Heap(ctypes.Structure):
        _fields_ = [(str(i), ctypes.c_size_t) for i in range(10)]
    def held():
        gc.collect()
        mallinfo = ctypes.CDLL(None).mallinfo2
        mallinfo.restype = Heap
        heap = mallinfo()
        return getattr(heap, "7") + getattr(heap, "4")  # bytes in use, in the heap and mapped
"""


@pytest.fixture(scope="session")
def saved(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    onnx.save(model(*[RANK2, {**RANK2, "axis": 2}] * 10), path)
    return str(path)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc 2.33 to tell what is allocated")
@pytest.mark.parametrize("kept", [False, True], ids=["unloaded each time", "kept loaded"])
def test_hundreds_of_sessions_leave_nothing_behind(library, saved, kept):
    code = """
    keep = opened() if KEPT else None
    def once():
        opened().run(None, {"X": x})
        gc.collect()
        assert mapped() == KEPT
    for _ in range(50):
        once()
    before = held()
    for _ in range(400):
        once()
    print(held() - before)
    """
    grown = int(in_a_process(LOOP + code.replace("KEPT", str(kept)), library, saved))
    # onnxruntime itself keeps 10 to 50 KB in 400 sessions, with any model. A kernel that is not freed would be
    # 56 bytes, 20 times a session: 450 KB; the scratch memory of one node 100 MB.
    assert grown < 200_000


def test_threads_may_register_first_at_once(library, saved):
    code = """
    with ThreadPoolExecutor(8) as pool:
        sessions = list(pool.map(lambda _: opened(), range(8)))
    results = [s.run(None, {"X": x})[0] for s in sessions]
    assert all((y == results[0]).all() for y in results)
    """
    for _ in range(5):
        in_a_process(LOOP + code, library, saved)


@pytest.mark.parametrize("loaded_first", [False, True])
def test_a_process_may_end_with_sessions_open(library, saved, loaded_first):
    code = "import ctypes, sys\nctypes.CDLL(sys.argv[1])\n" if loaded_first else ""
    in_a_process(
        code + textwrap.dedent(LOOP) + "import builtins\nbuiltins.alive = s = opened()\ns.run(None, {'X': x})\n",
        library,
        saved,
    )
