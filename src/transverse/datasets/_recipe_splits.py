"""What a recipe holds out, and which cells go to training, validation and test."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Literal

import numpy as np
import pandas as pd

from transverse._validation import examples
from transverse.pp._perturbations import canonical
from transverse.pp._split_design import SPLITS, TEST, TRAIN, VALID

CONTROL = "control"

# named in the paper of XTransferCDR
SCIPLEX = {
    3: tuple(
        "Alvespimycin Belinostat Dacinostat Flavopiridol Givinostat Hesperadin Quisinostat TAK-901 Tanespimycin".split()
    ),
    4: tuple("CUDC-907 Dacinostat Givinostat Panobinostat Quisinostat".split()),
}
NORMAN = (canonical("FOSB+CEBPB"), canonical("ZBTB10+DLX2"))
# the paper gives no names; these are held out in the preprocessing of cycleCDR, by the same group
REPLOGLE = {
    "K562": tuple(
        """
        AQR CHMP3 CNOT1 EIF2S1 EIF2S3 EIF3B FAU GATA1 HSPA5 HSPA9 INTS2 MED12 MED21 MED30 MED4 MED9 PAF1 PHB PHB2 PLRG1
        POLR2H PRPF31 PSMC4 PSMD2 RPL17 RPL23A RTF1 SARS SFPQ SLU7 SNRNP70 SNRPA1 SNRPD1 SNRPE SNRPF SRSF3 SUPT16H
        SUPT5H SUPT6H
        """.split()
    ),
    "RPE1": tuple(
        """
        AARS ARCN1 BDP1 BET1 BUD13 CACTIN CDC5L CNOT1 COPB1 DARS DDX21 DHX8 EIF2B4 EIF2S1 EIF2S2 EIF2S3 EIF3B EIF3E ETF1
        EXOSC9 FTSJ3 GPKOW HSPA5 IGBP1 IPO13 MED22 NOL11 POLR3D PRPF31 PRPF6 PRPF8 PSMA2 PSMA3 PSMA4 PSMA6 PSMB1 PSMB2
        PSMB3 PSMB5 PSMB6 PSMC1 PSMC2 PSMC3 PSMC4 PSMC5 PSMD1 PSMD11 PSMD12 PSMD14 PSMD6 PSMD8 PUF60 RAC3 RPL12 RPL14
        RPL15 RPL17 RPL18 RPL18A RPL21 RPL23 RPL23A RPL3 RPL30 RPL34 RPL35 RPL35A RPL36 RPL38 RPL39 RPL6 RPL8 RPS18
        RPS19 RPS23 RPS6 RPS7 RPS8 RPS9 SART1 SCFD1 SF3B2 SFPQ SLU7 SMU1 SNIP1 SNRNP200 SNRNP70 SNRPA1 SNRPD1 SNRPD3
        SNRPE SRP68 SRSF3 STX5 SUPT16H TRAPPC8 WEE1
        """.split()
    ),
}

Names = str | Sequence[str]
Rename = Callable[[str], str]
Split = Literal["paper", "disjoint"]


@dataclass(frozen=True)
class Plan:
    """What is held out."""

    test: list[str]
    """Perturbations whose cells are the test (of which `share` may go to validation)."""
    valid: list[str]
    """Perturbations whose cells are all validation."""
    share: tuple[int, float] | None = None
    """Of each condition on this side, the share of cells that is validation."""


def given_names(given: Names, known: Sequence[str], rename: Rename, argument: str) -> list[str]:
    """The perturbations that the user names, all of which must be known."""
    given = [given] if isinstance(given, str) else list(given)
    names = sorted({rename(name) for name in given})
    if not names:
        raise ValueError(f"{argument} is empty. Name at least one of: {examples(known)}.")
    if unknown := sorted(set(names).difference(known)):
        raise ValueError(f"{argument} has {examples(unknown)}, which cannot be held out. These can: {examples(known)}.")
    return names


def held_out(holdout: Names | None, default: Sequence[str], known: Sequence[str], rename: Rename) -> list[str]:
    """The perturbations for the test: those given, all of which must be known, or those of the default that are."""
    if holdout is not None:
        return given_names(holdout, known, rename, "holdout")
    found, missing = sorted(set(default) & set(known)), sorted(set(default) - set(known))
    if not found:
        raise ValueError(
            f"None of the {len(default)} held-out perturbations is in the data: {examples(missing, 10)}. The data have: "
            f"{examples(known)}. Check that these are the right data, or name what to hold out: holdout=[...]."
        )
    if missing:
        warnings.warn(
            f"{len(missing)} of the {len(default)} held-out perturbations are not in the data: {examples(missing, 10)}. "
            f"The other {len(found)} are held out.",
            UserWarning,
            stacklevel=3,
        )
    return found


def draw(candidates: Sequence[str], n: int, rng: np.random.Generator, argument: str) -> list[str]:
    """`n` perturbations at random."""
    if n > len(candidates):
        raise ValueError(f"{argument}: {n} perturbations are to be drawn, but there are only {len(candidates)}.")
    return sorted(rng.choice(np.array(candidates, dtype=object), n, replace=False).tolist())


def plan_split(
    split: str,
    test: list[str],
    valid: Names | int | None,
    *,
    candidates: Sequence[str],
    rename: Rename,
    share: tuple[int, float] | None,
    rng: np.random.Generator,
) -> Plan:
    """What validation is: with ``"paper"`` the `share` of cells, with ``"disjoint"`` other perturbations than the test."""
    if split == "paper":
        if valid is not None:
            raise ValueError(f"valid={valid!r} is for split='disjoint'; split='paper' has its own validation cells.")
        return Plan(test, [], share)
    candidates = [name for name in candidates if name not in set(test)]
    if valid is None or (isinstance(valid, Integral) and not isinstance(valid, bool)):
        n = len(test) if valid is None else int(valid)
        if n < 0:
            raise ValueError(f"valid={valid!r} must be at least 0.")
        return Plan(test, draw(candidates, n, rng, "valid"))
    return Plan(test, given_names(valid, candidates, rename, "valid"))


def is_control(labels: pd.DataFrame) -> np.ndarray:
    return (labels["perturbation"] == CONTROL).to_numpy()


def check_plan(labels: pd.DataFrame, plan: Plan, after: str = "") -> None:
    """Raise a ValueError unless what is held out, training and the controls of every cell type have cells."""
    control = is_control(labels)
    treated = set(labels["perturbation"].to_numpy()[~control])
    for names in (plan.test, plan.valid):
        gone = [name for name in names if name not in treated]
        message = f"No cell is left{after} of {len(gone)} of {len(names)} held-out perturbations: {examples(gone)}."
        if gone and len(gone) == len(names):
            raise ValueError(message)
        if gone:
            warnings.warn(message, UserWarning, stacklevel=4)
    if not treated.difference(plan.test, plan.valid):
        raise ValueError(f"Nothing is left to train on{after}: every perturbation is held out.")
    # a side without cells takes no controls
    need = 2 + bool(plan.valid or plan.share)
    contexts = labels["cell_type"].to_numpy(dtype=object)
    n_controls = Counter(contexts[control])
    few = [f"{name} ({n_controls[name]})" for name in sorted(set(contexts)) if n_controls[name] < need]
    if few:
        raise ValueError(
            f"Each cell type needs at least {need} control cells{after}, one for each side of the split, but these have "
            f"too few: {examples(few)}."
        )


def assign_sides(labels: pd.DataFrame, plan: Plan, control_share: float, rng: np.random.Generator) -> pd.Categorical:
    """Of each cell its side; controls are divided within each cell type, so that no two sides share one."""
    rng_cells, rng_controls = rng.spawn(2)
    control = is_control(labels)
    side = np.full(len(labels), TRAIN)
    side[labels["perturbation"].isin(plan.test).to_numpy()] = TEST
    side[labels["perturbation"].isin(plan.valid).to_numpy()] = VALID
    position = _positions(labels, rng_cells)
    if plan.share is not None:
        source, share = plan.share
        side[(side == source) & ~control & (position < share)] = VALID
    held = [code for code in (TEST, VALID) if (side == code).any()]
    contexts = labels["cell_type"].to_numpy(dtype=object)
    for context in sorted(set(contexts)):
        cells = rng_controls.permutation(np.flatnonzero(control & (contexts == context)))
        # at least one for each side, and one for training
        n = int(np.clip(round(control_share / len(held) * len(cells)), 1, (len(cells) - 1) // len(held)))
        for i, code in enumerate(held):
            side[cells[i * n : (i + 1) * n]] = code
    return pd.Categorical.from_codes(side, SPLITS)


def _positions(labels: pd.DataFrame, rng: np.random.Generator) -> np.ndarray:
    """Positions from 0 to 1, evenly spaced in random order among the cells of each condition."""
    codes = labels.groupby(["perturbation", "cell_type"], observed=True).ngroup().to_numpy()
    order = np.lexsort([rng.random(len(codes)), codes])
    sizes = np.bincount(codes)
    starts = np.cumsum(sizes) - sizes
    position = np.empty(len(codes))
    position[order] = (np.arange(len(codes)) - starts[codes[order]] + 0.5) / sizes[codes[order]]
    return position
