from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata import AnnData
from scvi.utils import track

from transverse._validation import examples
from transverse.pp._perturbations import clean, parts

from ._cell_access import CellAccessMixin
from ._cells import Cells
from ._sources import Effect, EffectTable, SourceWeights, carriers, choose_parts, leak_of, observed_change

Output = Literal["combined", "change", "decoded"]


class PredictionMixin(CellAccessMixin):
    """What a perturbation does to the cells of a context, from what it did elsewhere."""

    def predict(
        self,
        perturbation: str | Sequence[str],
        context: str | None = None,
        *,
        source: str | Sequence[str] | None = None,
        basal: Literal["control", "reference"] = "control",
        controls: AnnData | None = None,
        reference: AnnData | None = None,
        combine: Literal["auto", "sum", "largest"] = "auto",
        strengths: Sequence[float] | None = None,
        source_weights: SourceWeights = "similarity",
        bandwidth: float = 1.0,
        output: Output = "combined",
        observed_weight: float = 0.5,
        n_samples: int = 0,
        allow_leak: bool = False,
        batch_size: int = 512,
        seed: int = 0,
    ) -> AnnData:
        r"""Predict what a perturbation, or a combination, does to the control cells of a context.

        .. math::

            \hat x = D\left(E_S(c) + \sum_k s_k \sum_{c'} w_{c'} \bar P_{k c'}\right)

        with a control cell :math:`c` of the context and, for each part :math:`k` of the perturbation, the mean effect
        :math:`\bar P_{k c'}` over its training cells in other contexts :math:`c'`. Cells of the asked perturbation in the
        asked context never lend it their effect, unless ``allow_leak``.

        Parameters
        ----------
        perturbation
            Its name, or several for a combination, ``["A", "B"]`` or ``"A+B"``. The effect of a combination that was
            measured in another context is taken from there; of others, that of their parts is summed, which the predicted
            context may have lent.
        context
            Context to predict; may be left out if there is only one.
        source
            Contexts to take the effect from, by default all others.
        basal
            Start from ``"control"`` cells of the context, or from the ``"reference"`` cells that carry the first part, as
            the reference's code does for combinations: a row for each, :math:`D(E_S(r) + E_P(r) + \dots)`, those of the
            predicted context where there are any, with their own context in ``obs``. For a single perturbation this
            reconstructs the cells themselves.
        controls
            Control cells to start from, by default those of the context in the training. Read from the layer that the
            model was set up with.
        reference
            Cells to take the effect from instead of training cells, also of perturbations that were not trained on, with
            the perturbation in ``obs`` (all cells if there is no such column).
        combine
            How the effects of several parts come together: ``"sum"`` in the latent space (paper), or ``"largest"`` (ours):
            of the parts' decoded changes the largest of every gene, see :class:`transverse.baselines.LargestChange`. By
            default the sum, if training had combinations beside their singles to learn it from, else the largest.
        strengths
            Factor :math:`s_k` on the effect of each part, in the order of ``perturbation``; by default 1.
        source_weights
            Of the contexts: by ``"similarity"`` of their control cells to those that are predicted (ours, see
            :class:`transverse.baselines.MeanShift`), ``"uniform"``, or by number of ``"cells"``.
        bandwidth
            Of the similarity.
        output
            ``"decoded"`` (paper) is :math:`D(S + P)` itself. ``"change"`` (ours) adds the decoded change to the control cell,
            :math:`c + D(S + P) - D(S)`, which leaves out what the autoencoder loses of the cell. ``"combined"`` (ours, the
            default) takes as the change a mean of the decoded one and of the observed one: the mean expression of the
            perturbation's cells in the same contexts, with the same weights, against control cells. The two err in different
            ways, and their mean was better than either on all real data that we tried.
        observed_weight
            Of the observed change in the combined one.
        n_samples
            Reference cells to draw for each row; the standard deviation of the prediction over their single effects is
            added as ``layers["std"]``. 0 leaves it out.
        allow_leak
            Accept a source that shows the answer; ``uns`` then says so.
        batch_size
            Cells in a mini-batch; does not change the result.
        seed
            Of the drawn reference cells.

        Returns
        -------
        AnnData with a row for each starting cell:

        - ``X``: predicted expression, on the scale of the training data, float32; not clipped at 0
        - ``layers["control"]``: the starting cell, what the prediction is a change of. For ``basal="reference"`` its decoded basal state
        - ``layers["decoded_control"]``: :math:`D(S)`, from which ``output="decoded"`` may also be taken as a change
        - ``layers["std"]`` (with ``n_samples``), of :math:`D(S + P)`
        - ``obs``: perturbation, as it was asked for, context, and the name of the starting cell (``control_cell``, or
          ``reference_cell``)
        - ``uns["prediction"]``: what was predicted, how, from which contexts, on which scale; ``leak`` (``"none"``, ``"same
          condition, other cells"``, ``"same cell"`` or ``"unknown"``) and whether the condition was trained on

        Raises
        ------
        RuntimeError
            If the model is not trained.
        KeyError
            If the perturbation or a context is unknown.
        ValueError
            If nothing was measured to take the effect from, or it would be a leak; if ``controls`` or ``reference`` lack
            genes, are raw counts, or have other cells than they should.

        Examples
        --------
        >>> pred = model.predict("P01", context="C2")
        >>> pred.obs.columns.tolist(), pred.uns["prediction"]["leak"]
        (['perturbation', 'control_cell', 'cell_type'], 'none')
        >>> pred = model.predict(["P01", "P02"], context="C2", source="C1", n_samples=10)
        >>> "std" in pred.layers
        True
        """
        self._check_if_trained(warn=False)
        for name, value, known in (
            ("basal", basal, ("control", "reference")),
            ("source_weights", source_weights, ("similarity", "uniform", "cells")),
            ("output", output, ("combined", "change", "decoded")),
            ("combine", combine, ("auto", "sum", "largest")),
        ):
            if value not in known:
                raise ValueError(f"{name}={value!r} must be one of {', '.join(map(repr, known))}.")
        if not 0 <= observed_weight <= 1:
            raise ValueError(f"observed_weight={observed_weight!r} must be between 0 and 1.")
        if n_samples < 0 or n_samples == 1:
            raise ValueError(f"n_samples={n_samples} must be 0, or at least 2 to have a spread.")
        if not bandwidth > 0:
            raise ValueError(f"bandwidth={bandwidth!r} must be positive.")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size!r} must be at least 1.")
        if n_samples and basal == "reference":
            raise ValueError("n_samples has no use with basal='reference', where every cell has an effect of its own.")
        name = self._perturbation_name(perturbation)
        context = self._context_name(context, controls)
        singles = self._singles(perturbation, name)
        given = None if reference is None else self._reference_cells(reference, singles)
        table = self._effect_table(given)
        self._check_known(name, singles, table, reference)
        chosen = choose_parts(table, name, singles, context, self._check_sources(source, table), allow_leak)
        scales = _check_strengths(strengths, list(chosen))
        start = self._control_cells(context, controls)
        distances = self._distances(context, None if controls is None else start.mean())
        effects = [table.take(part, where, distances, source_weights, bandwidth) for part, where in chosen.items()]
        if combine == "auto":
            combine = "sum" if self.pairing_["n_combinations"] else "largest"
        pool = None
        if basal == "reference" or n_samples:
            pool = self._training_cells() if given is None else given
        if basal == "reference":
            first = effects[0]
            start = carriers(pool, first.name, [context] if context in first.contexts else first.contexts)
        means = [scale * effect.mean for scale, effect in zip(scales, effects, strict=True)]
        draws = (
            self._draw_effects(pool, effects, scales, (len(start), n_samples), batch_size, seed) if n_samples else []
        )

        layers: dict[str, list[np.ndarray]] = {"control": [], "decoded_control": [], "decoded": [], "std": []}
        done, n_batches = 0, -(-len(start) // batch_size)
        for x in track(start.batches(batch_size), total=n_batches, description="Predicting...", disable=n_batches < 20):
            state, own = self._encode(x)
            # of the first part, a reference cell has an effect of its own
            own = [scales[0] * own] if basal == "reference" else []
            before = self._decode(state)
            layers["control"].append(before if basal == "reference" else x)
            layers["decoded_control"].append(before)
            layers["decoded"].append(self._respond(state, before, own + means[len(own) :], combine))
            if n_samples:
                rows = np.arange(done, done + len(x))
                sampled = [
                    self._respond(state, before, [cells[drawn[rows, k]] for cells, drawn in draws], combine)
                    for k in range(n_samples)
                ]
                layers["std"].append(np.std(sampled, axis=0, ddof=1))
            done += len(x)
        found = {key: np.concatenate(blocks) for key, blocks in layers.items() if blocks}
        x = found.pop("decoded")
        if output != "decoded":
            change = x - found["decoded_control"]
            observed = None if output == "change" or basal == "reference" else observed_change(effects, scales, combine)
            observed_weight = 0.0 if observed is None else observed_weight
            if observed_weight:
                change = (1 - observed_weight) * change + np.float32(observed_weight) * observed.astype(np.float32)
            x = found["control"] + change
        pred = AnnData(x, obs=self._prediction_obs(perturbation, context, basal, start), layers=found)
        pred.var_names = pd.Index(self.var_names_, dtype=object)
        pred.uns["prediction"] = {
            "method": type(self).__name__,
            "perturbation": name,
            "context": context,
            "source": sorted({c for where in chosen.values() for c in where}),
            "parts": list(chosen),
            "strengths": scales,
            "combine": combine if len(chosen) > 1 else "none",
            "basal": basal,
            "output": output,
            "observed_weight": float(observed_weight) if output == "combined" else 0.0,
            "scale": "that of the training data",
            "leak": leak_of(chosen, name, context, same_cell=basal == "reference"),
            "in_training": (name, context) in self._effect_table(None).conditions,
        }
        return pred

    def _respond(
        self, state: np.ndarray, before: np.ndarray, effects: Sequence[np.ndarray], combine: str
    ) -> np.ndarray:
        """Decoded response of basal states to the effects of all parts; ``before`` is what the states decode to."""
        if combine == "sum" or len(effects) == 1:
            return self._decode(state + sum(effects))
        changes = np.stack([self._decode(state + effect) - before for effect in effects])
        largest = np.abs(changes).argmax(axis=0)[None]
        return before + np.take_along_axis(changes, largest, axis=0)[0]

    def _perturbation_name(self, perturbation: str | Sequence[str]) -> str:
        arguments = self._setup_arguments
        several = pd.api.types.is_list_like(perturbation)
        name = clean(
            [str(one) for one in perturbation] if several else str(perturbation),
            arguments["control"],
            arguments["delimiter"],
        )
        if name == arguments["control"]:
            raise ValueError(f"perturbation={perturbation!r} is the control.")
        return name

    def _singles(self, perturbation: str | Sequence[str], name: str) -> list[str]:
        """Single perturbations of a combination, in the order in which they were asked for."""
        arguments = self._setup_arguments
        delimiter = arguments["delimiter"]
        singles = parts(name, delimiter)
        if len(singles) == 1:
            return list(singles)
        asked = [perturbation] if isinstance(perturbation, str) else perturbation
        ordered = [part.strip() for one in asked for part in str(one).split(delimiter)]
        ordered = [part for part in ordered if part != arguments["control"]]
        if repeated := sorted({part for part in ordered if ordered.count(part) > 1}):
            raise ValueError(
                f"perturbation={perturbation!r} has {examples(repeated)} twice. Use strengths= for more of it."
            )
        return ordered

    def _context_name(self, context: str | None, controls: AnnData | None) -> str:
        known = list(self.control_means_)
        if self._setup_arguments["context_key"] is None:
            if context is not None:
                raise KeyError(f"context={context!r} is unknown: the model was set up with context_key=None.")
            return ""
        if context is None:
            if len(known) != 1:
                raise ValueError(f"context is needed, one of {examples(known)}.")
            return known[0]
        if str(context) not in known and controls is None:
            raise KeyError(
                f"context={context!r} has no control cells in the training. Contexts that have: {examples(known)}. "
                "Pass the control cells of another as controls=."
            )
        return str(context)

    def _check_known(self, name: str, singles: Sequence[str], table: EffectTable, reference: AnnData | None) -> None:
        known = {perturbation for perturbation, _ in table.conditions}
        unknown = [single for single in singles if single not in known]
        if unknown and name not in known:
            where = "in reference" if reference is not None else "in the training"
            hint = "" if reference is not None else " Pass cells that had it, from another context, as reference=."
            raise KeyError(
                f"Unknown perturbation: {examples(unknown)}. Known {where}: {examples(sorted(known))}.{hint}"
            )

    def _check_sources(self, source: str | Sequence[str] | None, table: EffectTable) -> list[str] | None:
        if source is None:
            return None
        sources = [str(one) for one in (source if pd.api.types.is_list_like(source) else [source])]
        known = sorted({context for _, context in table.conditions})
        if unknown := [one for one in sources if one not in known]:
            raise KeyError(f"source has unknown contexts: {examples(unknown)}. Known: {examples(known)}.")
        return sources

    def _effect_table(self, given: Cells | None) -> EffectTable:
        """Effects of the training conditions, or of those of given cells."""
        if given is None:
            conditions = zip(self.effects_["perturbation"], self.effects_["context"], strict=True)
            return EffectTable(list(conditions), *(self.effects_[key] for key in ("mean", "shift", "n_cells")))
        names = pd.DataFrame({"perturbation": given.perturbations, "context": given.contexts.astype(str)})
        grouped = names.groupby(["perturbation", "context"], sort=True)
        conditions, codes = list(grouped.groups), grouped.ngroup().to_numpy()
        n_cells = np.bincount(codes, minlength=len(conditions))
        effects = np.zeros((len(conditions), self.module.n_latent))
        profiles = np.zeros((len(conditions), len(self.var_names_)))
        done = 0
        for x in given.batches(2048):
            member = sp.csr_matrix(
                (np.ones(len(x)), (codes[done : done + len(x)], np.arange(len(x)))), (len(n_cells), len(x))
            )
            effects += member @ self._encode(x)[1]
            profiles += member @ x
            done += len(x)
        effects, profiles = effects / n_cells[:, None], profiles / n_cells[:, None]
        control = self._setup_arguments["control"]
        # cells that come with controls of their own are held against these
        controls = dict(self.control_means_ or {})
        controls |= {where: profiles[i] for i, (name, where) in enumerate(conditions) if name == control}
        nothing = np.full(profiles.shape[1], np.nan)
        shifts = np.stack(
            [row - controls.get(where, nothing) for row, (_, where) in zip(profiles, conditions, strict=True)]
        )
        return EffectTable(conditions, effects, shifts.astype(np.float32), n_cells)

    def _distances(self, context: str, mean: np.ndarray | None) -> dict[str, float]:
        """Squared distance of the control means of the training to that of the cells that are predicted."""
        mean = self.control_means_[context] if mean is None else mean
        distances = {other: float(((m - mean) ** 2).sum()) for other, m in self.control_means_.items()}
        return distances | {context: 0.0}

    def _draw_effects(
        self,
        pool: Cells,
        effects: Sequence[Effect],
        scales: Sequence[float],
        shape: tuple[int, int],
        batch_size: int,
        seed: int,
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of each part the effects of its single cells, and which of them are drawn."""
        rng = np.random.default_rng(seed)
        draws = []
        for scale, effect in zip(scales, effects, strict=True):
            cells = carriers(pool, effect.name, effect.contexts)
            of_cells = np.concatenate([self._encode(x)[1] for x in cells.batches(batch_size)])
            share = {c: w / (cells.contexts == c).sum() for c, w in zip(effect.contexts, effect.weights, strict=True)}
            probability = np.array([share[c] for c in cells.contexts])
            drawn = rng.choice(len(cells), size=shape, p=probability / probability.sum())
            draws.append((scale * of_cells, drawn))
        return draws

    def _prediction_obs(
        self, perturbation: str | Sequence[str], context: str, basal: str, start: Cells
    ) -> pd.DataFrame:
        arguments = self._setup_arguments
        # under the name that was asked for: it is that of the data which the prediction is held against
        asked = perturbation
        if not isinstance(perturbation, str):
            several = perturbation if pd.api.types.is_list_like(perturbation) else [perturbation]
            asked = (arguments["delimiter"] or "").join(map(str, several))
        obs = {arguments["perturbation_key"]: asked, f"{basal}_cell": start.names.to_numpy()}
        if arguments["context_key"] is not None:
            obs[arguments["context_key"]] = context if basal == "control" else start.contexts
        # text as objects, which every version of anndata can write
        obs = pd.DataFrame(obs, index=start.names.astype(object), dtype=object)
        for key in (arguments["perturbation_key"], arguments["context_key"]):
            if key is not None:
                obs[key] = obs[key].astype("category")
        return obs

    @torch.inference_mode()
    def _store_effects(self) -> None:
        """Mean effects of the training conditions and mean control cells of the contexts, which predictions rest on."""
        self.training_cells_ = self.adata.obs_names[np.sort(self.train_indices)].tolist()
        cells = self._training_cells()
        control = self._setup_arguments["control"]
        controls = cells.where(cells.perturbations == control)
        self.control_means_ = {
            str(context): controls.where(controls.contexts == context).mean()
            for context in np.unique(controls.contexts)
        }
        table = self._effect_table(cells.where(cells.perturbations != control))
        self.effects_ = {
            "perturbation": [name for name, _ in table.conditions],
            "context": [context for _, context in table.conditions],
            "mean": table.means,
            "shift": table.shifts,
            "n_cells": table.n_cells,
        }


def _check_strengths(strengths: Sequence[float] | None, found: Sequence[str]) -> list[float]:
    if strengths is None:
        return [1.0] * len(found)
    scales = [float(s) for s in (strengths if pd.api.types.is_list_like(strengths) else [strengths])]
    if len(scales) != len(found):
        raise ValueError(f"strengths must have one number for each of {examples(found)}, but has {len(scales)}.")
    if not np.isfinite(scales).all():
        raise ValueError(f"strengths must be finite, but got {scales}.")
    return scales
