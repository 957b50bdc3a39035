"""The trainer's card: of the figures of the weights as they are, and never in the way of the model."""

from __future__ import annotations

import importlib.util
import json
import logging
from pathlib import Path

import pytest

from ccrk import CCRkTrainer, CCRkTrainingArguments
from ccrk.hub_cards.cards import check_card

spec = importlib.util.spec_from_file_location("tiny", Path(__file__).parent / "tiny.py")
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)


@pytest.fixture
def make_trainer(tmp_path):
    """A trainer whose output folder is `out`."""

    def make(**more):
        processor = tiny.make_processor()
        options = {"max_steps": 1, "per_device_train_batch_size": 3, "report_to": "none", "save_strategy": "no"}
        options |= {"use_cpu": True, "dataloader_pin_memory": False, "eval_languages": ["de", "en"]}
        rows = tiny.make_rows(6)
        return CCRkTrainer(
            model=tiny.make_model(processor),
            args=CCRkTrainingArguments(str(tmp_path / "out"), **{**options, **more}),
            train_dataset=rows,
            eval_dataset=rows,
            processing_class=processor,
        )

    return make


def test_a_card_of_training_and_evaluation(make_trainer, tmp_path):
    trainer = make_trainer()
    trainer.train()
    metrics = trainer.evaluate()
    trainer.save_model()
    trainer.create_model_card(license="mit", tags="birds", model_name="my-birds")
    card = check_card(tmp_path / "out")
    result = card.document("results/evaluation.json")["results"][0]
    assert result["means"]["ir@1"] == pytest.approx(metrics["eval_ir@1_mean"])
    assert result["settings"]["step"] == 1
    training = card.document("results/training.json")
    assert training["steps"] == 1 and training["batch"]["images"] == 3 and training["data"]["captions"]["de"] == 6
    assert training["model"]["parameters"] == sum(p.numel() for p in trainer.model.parameters())
    text = card.files["README.md"].decode()
    assert "# my-birds" in text and "license: mit" in text and "- birds" in text
    assert json.loads(card.files["card_sources.json"])["weights"].keys() == {"model.safetensors"}


def test_an_evaluation_of_other_weights_is_no_source(make_trainer, tmp_path):
    trainer = make_trainer()
    trainer.evaluate()  # of the weights before training
    assert len(trainer.reports_of_weights()) == 1
    trainer.train()
    assert trainer.reports_of_weights() == []
    (tmp_path / "out" / "evaluation.json").write_text("[]")  # of somebody else
    trainer.save_model()
    trainer.create_model_card()
    assert "Nothing was measured" in check_card(tmp_path / "out").files["README.md"].decode()


def test_the_best_weights_have_the_figures_of_their_step(make_trainer):
    trainer = make_trainer(
        max_steps=3,
        save_strategy="steps",
        save_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        metric_for_best_model="ir@1_mean",
        greater_is_better=True,
        load_best_model_at_end=True,
        learning_rate=0.0,  # nothing changes, so the first is the best
    )
    trainer.train()
    assert [report["settings"]["step"] for report in trainer.reports_of_weights()] == [1]


def test_several_evaluation_sets_are_parts(make_trainer):
    trainer = make_trainer()
    trainer.train()
    trainer.evaluate({"photos": tiny.make_rows(4), "drawings": tiny.make_rows(3)})
    assert [report["part"] for report in trainer.reports_of_weights()] == ["photos", "drawings"]


def test_a_failing_card_costs_nothing_but_itself(make_trainer, tmp_path, caplog):
    trainer = make_trainer()
    trainer.train()
    trainer.save_model()
    (tmp_path / "out" / "results").write_text("a file in the way")
    with caplog.at_level(logging.WARNING):
        trainer.create_model_card()
    assert "there is no model card in" in caplog.text and (tmp_path / "out" / "model.safetensors").is_file()


def test_a_card_that_a_person_wrote_stays(make_trainer, tmp_path, caplog):
    trainer = make_trainer()
    trainer.train()
    (tmp_path / "out" / "README.md").write_text("# Mine")
    with caplog.at_level(logging.WARNING):
        trainer.create_model_card()
    assert (tmp_path / "out" / "README.md").read_text() == "# Mine" and "was written by hand and stays" in caplog.text
