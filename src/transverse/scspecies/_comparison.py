from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi import settings
from scvi.utils import track

from transverse._validation import check_obs_key, examples

from ._decode import GeneDecoder
from ._fold_changes import inliers, sample_latent, summarize
from ._similarity import histogram_mode, scale_rows, similarity_samples

Mode = Literal["context", "target", "both", "own"]


class ComparisonMixin:
    """What corresponding cells of the two species have in common, and what not."""

    def get_cross_species_lfc(
        self,
        adata: AnnData | None = None,
        groupby: str | None = None,
        groups: Sequence[str] | None = None,
        *,
        mode: Mode = "own",
        context_groups: Sequence | None = None,
        n_samples: int = 5000,
        delta: float = 1.0,
        epsilon: float = 1e-6,
        confidence: float = 0.9,
        key_added: str | None = None,
        silent: bool = True,
    ) -> pd.DataFrame:
        r"""Fold changes of orthologous genes between corresponding cells of the two species (equations 23 to 27).

        The latent states of a group of cells are sampled from the mixture of their posteriors, decoded by both species'
        decoders, averaged over each species' batches, and compared gene by gene:

        .. math::
            r_g = \log_2 \frac{\rho_{T,g} + \varepsilon}{\rho_{C,g} + \varepsilon} ,

        with :math:`\rho` the proportions among the orthologous genes. **Positive means higher in the target species**, as
        in the published package; the paper's equation 24 has the opposite sign. Cells outside the ellipse that holds 90 %
        of a normal distribution fitted to the group's posterior means are left out.

        Parameters
        ----------
        adata
            Target data with the genes of the training data; by default the training data.
        groupby
            The groups: a column of the target's ``.obs``, one of the context's label columns, or both. By default the
            first of the context's. Target cells without such a column get the labels of :meth:`transfer_labels`.
        groups
            Groups to compare; by default all that both species have.
        mode
            Whose latent states are decoded. ``"own"`` (ours): every species' decoder reads its own cells, sampled
            independently. ``"context"`` (paper) and ``"target"`` (published package): both decoders read the same
            states of the context's or target's cells, so that a change is that of the decoders alone; ``"both"`` takes
            one half from each.
        context_groups
            Groups of the context's cells in their order, where ``groupby`` is none of the context's label columns.
        n_samples
            Samples of latent states for each group (paper: 10,000).
        delta
            :math:`\delta`: absolute log2 fold change that counts as different.
        epsilon
            :math:`\varepsilon`, on the scale of proportions among the orthologous genes.
        confidence
            Share of the fitted normal distribution that is kept; 1 keeps every cell.
        key_added
            Write the table to ``adata.uns[key_added]``, and the median fold changes, target genes times groups, to
            ``adata.varm[key_added]``.
        silent
            Show no progress bar.

        Returns
        -------
        One row per group and orthologous pair (or group of genes, names joined by ``;``):

        - ``group``, ``context_gene``, ``target_gene``
        - ``lfc``: median of :math:`r_g` over the samples, log2
        - ``probability``: :math:`P(|r_g| > \delta)`
        - ``context_expression``, ``target_expression``: median proportions, in 10,000 counts of orthologous genes
        - ``null_lfc``, ``null_probability``: the same when each species is compared with itself, its samples permuted: what
          variation within the group alone makes of a gene
        - ``n_context_cells``, ``n_target_cells``: cells that were sampled from, after the removal of outliers

        The paper calls a gene different if :math:`|lfc| > \delta` and ``probability`` exceeds 0.9.

        Raises
        ------
        KeyError
            If a group, or the column, is unknown.
        ValueError
            If the two species have no group in common, or an argument is out of its range.

        Examples
        --------
        >>> lfc = model.get_cross_species_lfc(groupby="cell_type", groups=["T1a"], n_samples=500)
        >>> lfc.columns[:5].tolist()
        ['group', 'context_gene', 'target_gene', 'lfc', 'probability']
        >>> changed = lfc[(lfc["lfc"].abs() > 1) & (lfc["probability"] > 0.9)]
        """
        self._check_if_trained(warn=False)
        if mode not in ("own", "context", "target", "both"):
            raise ValueError(f"mode must be 'own', 'context', 'target' or 'both', but got {mode!r}.")
        if n_samples < 2 or delta < 0 or epsilon <= 0 or not 0 < confidence <= 1:
            raise ValueError(
                "Expected n_samples of at least 2, delta of at least 0, epsilon above 0 and confidence in (0, 1], but got "
                f"n_samples={n_samples}, delta={delta}, epsilon={epsilon}, confidence={confidence}."
            )
        data = self._validate_anndata(adata)
        sides = {"own": ("context", "target"), "both": ("context", "target")}.get(mode, (mode,))
        members = self._group_members(data, groupby, groups, sides, context_groups)
        cells = {"context": self._context_cells()}
        if "target" in sides:
            cells["target"] = self._target_cells(data)
        decoders, names = self._ortholog_decoders()
        rng = np.random.default_rng(settings.seed)

        tables = []
        for group in track(list(members), description="Decoding groups...", disable=silent):
            samples, counts = {}, {}
            for side in sides:
                index = members[group][side]
                index = index[inliers(cells[side]["mean"][index], confidence)]
                n = n_samples // 2 if mode == "both" else n_samples
                z, drawn = sample_latent(cells[side]["mean"][index], cells[side]["scale"][index], n, rng)
                samples[side], counts[side] = z, len(index)
            if mode != "own":
                shared = np.concatenate(list(samples.values()))
                samples = {"context": shared, "target": shared}
            rho = {}
            for side, decoder in decoders.items():
                covariates = self._covariates_like(side, len(samples[side]), data, rng)
                rho[side] = decoder(samples[side], covariates)
            table = pd.DataFrame(summarize(rho["context"], rho["target"], delta, epsilon, rng))
            table.insert(0, "group", group)
            table.insert(1, "context_gene", names["context"])
            table.insert(2, "target_gene", names["target"])
            for side in ("context", "target"):
                table[f"n_{side}_cells"] = counts.get(side, 0)
            tables.append(table)
        result = pd.concat(tables, ignore_index=True)
        result.attrs = {"delta": delta, "mode": mode}
        if key_added is not None:
            self._write_fold_changes(data if adata is None else adata, result, key_added)
        return result

    def get_cell_type_similarity(
        self,
        adata: AnnData | None = None,
        groupby: str | None = None,
        *,
        labels_key: str | None = None,
        n_target: int = 2000,
        n_context: int = 50,
        scale: Literal["none", "max", "min_max"] = "none",
        batch_size: int | None = None,
    ) -> pd.DataFrame:
        r"""How well the context's cell types explain the cells of each group of the target.

        For every pair of groups, target cells are scored by the log-likelihood ratio
        :math:`\log p(x_j \mid \mu_j) - \log p(x_j \mid \mu_i)` at randomly drawn context cells :math:`i`; the mode of these
        ratios (of their histogram with Freedman-Diaconis bins) says how much worse the context's type explains the target's
        cells than their own latent variable does.

        Parameters
        ----------
        adata
            Target data with the genes of the training data; by default the training data.
        groupby
            Column of the target's ``.obs``; by default the transferred labels.
        labels_key
            Which of the context's label columns; by default the first.
        n_target, n_context
            Most target cells of a group, and context cells of a type, to score with. The context cells are drawn anew for
            every mini-batch.
        scale
            ``"none"``: minus the mode, in nats, at most about zero. ``"max"``: the largest ratio of the row over the
            ratio. ``"min_max"``: 1 for the most and 0 for the least similar type of each row.
        batch_size
            Cells in a mini-batch.

        Returns
        -------
        Target groups in rows, the context's types in columns; higher is more similar.

        Examples
        --------
        >>> similarity = model.get_cell_type_similarity(groupby="cell_type", scale="max")
        >>> similarity.columns.tolist()
        ['T1a', 'T1b', 'T2a', 'T2b']
        """
        self._check_if_trained(warn=False)
        if scale not in ("none", "max", "min_max"):
            raise ValueError(f"scale must be 'none', 'max' or 'min_max', but got {scale!r}.")
        if n_target < 1 or n_context < 1:
            raise ValueError(f"n_target={n_target} and n_context={n_context} must be at least 1.")
        labels = self._labels(labels_key)
        data = self._validate_anndata(adata)
        groups = self._target_groups(data, groupby, labels_key)
        rng = np.random.default_rng(settings.seed)
        chosen = []
        for group in groups.cat.categories:
            index = np.flatnonzero(groups == group)
            chosen.append(np.sort(rng.permutation(index)[:n_target]))
        cells = np.concatenate(chosen)
        present = [code for code in range(len(labels["categories"])) if (labels["codes"] == code).any()]
        types = [np.flatnonzero(labels["codes"] == code) for code in present]
        loader = self._make_data_loader(data, indices=cells, batch_size=batch_size)
        self.module.eval()
        ratios = similarity_samples(self.module, loader, types, n_context, rng)
        of_group = np.repeat(np.arange(len(chosen)), [len(index) for index in chosen])
        modes = np.array([[histogram_mode(block[of_group == g]) for block in ratios] for g in range(len(chosen))])
        columns = pd.Index([labels["categories"][code] for code in present], name="context")
        return pd.DataFrame(
            scale_rows(modes, scale), index=pd.Index(groups.cat.categories, name="target"), columns=columns
        )

    def _context_cells(self) -> dict[str, np.ndarray]:
        return {"mean": self.module.context_mean.cpu().numpy(), "scale": self.module.context_scale.cpu().numpy()}

    @torch.inference_mode()
    def _target_cells(self, data: AnnData) -> dict[str, np.ndarray]:
        self.module.eval()
        parts = [self.module.encode(self.module, tensors) for tensors in self._make_data_loader(data)]
        return {key: torch.cat([part[key].cpu() for part in parts]).numpy() for key in ("mean", "scale")}

    def _ortholog_decoders(self) -> tuple[dict[str, GeneDecoder], dict[str, list[str]]]:
        """Decoders of the orthologous genes of both species, in one order, and the names of the genes."""
        pairs = pd.DataFrame(self.orthologs_)
        decoders, names = {}, {}
        for side, var_names in (("context", self.context_["var_names"]), ("target", self.var_names_)):
            genes = pairs[[side, "group"]].drop_duplicates().sort_values("group", kind="stable")
            positions = pd.Index(var_names).get_indexer(genes[side])
            groups = genes["group"].to_numpy()
            single = np.array_equal(groups, np.arange(len(groups)))
            decoders[side] = GeneDecoder(self._vae(side), positions, None if single else groups)
            names[side] = genes.groupby("group")[side].agg(";".join).tolist()
        return decoders, names

    def _target_groups(self, data: AnnData, groupby: str | None, labels_key: str | None = None) -> pd.Series:
        """Groups of the target's cells, categories that occur only: a column, or the transferred labels."""
        if groupby is not None and (groupby in data.obs or groupby not in self.context_labels_):
            check_obs_key(data, groupby, "groupby")
            groups = data.obs[groupby]
            groups = groups.astype(str).where(groups.notna())
        else:
            groups = self.transfer_labels(data, labels_key=groupby or labels_key)["label"]
        groups = groups.astype("category").cat.remove_unused_categories()
        if len(groups.cat.categories) == 0:
            raise ValueError(f"groupby={groupby!r} holds no group.")
        return groups

    def _context_groups(self, groupby: str | None, context_groups: Sequence | None) -> pd.Series:
        """Groups of the context's cells: a label column, or what the user gives."""
        n_context = len(self.module.context_mean)
        groupby = next(iter(self.context_labels_)) if groupby is None else groupby
        if context_groups is not None:
            if len(context_groups) != n_context:
                raise ValueError(f"context_groups has {len(context_groups)} entries for {n_context} context cells.")
            groups = pd.Series(np.asarray(context_groups, dtype=object))
            return groups.astype(str).where(groups.notna()).astype("category")
        if groupby not in self.context_labels_:
            raise KeyError(
                f"groupby={groupby!r} is none of the context's label columns, {list(self.context_labels_)}: give the "
                "groups of the context's cells as context_groups."
            )
        labels = self.context_labels_[groupby]
        return pd.Series(
            pd.Categorical.from_codes(labels["codes"], labels["categories"])
        ).cat.remove_unused_categories()

    def _group_members(
        self,
        data: AnnData,
        groupby: str | None,
        groups: Sequence[str] | None,
        sides: Sequence[str],
        context_groups: Sequence | None,
    ) -> dict[str, dict[str, np.ndarray]]:
        """Cells of every group in every species that is needed; groups that all of these have."""
        column = {}
        groupby = next(iter(self.context_labels_)) if groupby is None else groupby
        if "context" in sides or context_groups is not None or groupby in self.context_labels_:
            column["context"] = self._context_groups(groupby, context_groups)
        if "target" in sides or groupby in data.obs:
            column["target"] = self._target_groups(data, groupby)
        elif groups is None:
            column["target"] = self._target_groups(data, None, groupby)
        found = [set(values.dropna().astype(str)) for values in column.values()]
        common = sorted(set.intersection(*found))
        if not common:
            shown = "; ".join(f"{side}: {examples(sorted(set(v.dropna().astype(str))))}" for side, v in column.items())
            raise ValueError(f"The two species have no group of groupby={groupby!r} in common. {shown}.")
        if groups is not None:
            groups = [groups] if isinstance(groups, str) else list(map(str, groups))
            if missing := [group for group in groups if group not in common]:
                raise KeyError(f"groups {examples(missing)} are not in both species. Known: {examples(common)}.")
            common = groups
        codes = {side: values.astype(str).where(values.notna()).to_numpy() for side, values in column.items()}
        return {group: {side: np.flatnonzero(values == group) for side, values in codes.items()} for group in common}

    def _write_fold_changes(self, adata: AnnData, table: pd.DataFrame, key: str) -> None:
        adata.uns[key] = table.assign(group=table["group"].astype(str))
        wide = table.pivot(index="target_gene", columns="group", values="lfc")
        # genes that share a group of orthologues share its fold change
        wide = (
            wide.set_axis(wide.index.str.split(";")).rename_axis("gene").reset_index().explode("gene").set_index("gene")
        )
        wide.columns = [str(column) for column in wide.columns]
        adata.varm[key] = wide.reindex(adata.var_names)
