"""The summary of trainings that really ran: best checkpoints, early stopping, resumption, TensorBoard, a full disk."""

from __future__ import annotations

import json
import logging
import re
import resource
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import EarlyStoppingCallback
from transformers.trainer_callback import TrainerState

from ccrk import CCRkModel, CCRkTrainer, CCRkTrainingArguments
from ccrk.evaluation.retrieval import greater_is_better
from ccrk.trainer import summary
from ccrk.trainer.summary import TrainingSummaryCallback, best_evaluation, evaluation_tables, log_lines

FILES = {"training_summary.md", "training_curves.png", "training_log.jsonl"}


def arguments(folder, metric=None, **options):
    best = {"metric_for_best_model": metric, "greater_is_better": greater_is_better(metric)} if metric else {}
    defaults = {
        "per_device_train_batch_size": 4,
        "max_steps": 12,
        "learning_rate": 3e-3,
        "logging_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_steps": 2,
        "report_to": "none",
    }
    return CCRkTrainingArguments(str(folder), use_cpu=True, **(defaults | best | options))


def train(args, model, processor, rows, *callbacks, resume=None):
    callbacks = callbacks or (TrainingSummaryCallback(),)
    trainer = CCRkTrainer(
        model=model,
        args=args,
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=processor,
        callbacks=list(callbacks),
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def log_of(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / summary.LOG).read_text().splitlines()]


@pytest.mark.parametrize("metric", ["eval_ir@1_mean", "ir@10_worst", "eval_rsum", "eval_mrv"])
def test_the_best_checkpoint_is_kept_loaded_and_told(tmp_path, rows, processor, make_model, metric):
    pytest.importorskip("matplotlib")
    args = arguments(tmp_path, metric, load_best_model_at_end=True, save_total_limit=1)
    trainer = train(args, make_model(), processor, rows)
    name = f"eval_{metric.removeprefix('eval_')}"
    values = {entry["step"]: entry[name] for entry in log_of(tmp_path) if name in entry}
    assert len(values) == 6
    best = (min if metric == "eval_mrv" else max)(values.values())
    step = next(step for step, value in values.items() if value == best)
    assert trainer.state.best_metric == best
    assert trainer.state.best_global_step == step
    assert trainer.evaluate()[name] == pytest.approx(best)  # the loaded model is the best one
    saved = load_file(tmp_path / f"checkpoint-{step}" / "model.safetensors")
    loaded = trainer.model.state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in saved.items())
    text = (tmp_path / summary.SUMMARY).read_text()
    order = "lower" if metric == "eval_mrv" else "higher"
    assert (
        f"`checkpoint-{step}`: step {step} by `{metric}` = {best:.6g} ({order} is better), loaded at the end" in text
    )
    assert (tmp_path / summary.CURVES).read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob(".*"))


def test_early_stopping_and_what_is_told(tmp_path, rows, processor, make_model):
    args = arguments(tmp_path, "eval_mrv", max_steps=40, learning_rate=0.0, load_best_model_at_end=True)
    skipped = Counter()
    callback = TrainingSummaryCallback(data="twelve photos | of noise", skipped=skipped)
    skipped["image file missing"] += 2  # counted after the callback was made
    model = make_model(CCRkModel, contrastive_variant="balanced", matching_weight=0.5)
    trainer = train(args, model, processor, rows, callback, EarlyStoppingCallback(2))
    assert trainer.state.global_step == 6  # the first evaluation is the best, the two after it are no better
    text = (tmp_path / summary.SUMMARY).read_text()
    assert "| steps | 6 of 40, stopped before the end (2 epochs) |" in text
    assert "| objectives | contrastive `balanced` (weight 1), image-text matching (weight 0.5) |" in text
    assert "| data | twelve photos / of noise |" in text
    assert "| left out | 2 x image file missing |" in text
    assert re.search(r"\| time \| \d+\.\d s wall, \d+\.\d s processor, evaluations included \|", text)
    peak = int(re.search(r"peak resident memory \| (\d+) MiB", text)[1])
    assert peak <= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 + 1
    assert "## Best evaluation (step 2)" in text and "## Last evaluation (step 6)" in text
    entry = next(e for e in log_of(tmp_path) if "eval_mrv" in e)
    row = next(line for line in text.splitlines() if line.startswith("| fr |"))
    figures = [f"{100 * entry[f'eval_{name}_fr']:.1f}" for name in ("ir@1", "ir@5", "ir@10", "tr@1", "tr@5", "tr@10")]
    assert [cell.strip() for cell in row.strip("|").split("|")] == ["fr", *figures]
    assert f"MRV (lower is better) {entry['eval_mrv']:.4g}" in text


def test_a_resumed_run_is_summed_up_whole(tmp_path, rows, processor, make_model):
    train(arguments(tmp_path, "eval_mrv", max_steps=4), make_model(), processor, rows)
    first = log_of(tmp_path)
    kept = json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text())
    spent = kept["stateful_callbacks"]["TrainingSummaryCallback"]["attributes"]["spent"]
    assert spent["wall_s"] > 0 and spent["cpu_s"] > 0
    spent["wall_s"] += 1000
    state = tmp_path / "checkpoint-4" / "trainer_state.json"
    state.write_text(json.dumps(kept).ljust(state.stat().st_size))  # as long as it was: a shorter one is not whole
    args = arguments(tmp_path, "eval_mrv", max_steps=8)
    train(args, make_model(), processor, rows, resume=str(tmp_path / "checkpoint-4"))
    log = log_of(tmp_path)
    assert [e["step"] for e in log if "eval_mrv" in e] == [2, 4, 6, 8]
    assert [e["step"] for e in log if "loss" in e] == list(range(1, 9))
    assert [e for e in log if "loss" in e][:4] == [e for e in first if "loss" in e]
    text = (tmp_path / summary.SUMMARY).read_text()
    assert re.search(r"\| time \| 10\d\d\.\d s wall", text)
    assert "| steps | 8 (" in text


def test_a_checkpoint_without_the_callback_is_resumed(tmp_path, rows, processor, make_model):
    train(arguments(tmp_path, max_steps=2), make_model(), processor, rows, EarlyStoppingCallbackOff())
    trainer = train(arguments(tmp_path), make_model(), processor, rows, resume=str(tmp_path / "checkpoint-2"))
    assert trainer.state.global_step == 12
    assert set(FILES) <= {file.name for file in tmp_path.iterdir()}
    assert "no metric was named" in (tmp_path / summary.SUMMARY).read_text()


class EarlyStoppingCallbackOff(summary.TrainerCallback):
    """A callback that does nothing."""


def test_a_full_disk_costs_the_summary_and_not_the_model(tmp_path, rows, processor, make_model, caplog, monkeypatch):
    """The limit on the size of files stands for a disk that fills up while the summary is written."""
    args = arguments(tmp_path, max_steps=2, save_strategy="no")
    (tmp_path / summary.SUMMARY).write_text("of an earlier run")
    callback = TrainingSummaryCallback()
    original = callback.on_train_end
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def on_full_disk(*words, **options):
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
        try:
            original(*words, **options)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    monkeypatch.setattr(callback, "on_train_end", on_full_disk)
    with caplog.at_level(logging.WARNING):
        trainer = train(args, make_model(), processor, rows, callback)
    trainer.save_model()
    assert (tmp_path / "model.safetensors").stat().st_size > 10_000
    assert (tmp_path / summary.SUMMARY).read_text() == "of an earlier run"
    told = [record.getMessage() for record in caplog.records if record.name == "ccrk.trainer.summary"]
    assert {name for name in FILES for line in told if name in line and "was not written: OSError" in line} >= {
        summary.SUMMARY,
        summary.LOG,
    }
    assert not list(tmp_path.glob(".*"))


def test_without_matplotlib_the_summary_says_so(tmp_path, rows, processor, make_model, monkeypatch):
    for name in list(sys.modules):
        if name.partition(".")[0] == "matplotlib":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    train(arguments(tmp_path, max_steps=2, save_strategy="no"), make_model(), processor, rows)
    text = (tmp_path / summary.SUMMARY).read_text()
    assert "matplotlib is not installed" in text
    assert "| de |" in text
    assert not (tmp_path / summary.CURVES).exists()


def test_the_plot_shows_every_panel():
    Image = pytest.importorskip("PIL.Image")
    pytest.importorskip("matplotlib")
    history = [
        {"step": s, "loss": 3 / s, "loss_mlm": 1 / s, "learning_rate": 1e-3 / s, "temperature": 0.07}
        for s in range(1, 9)
    ]
    evaluations = [
        {"step": s, "eval_ir@1_mean": s / 9, "eval_ir@1_worst": s / 12, "eval_tr@1_mean": s / 9, "eval_mrv": 4 - s / 3}
        for s in (4, 8)
    ]
    heights = []
    for entries in ([], history, [*history, *evaluations]):
        import io

        picture = np.asarray(Image.open(io.BytesIO(summary.plot_history(entries, 4))).convert("L"))
        assert (picture < 128).any()
        heights.append(picture.shape[0])
    assert heights[0] < heights[1] < heights[2]  # one row of panels, two, three


def test_tensorboard_keeps_the_names(tmp_path, rows, processor, make_model):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    args = arguments(tmp_path, max_steps=4, report_to="tensorboard", save_strategy="no")
    trainer = train(args, make_model(), processor, rows)
    (folder,) = (tmp_path / "runs").iterdir()
    events = EventAccumulator(str(folder)).Reload()
    tags = set(events.Tags()["scalars"])
    assert {"eval/ir@1_mean", "eval/ir@10_worst", "eval/tr@5_de", "eval/mrv", "train/loss_contrastive"} <= tags
    logged = {e["step"]: e["eval_ir@1_mean"] for e in trainer.state.log_history if "eval_ir@1_mean" in e}
    shown = {event.step: event.value for event in events.Scalars("eval/ir@1_mean")}
    assert shown.keys() == logged.keys() == {2, 4}
    assert all(shown[step] == pytest.approx(value) for step, value in logged.items())


def test_parts_of_the_text():
    history = [
        {"step": 1, "eval_a_ir@1_en": 0.5, "eval_a_ir@1_mean": 0.5, "eval_a_mrv": 2.0, "grad_norm": float("nan")},
        {"step": 1, "eval_b_ir@1_pt-BR": 0.25, "eval_b_ir@1_mean": 0.25, "eval_b_skipped_images": 3},
        {"step": 2, "eval_a_mrv": 1.0},
        {"step": 3, "eval_a_mrv": 1.0},
    ]
    text = evaluation_tables(history, 1)
    assert "a:\n" in text and "b:\n" in text
    assert "| pt-BR | 25.0 |" in text and "| en | 50.0 |" in text
    assert "MRV (lower is better) 2." in text and "images left out 3." in text
    assert best_evaluation(history, "a_mrv", False) == (2, 1.0)
    assert best_evaluation(history, "eval_a_mrv", True) == (1, 2.0)
    assert best_evaluation(history, "mrv", False) is None
    assert best_evaluation(history, None, None) is None
    assert json.loads(log_lines(history).splitlines()[0])["grad_norm"] is None
    state = TrainerState()
    assert state.stateful_callbacks == {}
