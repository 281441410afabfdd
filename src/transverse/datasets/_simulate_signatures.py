"""Simulated response signatures of drugs in several cell types, with the noise-free responses known."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd
from anndata import AnnData

from ._checks import check_choice, check_not_negative, check_share, check_whole
from ._screen import measured_pairs, numbered

_PRESETS = {"linear": {"nonlinearity": 0.0}, "nonlinear": {"nonlinearity": 1.0}}
_AT_LEAST_ONE = ("n_cell_types", "n_mechanisms", "n_latent", "n_units", "n_replicates")
_SHARES = ("mechanism_share", "shared_share", "nonlinearity", "missing_share")
_NOT_NEGATIVE = ("strength_sd", "gene_sd", "noise")
_GATE_SLOPE = 3.0


def simulate_signatures(
    preset: Literal["linear", "nonlinear"] = "nonlinear",
    *,
    n_drugs: int = 1500,
    n_cell_types: int = 3,
    n_genes: int = 978,
    n_mechanisms: int = 50,
    n_latent: int = 10,
    n_units: int = 8,
    n_replicates: int = 1,
    mechanism_share: float = 0.5,
    strength_sd: float = 0.3,
    shared_share: float = 0.38,
    nonlinearity: float | None = None,
    gene_sd: float = 0.5,
    noise: float = 0.5,
    missing_share: float = 0.0,
    seed: int = 0,
) -> AnnData:
    r"""Simulate response signatures of drugs in several cell types, to predict those of one from those of another.

    Drug :math:`i` of family (mechanism) :math:`f(i)` has a latent :math:`u_i` of a few dimensions, which every cell
    type :math:`c` decodes into a signature of its own:

    .. math::

        u_i &= s_i \left(\sqrt{q}\, M_{f(i)} + \sqrt{1 - q}\, v_i\right), \qquad M, v \sim \mathcal{N}(0, I), \\
        \eta_{ic} &= \gamma \odot \left[\sqrt{r}\; A u_i
            + \sqrt{1 - r} \left(\sqrt{1 - \lambda}\; B_c u_i + \sqrt{\lambda}\; C_c\, h_c(u_i)\right)\right], \\
        h_{cj}(u) &= (a_{cj}^\top u) \tanh(\kappa\, b_{cj}^\top u), \qquad
        x_{ick} \sim \mathcal{N}(\eta_{ic}, \sigma^2 I),

    where :math:`s` is the drug's strength, :math:`q` the ``mechanism_share``, :math:`r` the ``shared_share``,
    :math:`\lambda` the ``nonlinearity``, :math:`\gamma` the responsiveness of the genes, :math:`\sigma` the ``noise``,
    and :math:`k` the replicate. A unit :math:`h_{cj}` is a pathway (unit vector :math:`a_{cj}`) that the cell type runs
    forwards or in reverse, by a gate (:math:`b_{cj}`, at a right angle to it) of slope :math:`\kappa = 3`: no linear
    function of :math:`u` predicts it. The matrices are normal; the units are centred over the drugs, and they, every
    product with a matrix, and :math:`\eta` over all cell types are scaled to variance 1.

    Parameters
    ----------
    preset
        ``"nonlinear"`` or ``"linear"``: gives the ``nonlinearity`` that is left None, 1 or 0.
    n_drugs
        Drugs, named D0001, D0002 and so on.
    n_cell_types
        Cell types, named C1, C2 and so on.
    n_genes
        Genes, named G0001, G0002 and so on.
    n_mechanisms
        Families of drugs, named M01, M02 and so on, of equal size up to one.
    n_latent
        Dimensions of the latent.
    n_units
        Gated units of every cell type.
    n_replicates
        Signatures of every drug and cell type that is measured, the same but for the noise.
    mechanism_share
        Share of the variance of the latent that the drugs of a family have in common.
    strength_sd
        Standard deviation of the log of the drugs' strength, whose mean square is 1.
    shared_share
        Share of the variance of the noise-free signatures that all cell types have in common.
    nonlinearity
        Share of the variance of a cell type's own part that is not linear in the latent. 0: a linear map from one cell
        type's signatures to another's is exact, but for the noise.
    gene_sd
        Standard deviation of the log of the genes' responsiveness.
    noise
        Standard deviation of the noise, that of the noise-free signatures being 1.
    missing_share
        Share of the pairs of drug and cell type that are not measured, as far as every drug keeps two cell types.
    seed
        Seed of the simulation; the global generators are neither used nor changed. One stream of random numbers a
        part: for one seed, the noise leaves the expectation as it is, and so on.

    Returns
    -------
    :class:`~anndata.AnnData`, a row for every drug, cell type and replicate, in this order, named such as D0001_C1_1:

    - ``X``: signatures, dense float32, noise-free variance 1 (like z-scores: about 0 where nothing responds)
    - ``layers["expected"]``: noise-free signatures :math:`\eta`, dense float32
    - ``obs``: ``perturbation``, ``cell_type``, ``mechanism``, ``replicate`` (categorical), ``strength``
    - ``obsm["true_latent"]``: :math:`u` of the row's drug
    - ``var``: ``responsiveness``, :math:`\gamma`
    - ``uns["simulation"]``: all parameters

    Raises
    ------
    ValueError
        Naming the argument: unknown preset, sizes that are not whole or too small, shares outside 0 to 1, more
        mechanisms than drugs.

    Notes
    -----
    Measured with the defaults of either preset, mean over seeds 0 to 2: Pearson correlation over the genes of a
    signature, mean over drugs, five folds of drugs, C2 from C1. *Copy*: the signature in C1 itself. *Ridge*, *kernel*,
    *network*: ridge regression, kernel ridge (radial basis) and a perceptron of two hidden layers between principal
    components (50 to 50; 20 to 50 in the last two). *Expectation*: the noise-free signature, which no prediction can
    beat. *Replicates*: another draw of the noise.

    =========  =====  =====  ======  =======  ===========  ==========
    preset     copy   ridge  kernel  network  expectation  replicates
    =========  =====  =====  ======  =======  ===========  ==========
    nonlinear  0.30   0.57   0.76    0.79     0.83         0.70
    linear     0.27   0.84   0.84    0.84     0.85         0.72
    =========  =====  =====  ======  =======  ===========  ==========

    Examples
    --------
    >>> from transverse.datasets import simulate_signatures
    >>> signatures = simulate_signatures(n_drugs=60, n_cell_types=2, n_genes=50, n_mechanisms=6)
    >>> signatures.shape
    (120, 50)
    >>> signatures.obs_names[:2].tolist()
    ['D0001_C1_1', 'D0001_C2_1']
    """
    params = _check(dict(locals()))
    parts = ("drugs", "shared", "genes", "missing", "own", "noise")
    streams = dict(zip(parts, np.random.SeedSequence(seed).spawn(len(parts)), strict=True))
    rng = np.random.default_rng(streams["drugs"])
    mechanism = rng.permutation(np.arange(n_drugs) % n_mechanisms)
    strength = np.exp(rng.normal(-(strength_sd**2), strength_sd, n_drugs))
    of_family = rng.normal(size=(n_mechanisms, n_latent))[mechanism]
    own = rng.normal(size=(n_drugs, n_latent))
    latent = strength[:, None] * (np.sqrt(mechanism_share) * of_family + np.sqrt(1 - mechanism_share) * own)

    shared = _decode(np.random.default_rng(streams["shared"]), latent, n_genes)
    responsiveness = np.random.default_rng(streams["genes"]).lognormal(0, gene_sd, n_genes)
    expected = np.empty((n_drugs, n_cell_types, n_genes))
    for c, stream in enumerate(streams["own"].spawn(n_cell_types)):
        rng = np.random.default_rng(stream)
        linear, gated = _decode(rng, latent, n_genes), _decode(rng, _units(rng, latent, n_units), n_genes)
        amount = params["nonlinearity"]
        specific = np.sqrt(1 - amount) * linear + np.sqrt(amount) * gated
        expected[:, c] = np.sqrt(shared_share) * shared + np.sqrt(1 - shared_share) * specific
    expected *= responsiveness
    expected /= _deviation(expected)

    measured = _measured(np.random.default_rng(streams["missing"]), n_drugs, n_cell_types, missing_share)
    drug, cell_type = (np.repeat(code, n_replicates) for code in np.nonzero(measured))
    replicate = np.tile(np.arange(n_replicates), measured.sum())
    expected = expected[drug, cell_type].astype(np.float32)
    # In place and in the final type: the signatures of a large screen are most of the memory.
    signatures = np.random.default_rng(streams["noise"]).standard_normal(expected.shape, dtype=np.float32)
    signatures *= noise
    signatures += expected

    columns = {
        "perturbation": (drug, numbered("D", n_drugs, 4)),
        "cell_type": (cell_type, numbered("C", n_cell_types, 1)),
        "mechanism": (mechanism[drug], numbered("M", n_mechanisms, 2)),
        "replicate": (replicate, numbered("", n_replicates, 1)),
    }
    obs = pd.DataFrame({key: pd.Categorical.from_codes(*column) for key, column in columns.items()})
    obs["strength"] = strength[drug]
    names = obs["perturbation"].astype(str) + "_" + obs["cell_type"].astype(str) + "_" + obs["replicate"].astype(str)
    obs.index = pd.Index(names, dtype=object)
    var = pd.DataFrame({"responsiveness": responsiveness}, index=pd.Index(numbered("G", n_genes, 4), dtype=object))
    return AnnData(
        signatures,
        obs=obs,
        var=var,
        obsm={"true_latent": latent[drug]},
        layers={"expected": expected},
        uns={"simulation": params},
    )


def _check(params: dict) -> dict:
    check_choice("preset", params["preset"], list(_PRESETS))
    params |= {key: value for key, value in _PRESETS[params["preset"]].items() if params[key] is None}
    for key in _AT_LEAST_ONE:
        check_whole(key, params[key], 1)
    for key in ("n_drugs", "n_genes"):
        check_whole(key, params[key], 2)
    check_whole("seed", params["seed"])
    for key in _SHARES:
        check_share(key, params[key])
    for key in _NOT_NEGATIVE:
        check_not_negative(key, params[key])
    if params["n_mechanisms"] > params["n_drugs"]:
        raise ValueError(
            f"n_mechanisms: expected at most as many mechanisms as drugs ({params['n_drugs']}), "
            f"but got {params['n_mechanisms']}."
        )
    return params


def _decode(rng, hidden: np.ndarray, n_genes: int) -> np.ndarray:
    signatures = hidden @ rng.normal(size=(hidden.shape[1], n_genes))
    return signatures / _deviation(signatures)


def _units(rng, latent: np.ndarray, n_units: int) -> np.ndarray:
    """Gated units of a cell type, each of variance 1 about 0 over the drugs."""
    pathway, gate = (_unit_vectors(rng.normal(size=(latent.shape[1], n_units))) for _ in range(2))
    # In one dimension nothing is at a right angle, and a gate on the pathway itself has to do.
    if latent.shape[1] > 1:
        gate = _unit_vectors(gate - pathway * (pathway * gate).sum(0))
    units = (latent @ pathway) * np.tanh(_GATE_SLOPE * (latent @ gate))
    units -= units.mean(0)
    return units / _deviation(units, axis=0)


def _deviation(values: np.ndarray, axis: int | None = None) -> np.ndarray:
    """Standard deviation, or 1 where drugs that are all alike leave none."""
    deviation = values.std(axis)
    return np.where(deviation > 1e-8, deviation, 1.0)


def _unit_vectors(columns: np.ndarray) -> np.ndarray:
    return columns / np.linalg.norm(columns, axis=0)


def _measured(rng, n_drugs: int, n_cell_types: int, missing_share: float) -> np.ndarray:
    """Drugs x cell types, at least two of a drug, for a drug in a single one says nothing about another."""
    keep = rng.permuted(np.tile(np.arange(n_cell_types) < 2, (n_drugs, 1)), axis=1)
    return measured_pairs(rng, keep, missing_share)
