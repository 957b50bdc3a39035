"""The authors' distributed loss reproduced, and what it does to gradients beside one process's and ours.

The authors gather features, and each process keeps the gradient of its own rows in its own copy of the loss. The
average that DistributedDataParallel takes is then 1 / world of the gradient that reaches weights through features,
and the whole of the temperature's. Ours sums the gradients of gathered rows over processes.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ccrk.losses_ccrk import one_to_k

SCRIPT = Path(__file__).with_name("two_processes.py")
_spec = importlib.util.spec_from_file_location("ccrk_tests_two_processes", SCRIPT)
two_processes = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(two_processes)
WORLD = 2


def launch(features: dict[str, torch.Tensor], folder: Path) -> list[dict[str, torch.Tensor]]:
    """What each process found."""
    save_file({name: value.contiguous() for name, value in features.items()}, folder / "features.safetensors")
    command = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(WORLD)]
    command += [SCRIPT, folder / "features.safetensors", folder]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return [load_file(folder / f"rank{rank}.safetensors") for rank in range(WORLD)]


def whole_loss(images, texts, temperature) -> torch.Tensor:
    return one_to_k(images @ texts.t() / temperature, torch.arange(len(texts)) // (len(texts) // len(images)))


@pytest.fixture(scope="module")
def reference(shared) -> dict[str, torch.Tensor]:
    return load_file(shared / "reference" / "golden_ext" / "dist2.safetensors")


@pytest.fixture(scope="module")
def of_reference(reference, tmp_path_factory):
    features = {name: reference[name] for name in ("image_feat", "text_feat")} | {"temp": torch.tensor(0.07)}
    return launch(features, tmp_path_factory.mktemp("reference"))


@pytest.fixture(scope="module")
def random_features() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    made = {
        "image_feat": torch.randn(6, 12, generator=generator),
        "text_feat": torch.randn(24, 12, generator=generator),
    }
    return {name: torch.nn.functional.normalize(rows) for name, rows in made.items()} | {"temp": torch.tensor(0.07)}


@pytest.fixture(scope="module")
def of_random(random_features, tmp_path_factory):
    return launch(random_features, tmp_path_factory.mktemp("random"))


@pytest.mark.parametrize("way", ["itc_allgather0", "itc_allgather1"])
def test_the_authors_losses_and_gradients(reference, of_reference, way):
    for rank, found in enumerate(of_reference):
        prefix = f"{way}.rank{rank}."
        torch.testing.assert_close(found[f"{way}.loss"], reference[prefix + "loss"], atol=1e-5, rtol=1e-6)
        for name in ("image_feat", "text_feat", "temp"):
            expected = reference[f"{prefix}grad.{name}"]
            torch.testing.assert_close(found[f"{way}.grad.{name}"], expected, atol=1e-6, rtol=1e-4)


def test_our_features_have_the_gradient_of_one_process(of_reference, reference, of_random, random_features):
    given = {**{name: reference[name] for name in ("image_feat", "text_feat")}, "temp": torch.tensor(0.07)}
    for features, found in ((given, of_reference), (random_features, of_random)):
        leaves = {name: features[name].clone().requires_grad_() for name in ("image_feat", "text_feat", "temp")}
        loss = whole_loss(*leaves.values())
        loss.backward()
        torch.testing.assert_close(sum(part["ours.loss"] for part in found), loss.detach(), atol=1e-6, rtol=1e-6)
        for name in ("image_feat", "text_feat"):
            ours = torch.cat([part[f"ours.grad.{name}"] for part in found])
            torch.testing.assert_close(ours, leaves[name].grad, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(sum(p["ours.grad.temp"] for p in found), leaves["temp"].grad, atol=1e-5, rtol=1e-5)


def test_without_the_reference_our_features_have_the_gradient_of_one_process(of_random, random_features):
    leaves = {name: random_features[name].clone().requires_grad_() for name in ("image_feat", "text_feat", "temp")}
    whole_loss(*leaves.values()).backward()
    for name in ("image_feat", "text_feat"):
        ours = torch.cat([part[f"ours.grad.{name}"] for part in of_random])
        torch.testing.assert_close(ours, leaves[name].grad, atol=1e-6, rtol=1e-5)


def gradients_of_one(features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What one process with the whole batch gives the weights of the projections."""
    model = two_processes.Projections(features["image_feat"].shape[1], features["temp"])
    whole_loss(*model(features["image_feat"], features["text_feat"])).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def test_weights_of_a_distributed_model(of_random, random_features):
    """Ours is the gradient of one process; the authors' half of it, but for the temperature's, which is whole."""
    expected = gradients_of_one(random_features)
    for found in of_random:
        for name, gradient in expected.items():
            scale = float(gradient.abs().max())
            torch.testing.assert_close(found[f"ours.ddp.{name}"], gradient, atol=2e-6 * scale, rtol=1e-5)
            authors = found[f"itc_allgather0.ddp.{name}"]
            share = 1.0 if name == "temp" else 1 / WORLD
            torch.testing.assert_close(authors, share * gradient, atol=2e-6 * scale, rtol=1e-5)
            without_gathering = found[f"itc_allgather1.ddp.{name}"]
            assert (without_gathering - gradient).norm() > 0.05 * gradient.norm()  # another loss altogether


def main(features: dict[str, torch.Tensor], folder: Path) -> None:
    """Prints norms of differences, by the norm of one process's gradient."""
    expected, (found, _) = gradients_of_one(features), launch(features, folder)
    print("| gradient of | ours | `itc_allgather` 0 | `itc_allgather` 1 |\n| --- | --- | --- | --- |")
    for name, gradient in expected.items():
        cells = [(found[f"{way}.ddp.{name}"] - gradient).norm() / gradient.norm() for way in ("ours", *WAYS)]
        print(f"| `{name}` | " + " | ".join(f"{float(cell):.1e}" for cell in cells) + " |")


WAYS = ("itc_allgather0", "itc_allgather1")

if __name__ == "__main__":
    import tempfile

    path = Path(sys.argv[1] if len(sys.argv) > 1 else os.environ.get("CCRK_SHARED", "../shared"))
    tensors = load_file(path / "reference" / "golden_ext" / "dist2.safetensors")
    with tempfile.TemporaryDirectory() as name:
        main({k: tensors[k] for k in ("image_feat", "text_feat")} | {"temp": torch.tensor(0.07)}, Path(name))
