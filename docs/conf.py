"""Configuration of the documentation, built by ``sphinx-build -W --keep-going -b html docs docs/_build/html``."""

import inspect
import os
import sys
import tomllib
from datetime import date
from pathlib import Path
from types import ModuleType

from sphinx.ext.napoleon.docstring import NumpyDocstring

import transverse

HERE = Path(__file__).parent
PROJECT = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]

# Links into other projects' pages need their inventories, thus a network.
ONLINE = bool(os.environ.get("READTHEDOCS") or os.environ.get("TRANSVERSE_DOCS_ONLINE"))

# -- Project ---------------------------------------------------------------------------------------------------------
project = PROJECT["name"]
author = PROJECT["authors"][0]["name"]
version = release = PROJECT["version"]
copyright = f"{date.today():%Y}, {author}"

# -- Sources ---------------------------------------------------------------------------------------------------------
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_autodoc_typehints",
    "sphinx_copybutton",
    "sphinxcontrib.bibtex",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "_generated", "**.ipynb_checkpoints"]
default_role = "literal"
suppress_warnings = [
    # Types that are imported for the type checker only are shown by name, without a link.
    "sphinx_autodoc_typehints.forward_reference",
    "sphinx_autodoc_typehints.guarded_import",
]
if not list((HERE.parent / "tutorials").glob("*.ipynb")):
    exclude_patterns.append("tutorials.md")
    suppress_warnings.append("toc.not_readable")

bibtex_bibfiles = ["references.bib"]
bibtex_reference_style = "author_year"

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
# Notebooks are committed with their output.
nb_execution_mode = "off"
nb_merge_streams = True
nb_output_stderr = "remove"

# -- Reference -------------------------------------------------------------------------------------------------------
autosummary_generate = True
autodoc_member_order = "bysource"
napoleon_google_docstring = False
napoleon_use_rtype = True
typehints_defaults = "comma"


def inherited_members() -> dict[str, dict[str, str]]:
    """For every public class, by its full name: the public members that another package defines, and their full names."""

    def full_name(owner: type, name: str) -> str:
        base = next(base for base in owner.__mro__ if name in vars(base))
        public = [part for part in base.__module__.split(".") if not part.startswith("_")]
        return ".".join([*public, base.__qualname__, name])

    namespaces = [transverse, *(value for value in vars(transverse).values() if isinstance(value, ModuleType))]
    classes = {
        f"{namespace.__name__}.{label}": value
        for namespace in namespaces
        if namespace.__name__.split(".")[0] == project
        for label, value in vars(namespace).items()
        if inspect.isclass(value)
    }
    return {
        label: {
            name: origin
            for name in dir(value)
            if not name.startswith("_") and not (origin := full_name(value, name)).startswith(f"{project}.")
        }
        for label, value in classes.items()
    }


autosummary_context = {"inherited_from_others": inherited_members()}

if ONLINE:
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "anndata": ("https://anndata.readthedocs.io/en/stable", None),
        "matplotlib": ("https://matplotlib.org/stable", None),
        "mudata": ("https://mudata.readthedocs.io/stable", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "pandas": ("https://pandas.pydata.org/docs", None),
        "scanpy": ("https://scanpy.readthedocs.io/en/stable", None),
        "scipy": ("https://docs.scipy.org/doc/scipy", None),
        "scvi-tools": ("https://docs.scvi-tools.org/en/stable", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
    }

# -- Pages -----------------------------------------------------------------------------------------------------------
html_theme = "sphinx_book_theme"
html_title = project
html_static_path = ["_static"]
html_css_files = ["docs.css"]
html_theme_options = {
    "repository_url": PROJECT["urls"]["Source"],
    "use_repository_button": True,
    "use_issues_button": True,
    "path_to_docs": "docs",
    "show_toc_level": 2,
}


# The notebooks by the question that they answer; those that are not there are left out, further ones are in the list of the page.
TUTORIALS = {
    "quickstart": "What does the package do, in a few minutes?",
    "own_data": "How do I bring my own data in?",
    "scspecies": "Which label does each of my cells get from another species?",
    "scspecies_comparison": "Which cells are unknown, and how do corresponding cells differ?",
    "many_species": "How do I align more than two species?",
    "xtransfercdr": "What would a perturbation do in another cell type?",
    "deepcellstate": "What would a drug's signature be in another cell type?",
    "uge": "Which genes of two species respond alike?",
    "benchmark": "Is my prediction better than the mean?",
    "scaling": "What if my data are larger than memory, or I have GPUs?",
}


def write_tutorials(path: Path) -> None:
    """A table of questions and notebooks, which are the pages' order as well."""
    rows = [f"| {question} | {{doc}}`/tutorials/{name}` |" for name, question in TUTORIALS.items()]
    tree = ["```{toctree}", ":hidden:", "", *(f"/tutorials/{name}" for name in TUTORIALS), "```"]
    path.write_text("\n".join(["| Question | Notebook |", "|---|---|", *rows, "", *tree, ""]))


def generate(app) -> None:
    """What pages need that is no source: the figures of the benchmarks, from the tables of the user guide, and a table."""
    sys.path.insert(0, str(HERE))
    from figures import draw_benchmarks

    folder = HERE / "_generated"
    draw_benchmarks(folder)
    write_tutorials(folder / "tutorials.md")


def prose_returns(docstring: NumpyDocstring, section: str) -> list[str]:
    """``Returns`` as it is written: napoleon takes what stands before a colon or a parenthesis for a name and a type."""
    lines = docstring._dedent(docstring._consume_to_next_section())
    if lines[:1] == [":"]:  # what sphinx-autodoc-typehints puts first
        del lines[0]
    return [*docstring._format_block(":returns: ", lines), ""]


NumpyDocstring._parse_returns_section = prose_returns


def setup(app):
    """Before any page is read, generate what they need."""
    app.connect("builder-inited", generate)
