import mudata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scvi

import transverse as tv

QUIET = {"accelerator": "cpu", "enable_progress_bar": False}
SETTINGS = {
    "batch_key": "batch",
    "context_kwargs": {"n_hidden": 128},
    "context_train_kwargs": {
        "max_epochs": 40,
        "plan_kwargs": {"n_epochs_kl_warmup": 10, "eps": 1e-8, "lr": 4e-3},
        **QUIET,
    },
    "train_kwargs": {"max_epochs": 60, "plan_kwargs": {"lr": 4e-3}, **QUIET},
}


@pytest.fixture(scope="module")
def data():
    """Three species; human and hamster share few genes but for the mouse."""
    return tv.datasets.simulate_species(
        "tiny",
        species=("mouse", "human", "hamster"),
        n_shared_genes=60,
        n_specific_genes={"mouse": 500, "human": 200, "hamster": 200},
        divergence=0.1,
        seed=1,
    )


def tables(data):
    return {name: data[name].uns["orthologs"] for name in ("human", "hamster")}


def accuracy(adata, column="scSpecies_label"):
    return (adata.obs[column].astype(str) == adata.obs["cell_type"].astype(str)).mean()


@pytest.fixture(scope="module")
def aligned(data):
    scvi.settings.seed = 0
    mdata = mudata.MuData({name: adata.copy() for name, adata in data.items()})
    alignment = tv.tl.align_species(mdata, "mouse", "cell_type", orthologs=tables(data), **SETTINGS)
    return mdata, alignment


@pytest.mark.slow
def test_species_meet_in_the_context(data, aligned):
    shared = [set(data[name].var["ortholog"]) - {""} for name in ("human", "hamster")]
    assert 0 < len(set.intersection(*shared)) < 0.05 * data["human"].n_vars
    mdata, alignment = aligned
    for name in ("human", "hamster"):
        assert accuracy(mdata[name]) > 0.95
        # one species at a time, with a model of the context of its own
        scvi.settings.seed = 0
        pair = {"mouse": data["mouse"].copy(), name: data[name].copy()}
        tv.tl.align_species(pair, "mouse", "cell_type", orthologs=tables(data)[name], **SETTINGS)
        assert abs(accuracy(pair[name]) - accuracy(mdata[name])) < 0.03
    latent = {name: adata.obsm["X_scSpecies"] for name, adata in mdata.mod.items()}
    assert {name: x.shape for name, x in latent.items()} == {
        "mouse": (400, 10),
        "human": (300, 10),
        "hamster": (300, 10),
    }
    # hamster's and human's cells of a type are together, though they were never compared
    distance = ((latent["hamster"][:, None] - latent["human"][None]) ** 2).sum(-1)
    nearest = mdata["human"].obs["cell_type"].astype(str).to_numpy()[distance.argmin(1)]
    assert (nearest == mdata["hamster"].obs["cell_type"].astype(str)).mean() > 0.7
    np.testing.assert_array_equal(latent["mouse"], alignment.models["human"].get_context_representation())
    columns = ["label", "confidence", "novelty", "log_likelihood_ratio", "data_level_label", "data_level_agreement"]
    assert {f"scSpecies_{column}" for column in columns} <= set(mdata["human"].obs)
    assert not any(column.startswith("scSpecies") for column in mdata["mouse"].obs)


def test_joint_data(aligned):
    mdata, alignment = aligned
    joint = alignment.joint()
    assert joint.n_obs == 1000
    assert joint.obs["species"].value_counts(sort=False).to_dict() == {"mouse": 400, "human": 300, "hamster": 300}
    human = joint[joint.obs["species"] == "human"]
    np.testing.assert_allclose(human.obsm["X_scSpecies"], mdata["human"].obsm["X_scSpecies"], atol=1e-5)
    assert (
        human.obs["scSpecies_label"].astype(str).to_numpy() == mdata["human"].obs["scSpecies_label"].astype(str)
    ).all()
    mouse = joint[joint.obs["species"] == "mouse"]
    assert (mouse.obs["scSpecies_label"].astype(str).to_numpy() == mdata["mouse"].obs["cell_type"].astype(str)).all()
    assert mouse.obs["novelty"].isna().all()
    sc.pp.neighbors(joint, use_rep="X_scSpecies", n_neighbors=5)
    sc.tl.umap(joint, maxiter=5)
    assert len(sc.pl.umap(joint, color=["species", "scSpecies_label"], show=False)) == 2


def test_saved_together(aligned, tmp_path):
    mdata, alignment = aligned
    folder = tmp_path / "atlas"
    alignment.save(folder)
    loaded = tv.tl.SpeciesAlignment.load(folder, mdata, accelerator="cpu")
    assert loaded.context == "mouse"
    assert list(loaded.models) == ["human", "hamster"]
    for name, model in loaded.models.items():
        pd.testing.assert_frame_equal(model.transfer_labels(), alignment.models[name].transfer_labels(), rtol=1e-4)
    np.testing.assert_allclose(
        loaded.context_model.get_latent_representation(), mdata["mouse"].obsm["X_scSpecies"], atol=1e-5
    )
    with pytest.raises(FileExistsError, match="overwrite=True"):
        alignment.save(folder)
    alignment.save(folder, overwrite=True, save_anndata=True)
    assert tv.tl.SpeciesAlignment.load(folder, accelerator="cpu").models["human"].adata.n_obs == 300
    with pytest.raises(KeyError, match="'hamster', only 'mouse', 'human'"):
        tv.tl.SpeciesAlignment.load(folder, {name: mdata[name] for name in ("mouse", "human")})
    (folder / "species.json").unlink()
    with pytest.raises(FileNotFoundError, match="no complete alignment"):
        tv.tl.SpeciesAlignment.load(folder, mdata)


def test_a_trained_context_and_other_names(data, aligned):
    pair = {"mouse": aligned[0]["mouse"], "human": data["human"].copy()}
    alignment = tv.tl.align_species(
        pair,
        "mouse",
        "cell_type",
        orthologs=tables(data)["human"],
        batch_key={"human": "batch"},
        context_model=aligned[1].context_model,
        train_kwargs={"max_epochs": 1, **QUIET},
        model_kwargs={"n_neighbors": 7},
        unknown_threshold=-100.0,
        key_added="aligned",
    )
    assert alignment.context_model is aligned[1].context_model
    assert alignment.models["human"].neighbors_.shape == (300, 7)
    assert (pair["human"].obs["aligned_label"] == "unknown").all()
    assert pair["human"].obsm["X_aligned"].shape == (300, 10)


def test_bad_input_is_refused_before_any_work(data):
    kwargs = {"context": "mouse", "labels_key": "cell_type", "batch_key": "batch", "orthologs": tables(data)}
    before = {name: adata.obs.copy() for name, adata in data.items()}

    def refused(error, match, species=data, **changes):
        with pytest.raises(error, match=match):
            tv.tl.align_species(species, **{**kwargs, **changes})

    refused(TypeError, "a MuData, or a mapping", species=data["mouse"])
    refused(KeyError, "context='rat' is not a species.*'mouse', 'human'", context="rat")
    refused(ValueError, "no species beside the context 'mouse'", species={"mouse": data["mouse"]})
    refused(KeyError, "labels_key \\(of 'mouse'\\)='type'", labels_key="type")
    refused(KeyError, "batch_key \\(of 'mouse'\\)='donor'", batch_key="donor")
    refused(KeyError, "batch_key names 'rat'", batch_key={"rat": "batch"})
    refused(KeyError, "no entry for 'hamster', only for 'human'", orthologs={"human": tables(data)["human"]})
    for name, obs in before.items():
        pd.testing.assert_frame_equal(data[name].obs, obs)
