"""What all tests share: seeds, one thread, and the way to the real data."""

import contextlib
import os
from pathlib import Path

# Both are read when the libraries are imported, further down.
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("TQDM_DISABLE", "1")

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
