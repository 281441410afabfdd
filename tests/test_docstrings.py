"""Every public object, that is what the reference lists, has examples in its docstring, and they run as printed.

Examples of functions and classes are complete: they get no names but those that they make. Those of a class's methods go
on from the class's own, and so do those that say "of the example of :class:`~transverse.SomeClass`" from that one's.
"""

import doctest
import inspect
import io
import re
from collections.abc import Iterator
from functools import cache, reduce
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import pytest
import scanpy as sc
import scvi
from anndata import AnnData
from lightning.pytorch import Callback, LightningModule
from scvi.model.base import BaseModelClass
from scvi.train import TrainingPlan

import transverse as tv

API = Path(__file__).parents[1] / "docs" / "api"
if not API.is_dir():
    pytest.skip("the reference is not here: it says what is public", allow_module_level=True)

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
# What these define is called by the trainer alone, with a mini-batch of the model's own loader, and has no example.
HOOKS = (LightningModule, Callback, TrainingPlan)
# Examples that cannot run here.
SKIPPED = {
    "ScSpecies.builder": "needs the extra of scvi-tools for hyperparameters",
    "datasets.prepare_norman": "a file that the user has",
    "datasets.prepare_replogle": "a file that the user has",
    "datasets.prepare_sciplex": "a file that the user has",
    "datasets.read_gctx": "a file that the user has",
}


class Public(NamedTuple):
    """A public object, and the class that it is a member of."""

    name: str
    value: Any
    owner: type | None = None

    @property
    def test(self) -> doctest.DocTest:
        """The examples of its docstring."""
        finder = doctest.DocTestFinder(recurse=False)
        return finder.find(self.value, self.name, module=False, globs={})[0]

    @property
    def bases(self) -> list[type]:
        """The classes whose examples its own go on from."""
        named = re.findall(r"of the example of\s+:class:`~transverse\.([\w.]+)`", self.test.docstring)
        return [self.owner] * (self.owner is not None) + [reduce(getattr, name.split("."), tv) for name in named]


def listed() -> Iterator[Public]:
    """The objects that the pages of the reference list."""
    for page in sorted(API.glob("*.md")):
        for names in re.findall(r"\.\. autosummary::\n(.*?)```", page.read_text(), re.DOTALL):
            for name in re.findall(r"^ +([\w.]+)$", names, re.MULTILINE):
                yield Public(name, reduce(getattr, name.split("."), tv))


def members(cls: Public) -> Iterator[Public]:
    """Public methods and properties of a class that are ours."""
    for name, kind, owner, value in inspect.classify_class_attrs(cls.value):
        ours = owner.__module__.split(".")[0] == tv.__name__ and not name.startswith("_") and kind != "data"
        if ours and not any(issubclass(cls.value, hook) and hasattr(hook, name) for hook in HOOKS):
            value = value if isinstance(value, property) else inspect.unwrap(getattr(cls.value, name))
            yield Public(f"{cls.name}.{name}", getattr(value, "__func__", value), cls.value)


def public() -> list[Public]:
    """All public objects. Of methods that baselines inherit one of each; those of models are run with each model."""
    found = {}
    for item in listed():
        found[item.value] = item
        for member in members(item) if inspect.isclass(item.value) else ():
            model = item.value if issubclass(item.value, BaseModelClass) else None
            found.setdefault((member.value, model), member)
    return list(found.values())


PUBLIC = public()


def run(test: doctest.DocTest) -> str:
    """Run examples; what is wrong with them. What they write into data that others made is taken out again."""
    parts = ("obs", "obsm", "uns")
    data = [value for value in test.globs.values() if isinstance(value, AnnData) and not value.is_view]
    before = [[getattr(adata, part).copy() for part in parts] for adata in data]
    report = io.StringIO()
    doctest.DocTestRunner(verbose=False, optionflags=FLAGS).run(test, out=report.write, clear_globs=False)
    for adata, values in zip(data, before, strict=True):
        for part, value in zip(parts, values, strict=True):
            setattr(adata, part, value)
    plt.close("all")
    return report.getvalue()


def examples_of(item: Public) -> doctest.DocTest:
    """The examples of an object, with the names of those that they go on from."""
    test = item.test
    for base in item.bases:
        names, report = run_class(base)
        if report:
            pytest.fail(f"The examples of {base.__name__} do not run:\n{report}", pytrace=False)
        test.globs.update(names)
    return test


@cache
def run_class(cls: type) -> tuple[dict[str, Any], str]:
    """The names that the examples of a class leave, and what is wrong with them."""
    test = examples_of(next(item for item in PUBLIC if item.value is cls))
    return test.globs, run(test)


@pytest.fixture(autouse=True)
def quiet(monkeypatch, tmp_path) -> Iterator[None]:
    """No messages of scvi-tools, which go where examples print, no windows, and a folder for files."""
    monkeypatch.chdir(tmp_path)
    before = scvi.settings.verbosity, sc.settings.autoshow
    scvi.settings.verbosity, sc.settings.autoshow = "ERROR", False
    yield
    scvi.settings.verbosity, sc.settings.autoshow = before


def test_the_reference_lists_all_namespaces():
    names = {item.name for item in PUBLIC}
    for namespace in (tv.pp, tv.tl, tv.pl, tv.metrics, tv.baselines, tv.datasets):
        label = namespace.__name__.removeprefix("transverse.")
        assert names >= {f"{label}.{name}" for name in namespace.__all__}


@pytest.mark.parametrize("item", PUBLIC, ids=lambda item: item.name)
def test_has_examples(item):
    text = inspect.cleandoc(item.value.__doc__ or "")
    assert "\nExamples\n--------\n" in text, f"{item.name} has no examples."
    examples = item.test.examples
    skipped = [example for example in examples if example.options.get(doctest.SKIP)]
    assert len(examples) > len(skipped), f"No example of {item.name} is run."
    assert bool(skipped) == (item.name in SKIPPED), f"Skipped examples of {item.name}: {len(skipped)}."


@pytest.mark.parametrize("item", PUBLIC, ids=lambda item: item.name)
def test_examples_run(item):
    report = run_class(item.value)[1] if inspect.isclass(item.value) else run(examples_of(item))
    if report:
        pytest.fail(report, pytrace=False)
