"""Searches of hyperparameters, logging to mlflow, streams of shards, mixed precision and compilation: engines of others."""

import warnings

import anndata as ad
import numpy as np
import pytest
import scvi
import torch

import transverse as tv

QUIET = {"accelerator": "cpu", "enable_progress_bar": False}
SPECIES = tv.datasets.simulate_species("tiny", seed=1)


def sc_species(folder):
    mouse, human = (adata.copy() for adata in SPECIES.values())
    scvi.model.SCVI.setup_anndata(mouse, batch_key="batch")
    context = tv.ScSpecies.make_context(mouse, n_hidden=16)
    context.train(1, **QUIET)
    context.save(folder / "context", save_anndata=True)
    builder = tv.ScSpecies.builder(
        folder / "context", orthologs=human.uns["orthologs"], labels_key="cell_type", n_neighbors=10
    )
    builder.setup_anndata(human, batch_key="batch")
    return builder, human


def x_transfer_cdr(folder):
    adata = tv.datasets.simulate_responses(n_contexts=2, n_perturbations=3, n_genes=30, n_cells_per_condition=10)
    tv.XTransferCDR.setup_anndata(adata)
    return tv.XTransferCDR, adata


def deep_cell_state(folder):
    adata = tv.datasets.simulate_signatures(n_drugs=30, n_genes=12, n_mechanisms=5)
    tv.DeepCellState.setup_anndata(adata)
    return tv.DeepCellState, adata


def uge(folder):
    adata = tv.pp.stack_species(tv.datasets.simulate_reactomes(n_genes=40, n_organs=3, n_drugs=2, n_animals=3))
    tv.UGE.setup_anndata(adata, animal_key="animal")
    return tv.UGE, adata


#: A model's class and data, a hyperparameter of its constructor with its values, and what its training needs.
CASES = {
    "ScSpecies": (sc_species, "dispersion", ["gene", "gene-batch"], {"max_epochs": 2, "train_size": 0.8}),
    "XTransferCDR": (x_transfer_cdr, "n_latent", [4, 6], {"max_epochs": 2, "train_size": 0.8}),
    "DeepCellState": (deep_cell_state, "n_latent", [4, 6], {"max_epochs": 2, "train_size": 0.8}),
    "UGE": (uge, "n_latent", [8, 12], {"preset": "tiny", "max_epochs": 1, "train_size": 0.7}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_run_autotune(name, tmp_path):
    ray = pytest.importorskip("ray", reason="the extra 'tune' is not installed")
    pytest.importorskip("hyperopt", reason="the extra 'tune' is not installed")
    from ray import tune
    from scvi.autotune import run_autotune

    make, argument, values, train = CASES[name]
    model_cls, adata = make(tmp_path)
    train = dict(train)
    fixed = {key: tune.choice([train.pop(key)]) for key in ("preset",) if key in train}
    space = {
        "model_params": {argument: tune.grid_search(values), **fixed},
        "train_params": {key: tune.choice([value]) for key, value in train.items()},
    }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            experiment = run_autotune(
                model_cls,
                adata,
                metrics="validation_loss",
                mode="min",
                search_space=space,
                num_samples=1,
                searcher="random",
                resources={"cpu": 1},
                logging_dir=str(tmp_path / "tune"),
            )
    finally:
        ray.shutdown()
    results = experiment.result_grid
    assert not results.errors and len(results) == 2
    found = {result.config["model_params"][argument]: result.metrics["validation_loss"] for result in results}
    assert set(found) == set(values) and all(np.isfinite(loss) for loss in found.values())
    best = results.get_best_result("validation_loss", "min")
    assert best.config["model_params"][argument] == min(found, key=found.get)


VARIANTS = {
    "bf16": {"precision": "bf16-mixed"},
    # traced as for any compiler, but run as it is: no C++ compiler needed
    "compiled": {"plan_kwargs": {"compile": True, "compile_kwargs": {"backend": "eager"}}},
}


@pytest.mark.parametrize("variant", ["bf16", pytest.param("compiled", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CASES)
def test_mixed_precision_and_compilation(name, variant, tmp_path):
    make, _, _, train = CASES[name]
    model_cls, adata = make(tmp_path)
    train = {**train, **QUIET, "max_epochs": 1}
    options = {key: train.pop(key) for key in ("preset",) if key in train}
    losses = []
    for kwargs in ({}, VARIANTS[variant]):
        scvi.settings.seed = 0
        model = model_cls(adata, **options)
        model.train(**train, check_val_every_n_epoch=1, **kwargs)
        losses.append(model.history["train_loss"].iloc[-1, 0])
        assert all(weight.dtype == torch.float32 for weight in model.module.parameters())
    assert losses[1] == pytest.approx(losses[0], rel=0.1)
    represent = getattr(model, "get_latent_representation", None) or model.get_basal_representation
    assert np.isfinite(np.asarray(represent())).all()
    model.save(tmp_path / "model")
    loaded = model_cls.load(tmp_path / "model", adata) if isinstance(model_cls, type) else model
    represent = getattr(loaded, "get_latent_representation", None) or loaded.get_basal_representation
    assert np.isfinite(np.asarray(represent())).all()


@pytest.mark.parametrize("name", CASES)
def test_mlflow(name, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.chdir(tmp_path)
    make, _, _, train = CASES[name]
    model_cls, adata = make(tmp_path)
    train = dict(train)
    options = {key: train.pop(key) for key in ("preset",) if key in train}
    model = model_cls(adata, **options)
    monkeypatch.setattr(scvi.settings, "mlflow_set_tracking_uri", f"sqlite:///{tmp_path / 'mlflow.db'}")
    model.train(**train, check_val_every_n_epoch=1, **QUIET)
    logged = mlflow.get_run(model.run_id).data
    assert logged.tags["status"] == "success"
    assert any("train_loss" in key for key in logged.metrics) and any(
        "validation_loss" in key for key in logged.metrics
    )


def test_builder_makes_the_model_of_from_scvi_model(tmp_path):
    builder, human = sc_species(tmp_path)
    context = scvi.model.SCVI.load(tmp_path / "context")
    expected = tv.ScSpecies.from_scvi_model(
        context, human, orthologs=human.uns["orthologs"], labels_key="cell_type", n_neighbors=7
    )
    model = builder(human, n_neighbors=7)
    assert type(model) is tv.ScSpecies and builder.__name__ == "ScSpecies"
    np.testing.assert_array_equal(model.neighbors_, expected.neighbors_)
    assert builder(human).neighbors_.shape[1] == 10
    model.train(1, **QUIET)
    assert len(model.transfer_labels()) == human.n_obs
    # the data of the context may lie elsewhere
    context.save(tmp_path / "bare")
    with pytest.raises(ValueError, match="holds no data: save the context with save_anndata=True"):
        tv.ScSpecies.builder(tmp_path / "bare", labels_key="cell_type")
    bare = tv.ScSpecies.builder(
        tmp_path / "bare",
        context_adata=SPECIES["mouse"].copy(),
        orthologs=human.uns["orthologs"],
        labels_key="cell_type",
        n_neighbors=7,
    )
    np.testing.assert_array_equal(bare(human).neighbors_, expected.neighbors_)
    with pytest.raises(ValueError, match="holds no saved model"):
        tv.ScSpecies.builder(tmp_path / "nothing", labels_key="cell_type")


def test_a_context_trained_on_a_stream(tmp_path):
    annbatch = pytest.importorskip("annbatch", reason="annbatch is not installed")
    zarr = pytest.importorskip("zarr", reason="zarr is not installed")
    from scvi.dataloaders import AnnbatchDataModule

    mouse, human = (adata.copy() for adata in SPECIES.values())
    plain = ad.AnnData(mouse.X, obs=mouse.obs[["batch", "cell_type"]].astype(str), var=mouse.var[[]])
    plain.write_h5ad(tmp_path / "mouse.h5ad")
    shards = annbatch.DatasetCollection(zarr.open(str(tmp_path / "mouse.zarr"), mode="w"))
    shards.add_adatas([str(tmp_path / "mouse.h5ad")])
    chunks = {"chunk_size": 32, "preload_nchunks": 4, "preload_to_gpu": False, "batch_size": 64}
    loader = annbatch.Loader(shuffle=True, to="torch", **chunks)
    loader.use_collection(shards)
    stream = AnnbatchDataModule(loader, batch_key="batch", var_names=plain.var_names.tolist(), **chunks)
    streamed = tv.ScSpecies.make_context(None, registry=stream.registry, n_hidden=32)
    streamed.train(3, datamodule=stream, **QUIET)

    backed = ad.read_h5ad(tmp_path / "mouse.h5ad", backed="r")
    scvi.model.SCVI.setup_anndata(backed, batch_key="batch")
    context = tv.ScSpecies.make_context(backed, n_hidden=32)
    codes = context.adata_manager.get_state_registry("batch").categorical_mapping
    assert list(codes) == list(stream.batch_labels)
    context.module.load_state_dict(streamed.module.state_dict())
    context.is_trained_ = True
    context.module.eval()
    tv.ScSpecies.setup_anndata(human, batch_key="batch")
    model = tv.ScSpecies.from_scvi_model(context, human, human.uns["orthologs"], labels_key="cell_type")
    model.train(1, **QUIET)
    expected = context.get_latent_representation()
    np.testing.assert_allclose(model.get_context_representation(), expected, atol=1e-4)
