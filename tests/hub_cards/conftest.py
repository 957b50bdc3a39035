"""Run files, and a folder with a card made of them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from ccrk.hub_cards.cards import model_card, read_runs, weights_in
from ccrk.hub_cards.model_card import CardOptions


@pytest.fixture(scope="session")
def made():
    """The module `made_runs`."""
    if "ccrk_tests_made_runs" not in sys.modules:
        spec = importlib.util.spec_from_file_location("ccrk_tests_made_runs", Path(__file__).parent / "made_runs.py")
        sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[spec.name])
    return sys.modules["ccrk_tests_made_runs"]


@pytest.fixture(scope="session")
def card(made, tmp_path_factory):
    """A card of an evaluation and a training; with plots, if matplotlib is there."""
    folder = tmp_path_factory.mktemp("runs")
    return model_card(CardOptions("scenes", "org/scenes", license="mit"), read_runs(made.write_runs(folder)))


@pytest.fixture
def folder(card, tmp_path):
    """A folder with the card, and weights that it is of."""
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    documents = {name: card.document(name) for name in card.files if name.startswith("results/")}
    drawn = {name: content for name, content in card.files.items() if name.startswith("assets/")}
    model_card(card.options, documents, weights_in(tmp_path), drawn).write(tmp_path)
    return tmp_path
