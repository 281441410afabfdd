"""On a GPU all four models give what they give on a CPU."""

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback

from .cases import CASES
from .test_contract import assert_results

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")

GPU = {"accelerator": "gpu", "devices": 1}

# what a model tells beside its representation and predictions, and draws nothing for
MORE = {
    "ScSpecies": {
        "context": lambda model: model.get_context_representation(),
        "relevance": lambda model: model.get_gene_relevance(groupby="cell_type").select_dtypes("number").to_numpy(),
    },
    "DeepCellState": {
        "importance": lambda model: (
            model.get_gene_importance(method="integrated_gradients").select_dtypes("number").to_numpy()
        ),
        "regulators": lambda model: (
            model.get_latent_agreement(*sorted(set(model.adata.obs["cell_type"]))[:2])
            .select_dtypes("number")
            .to_numpy()
        ),
    },
    "UGE": {
        "genes": lambda model: model.get_gene_representation(model.species_[0]),
        "map": lambda model: model.map_genes(*model.species_[:2]).select_dtypes("number").to_numpy(),
    },
    "XTransferCDR": {},
}


@pytest.fixture(scope="module", params=list(CASES))
def case(request):
    return CASES[request.param]


@pytest.fixture(scope="module")
def model(case):
    """Trained on a CPU; tests must bring it back there."""
    return case.trained()


@pytest.fixture(scope="module")
def results(case, model):
    return everything(case, model)


def everything(case, model):
    more = {key: np.asarray(result(model)) for key, result in MORE[case.name].items()}
    return {**case.all_results(model), **more}


def losses(model):
    return model.history["train_loss"].iloc[:, 0].to_numpy(dtype=float)


def test_results_do_not_depend_on_the_device(case, model, results):
    model.to_device("cuda:0")
    try:
        assert_results(everything(case, model), results, rtol=5e-3, atol=5e-3)
    finally:
        model.to_device("cpu")


def test_training_goes_as_on_a_cpu(case, model):
    """Dropout and noise are other numbers there, so the losses are close, not the same."""
    other = case.trained(**GPU)
    assert other.device.type == "cuda"
    found, expected = losses(other), losses(model)
    assert np.isfinite(found).all() and np.allclose(found, expected, rtol=0.1), (found, expected)
    for key, values in everything(case, other).items():
        assert values.dtype == object or np.isfinite(values).all(), key


def test_models_move_between_devices_with_their_files(case, model, results, tmp_path):
    model.save(tmp_path / "cpu", save_anndata=True)
    on_gpu = case.cls.load(tmp_path / "cpu", accelerator="gpu", device="auto")
    assert on_gpu.device.type == "cuda"
    assert_results(everything(case, on_gpu), results, rtol=5e-3, atol=5e-3)
    on_gpu.save(tmp_path / "gpu", save_anndata=True)
    back = case.cls.load(tmp_path / "gpu", accelerator="cpu")
    assert back.device.type == "cpu"
    assert_results(everything(case, back), results, rtol=5e-3, atol=5e-3)


def test_a_training_goes_on_on_a_gpu(case, tmp_path):
    """As close to the unbroken one as two runs on a GPU are, which adds in no fixed order."""
    unbroken = case.trained(epochs=3, **GPU)
    case_model = case.model()
    path = tmp_path / "training.pt"

    class Cut(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 2:
                raise ConnectionError("cut off")

    with pytest.raises(ConnectionError):
        case.fit(case_model, 3, checkpoint_path=path, callbacks=[Cut()], **GPU)
    other = case.model()
    case.fit(other, 3, checkpoint_path=path, **GPU)
    assert len(losses(other)) == len(losses(unbroken))
    np.testing.assert_allclose(losses(other), losses(unbroken), rtol=1e-3)


def test_mixed_precision_on_a_gpu(case, model):
    other = case.trained(precision="bf16-mixed", **GPU)
    assert np.allclose(losses(other), losses(model), rtol=0.1)
    for key, values in case.all_results(other).items():
        assert values.dtype == object or np.isfinite(values).all(), key
