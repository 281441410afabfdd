"""What all tests share: seeds, one thread, and the way to the real data."""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

# Both are read when the libraries are imported, further down.
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("TQDM_DISABLE", "1")

import numpy as np
import pytest
import scvi
import torch

torch.set_num_threads(1)

with contextlib.suppress(ImportError):
    import hypothesis

    # The same examples in every run, and no deadline: the first call of many a torch function is slow.
    hypothesis.settings.register_profile("transverse", derandomize=True, deadline=None)
    hypothesis.settings.load_profile("transverse")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that asks for the real data, so that ``-m real_data`` finds them all."""
    for item in items:
        if "real_data_dir" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.real_data)


@pytest.fixture(autouse=True)
def _seed() -> None:
    scvi.settings.seed = 0


@pytest.fixture(scope="session")
def real_data_dir() -> Path:
    """The folder of real data files: ``$TRANSVERSE_DATA``, or ``../shared/data`` beside the checkout."""
    default = Path(__file__).parents[1] / ".." / "shared" / "data"
    folder = Path(os.environ.get("TRANSVERSE_DATA") or default).resolve()
    if not folder.is_dir():
        pytest.skip("the real data are not here: set TRANSVERSE_DATA to their folder")
    return folder


@pytest.fixture
def in_two_processes(tmp_path) -> Callable[[str], list]:
    """Run a script as both processes of a training; what each writes to ``{folder}/{rank}.npz``."""

    def run(text: str) -> list:
        script = tmp_path / "rank.py"
        script.write_text(text)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        # both at once, which is twice as fast as Lightning, whose first process starts the other
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "NODE_RANK": "0"}
        ranks = [
            subprocess.Popen(
                [sys.executable, str(script), str(tmp_path)],
                env={**os.environ, **address, "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
                cwd=tmp_path,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in (0, 1)
        ]
        try:
            for rank in ranks:
                _, errors = rank.communicate(timeout=120)
                assert rank.returncode == 0, errors[-3000:]
        finally:
            for rank in ranks:
                rank.kill()
                rank.communicate()
        return [np.load(tmp_path / f"{rank}.npz") for rank in (0, 1)]

    return run
