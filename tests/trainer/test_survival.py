"""Runs that are killed, run out of disk or out of numbers: what is left, and where they go on."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ccrk import CCRkTrainer, CCRkTrainingArguments
from ccrk.trainer import checkpoints, feature_cache
from ccrk.trainer.feature_cache import FeatureCache

sys.path.insert(0, str(Path(__file__).parent))
import survive  # noqa: E402

sys.path.pop(0)
import ccrk_tests_tiny as tiny  # noqa: E402


def arguments(folder, **options):
    defaults = {"per_device_train_batch_size": 4, "max_steps": 8, "save_steps": 2, "logging_steps": 1}
    return CCRkTrainingArguments(
        str(folder), report_to="none", use_cpu=True, disable_tqdm=True, **(defaults | options)
    )


def trainer_of(folder, processor, rows, model=None, **options):
    callbacks = options.pop("callbacks", None)
    more = {name: options.pop(name) for name in ("eval_dataset", "data_collator") if name in options}
    return CCRkTrainer(
        model=model if model is not None else tiny.make_model(processor),
        args=arguments(folder, **options),
        train_dataset=rows,
        processing_class=processor,
        callbacks=callbacks,
        **more,
    )


def steps_of(folder) -> list[int]:
    return [step for step, _ in checkpoints.checkpoints_in(folder)]


# --- killed -------------------------------------------------------------------------------------------------------


def check_killed(folder: Path, setting: str, moments: list[str]) -> None:
    """The run that was killed at these moments has ended as the other one did."""
    print(setting, *moments, sep="\n")
    whole, killed = (load_file(folder / kind / "final.safetensors") for kind in ("whole", "killed"))
    assert whole.keys() == killed.keys() and len(whole) > 300
    differing = [name for name in whole if not torch.equal(whole[name], killed[name])]
    assert not differing, f"{setting}, killed {moments}: {differing}"
    assert int(whole["skipped.not an image"]) in (4, 5)
    taken = survive.steps_taken(folder / "killed")
    assert len(taken) > 22 and taken[-1] == 22  # some steps were taken twice: the kills were real
    assert survive.steps_taken(folder / "whole") == list(range(1, 23))


def check_settings(folder: Path, settings: list[str], kills: int, seed: int) -> None:
    corpus = survive.write_corpus(folder / "corpus")
    survive.finish(corpus, *((folder / setting / "whole", setting) for setting in settings))
    moments = {}
    for setting in settings:
        moments[setting] = survive.train_killed(folder / setting / "killed", setting, corpus, kills, seed)
        assert len(moments[setting]) == kills
    survive.finish(corpus, *((folder / setting / "killed", setting) for setting in settings))
    for setting in settings:
        check_killed(folder / setting, setting, moments[setting])


only_linux = pytest.mark.skipif(sys.platform != "linux", reason="kills the processes that /proc shows")


@only_linux
def test_killed_runs_end_as_those_that_were_not(tmp_path):
    check_settings(tmp_path, ["stream"], kills=1, seed=3)  # the slow tests below have all settings


@pytest.mark.slow
@only_linux
@pytest.mark.parametrize("setting", survive.SETTINGS)
def test_runs_killed_five_times_end_as_those_that_were_not(tmp_path, setting):
    check_settings(tmp_path, [setting], kills=5, seed=1)


# --- checkpoints --------------------------------------------------------------------------------------------------


def test_auto_begins_and_goes_on(tmp_path, rows, processor):
    with pytest.raises(ValueError, match="'auto' begins a new run"):
        trainer_of(tmp_path, processor, rows).train(resume_from_checkpoint=True)
    first = trainer_of(tmp_path, processor, rows, max_steps=4)
    first.train(resume_from_checkpoint="auto")
    assert steps_of(tmp_path) == [2, 4] and first.state.global_step == 4
    seen = []
    again = trainer_of(tmp_path, processor, rows)
    step = again.training_step
    again.training_step = lambda *given: (seen.append(again.state.global_step), step(*given))[1]
    again.train(resume_from_checkpoint="auto")
    assert seen == [4, 5, 6, 7]


def test_what_is_not_whole_is_not_gone_on_from(tmp_path, rows, processor):
    trainer_of(tmp_path, processor, rows).train()
    assert steps_of(tmp_path) == [2, 4, 6, 8] and not (tmp_path / "incomplete").exists()
    assert checkpoints.last_complete_checkpoint(tmp_path).name == "checkpoint-8"
    os.truncate(tmp_path / "checkpoint-8" / "optimizer.pt", 100)
    (tmp_path / "checkpoint-6" / "trainer_state.json").write_text('{"global_step": 6, "log')
    assert checkpoints.last_complete_checkpoint(tmp_path).name == "checkpoint-4"
    with pytest.raises(ValueError, match=r"optimizer.pt has 100 bytes instead of .*'.*checkpoint-4'"):
        trainer_of(tmp_path, processor, rows).train(resume_from_checkpoint=tmp_path / "checkpoint-8")
    with pytest.raises(ValueError, match="trainer_state.json is missing or cut off"):
        trainer_of(tmp_path, processor, rows).train(resume_from_checkpoint=str(tmp_path / "nowhere"))
    for step in (2, 4):
        (tmp_path / f"checkpoint-{step}" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="none was written to its end .*checkpoint-8: optimizer.pt has 100 bytes"):
        trainer_of(tmp_path, processor, rows).train(resume_from_checkpoint=True)
    # an optimizer that was taken away is no matter, where this checkpoint is asked for
    (tmp_path / "checkpoint-8" / "optimizer.pt").unlink()
    trainer = trainer_of(tmp_path, processor, rows, max_steps=9, save_strategy="no")
    trainer.train(resume_from_checkpoint=tmp_path / "checkpoint-8")
    assert trainer.state.global_step == 9


def test_rotation_keeps_whole_ones(tmp_path, rows, processor):
    """A wreck of more steps is neither kept in the place of a whole checkpoint, nor counted as one."""
    wreck = tmp_path / "checkpoint-900"
    wreck.mkdir()
    (wreck / "model.safetensors").write_bytes(b"half")
    (tmp_path / "incomplete" / "checkpoint-2").mkdir(parents=True)
    (tmp_path / "incomplete" / "checkpoint-2" / "stale.bin").write_bytes(b"of a killed run")
    trainer_of(tmp_path, processor, rows, save_total_limit=1).train()
    assert steps_of(tmp_path) == [8, 900]
    assert checkpoints.last_complete_checkpoint(tmp_path).name == "checkpoint-8"
    assert "stale.bin" not in json.loads((tmp_path / "checkpoint-8" / "files.json").read_text())
    trainer_of(tmp_path, processor, rows, save_total_limit=2, max_steps=14).train(resume_from_checkpoint="auto")
    assert steps_of(tmp_path) == [12, 14, 900]


def test_the_best_checkpoint_is_kept_loaded_and_has_to_be_whole(tmp_path, rows, processor, caplog):
    options = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True, "save_total_limit": 1}
    options |= {"metric_for_best_model": "eval_score", "greater_is_better": True, "eval_dataset": rows}

    def train(folder, scores, damage=None):
        trainer = trainer_of(folder, processor, rows, **options)

        def evaluate(*_, **__):
            metrics = {"eval_score": scores[trainer.state.global_step]}
            trainer.log(metrics)
            if damage and trainer.state.global_step == 8:
                os.truncate(folder / "checkpoint-4" / "model.safetensors", 50)
            return metrics

        trainer.evaluate = evaluate
        trainer.train()
        return trainer

    trainer = train(tmp_path / "a", {2: 1, 4: 5, 6: 2, 8: 3})
    assert trainer.state.best_model_checkpoint == str(tmp_path / "a" / "checkpoint-4")
    assert steps_of(tmp_path / "a") == [4]  # transformers removes the last one here, as the limit says
    best = load_file(tmp_path / "a" / "checkpoint-4" / "model.safetensors")
    assert all(torch.equal(value, trainer.model.state_dict()[name]) for name, value in best.items())
    state = json.loads((tmp_path / "a" / "checkpoint-4" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(tmp_path / "a" / "checkpoint-4")
    with caplog.at_level(logging.ERROR):
        trainer = train(tmp_path / "b", {2: 1, 4: 5, 6: 2, 8: 3}, damage=True)
    assert "is not whole (model.safetensors has 50 bytes" in caplog.text
    last = load_file(checkpoints.last_complete_checkpoint(tmp_path / "b") / "model.safetensors")
    assert all(torch.equal(value, trainer.model.state_dict()[name]) for name, value in last.items())


# --- full disks ---------------------------------------------------------------------------------------------------


class SmallDisk:
    """A file system of its own, of a size that can be changed."""

    def __init__(self, folder: Path):
        self.folder = folder

    def mount(self, size: int, *options: str) -> subprocess.CompletedProcess:
        settings = ",".join([*options, f"size={size}"])
        command = ["mount", "-t", "tmpfs", "-o", settings, "tmpfs", str(self.folder)]
        return subprocess.run(command, capture_output=True, text=True)

    def resize(self, size: int) -> None:
        done = self.mount(size, "remount")
        assert done.returncode == 0, done.stderr


@pytest.fixture
def small_disk(tmp_path):
    if sys.platform != "linux":
        pytest.skip("mounts a tmpfs, which Linux has")
    disk = SmallDisk(tmp_path / "disk")
    disk.folder.mkdir()
    done = disk.mount(64 << 20)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk.folder)], check=True)


def size_of(folder: Path) -> int:
    """Bytes on a disk that counts in pages."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def checkpoint_size(tmp_path_factory, rows, processor) -> int:
    folder = tmp_path_factory.mktemp("size")
    trainer_of(folder, processor, rows, max_steps=2).train()
    return size_of(folder / "checkpoint-2")


@pytest.mark.parametrize("share", [1.05, 1.5, 1.9, 1.97])
def test_a_full_disk_costs_the_checkpoint_and_not_the_run(
    small_disk, rows, processor, checkpoint_size, share, caplog, tmp_path
):
    """There is room for one checkpoint and a share of another: weights, optimizer or the last small files fail."""
    folder = small_disk.folder / "run"
    small_disk.resize(int(checkpoint_size * share))
    grow = tiny.At(5, lambda: small_disk.resize(64 << 20))
    with caplog.at_level(logging.ERROR):
        trainer = trainer_of(folder, processor, rows, callbacks=[grow])
        trainer.train()
    assert trainer.state.global_step == 8
    assert steps_of(folder) == [2, 6, 8] and all(map(checkpoints.is_complete, folder.glob("checkpoint-*")))
    assert "checkpoint checkpoint-4 could not be saved" in caplog.text
    assert "the training goes on, and checkpoint-2 is the last that is whole" in caplog.text
    assert "MB are free there" in caplog.text
    whole = trainer_of(tmp_path / "whole", processor, rows)
    whole.train()
    again = trainer_of(folder, processor, rows)
    again.train(resume_from_checkpoint=folder / "checkpoint-2")
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, trainer.model.state_dict()[name]), name
        assert torch.equal(value, again.model.state_dict()[name]), name


def test_a_limit_on_the_size_of_files_is_like_a_full_disk(tmp_path, rows, processor, caplog):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = [
        tiny.At(3, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, before[1]))),
        tiny.At(5, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before)),
    ]
    try:
        with caplog.at_level(logging.ERROR):
            trainer_of(tmp_path, processor, rows, callbacks=limit).train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert steps_of(tmp_path) == [2, 6, 8]
    assert "checkpoint-4 could not be saved" in caplog.text


def test_the_last_save_to_a_full_disk_says_what_to_do(small_disk, rows, processor, checkpoint_size, tmp_path):
    folder = small_disk.folder / "run"
    small_disk.resize(int(checkpoint_size * 1.3))
    trainer = trainer_of(folder, processor, rows, max_steps=3)
    trainer.train()
    with pytest.raises(OSError, match="the model could not be saved in .*No space left.*MB are free there.*whole"):
        trainer.save_model()
    assert checkpoints.is_complete(folder / "checkpoint-2") and steps_of(folder) == [2]
    trainer.save_model(tmp_path / "elsewhere")
    kept = load_file(tmp_path / "elsewhere" / "model.safetensors")
    assert all(torch.equal(value, trainer.model.state_dict()[name]) for name, value in kept.items())


def test_errors_that_are_not_the_disks_are_raised(tmp_path, rows, processor):
    trainer = trainer_of(tmp_path, processor, rows)
    trainer._save_rng_state = lambda folder: {}["no such key"]
    with pytest.raises(KeyError, match="no such key"):
        trainer.train()
    assert checkpoints.last_complete_checkpoint(tmp_path) is None


def test_the_feature_cache_on_a_full_disk_keeps_what_it_has(small_disk, processor, monkeypatch):
    rows, model = tiny.make_rows(600), tiny.make_model(processor).eval()
    roomy = FeatureCache.build(small_disk.folder / "roomy", model, processor, rows)
    images, texts = (np.array(array) for array in (roomy.images, roomy.texts))
    small = sum((roomy.folder / f"{name}.npy").stat().st_size for name in ("images", "token_ids", "offsets"))
    large = (roomy.folder / "texts.npy").stat().st_size
    small_disk.resize(size_of(small_disk.folder) + small + large // 2)
    with pytest.raises(OSError, match=r"feature cache .* No space left.*MB are needed.*MB are free.*kept"):
        FeatureCache.build(small_disk.folder / "tight", model, processor, rows)
    small_disk.resize(64 << 20)
    forward = model.retriever.vision_model.forward
    model.retriever.vision_model.forward = None  # images are not computed again
    cache = FeatureCache.build(small_disk.folder / "tight", model, processor, rows)
    model.retriever.vision_model.forward = forward
    assert np.array_equal(cache.images, images) and np.array_equal(cache.texts, texts)
    # cut off, and taken away: computed anew
    for spoil in (lambda path: os.truncate(path, 1000), lambda path: path.unlink()):
        for name in ("images.npy", "texts.npy"):
            spoil(cache.folder / name)
        del cache
        cache = FeatureCache.build(small_disk.folder / "tight", model, processor, rows)
        assert np.array_equal(cache.images, images) and np.array_equal(cache.texts, texts)


def test_the_feature_cache_is_written_without_a_reservation_too(tmp_path, processor, monkeypatch):
    """Where a file system cannot reserve space, a disk that is full shows while writing."""

    def refuse(*_):
        raise OSError(errno.EOPNOTSUPP, "not supported")

    rows, model = tiny.make_rows(200), tiny.make_model(processor).eval()
    expected = FeatureCache.build(tmp_path / "a", model, processor, rows, batch_size=8)
    monkeypatch.setattr(feature_cache.os, "posix_fallocate", refuse)
    flushed = []
    flush = feature_cache._HalfArray.flush

    def fill(array):
        flushed.append(array)
        if len(flushed) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(array)

    monkeypatch.setattr(feature_cache._HalfArray, "flush", fill)
    with pytest.raises(OSError, match="No space left on device.*What was computed is kept"):
        FeatureCache.build(tmp_path / "b", model, processor, rows, batch_size=8)
    calls = []
    model.retriever.vision_model.register_forward_pre_hook(lambda *given: calls.append(1))
    cache = FeatureCache.build(tmp_path / "b", model, processor, rows, batch_size=8)
    assert len(calls) == 25 - 8  # eight of 25 batches were there
    assert np.array_equal(cache.images, expected.images) and np.array_equal(cache.texts, expected.texts)


# --- numbers that are none ----------------------------------------------------------------------------------------


def spoil(trainer):
    trainer.model.ccrk.itm_head[0].weight.data[0, 0] = float("nan")


@pytest.mark.parametrize("mini_batch_size", [None, 2])
def test_a_loss_that_is_no_number_stops_with_the_batch(tmp_path, rows, processor, mini_batch_size):
    trainer = trainer_of(tmp_path, processor, rows, mini_batch_size=mini_batch_size)
    trainer.add_callback(tiny.At(3, lambda: spoil(trainer)))
    with pytest.raises(ValueError, match="loss is nan .*'?matching'?.* at step 3") as caught:
        trainer.train()
    assert sum(f"{row['image_id']}," in f"{caught.value}," for row in rows) == 4
    assert steps_of(tmp_path) == [2]
    weights = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    assert all(value.isfinite().all() for value in weights.values())


@pytest.mark.parametrize("options", [{}, {"mini_batch_size": 2}, {"max_grad_norm": 0.0}])
def test_a_gradient_that_is_no_number_stops_before_it_spoils_the_weights(tmp_path, rows, processor, options):
    trainer = trainer_of(tmp_path, processor, rows, **options)
    weight = trainer.model.ccrk.itm_head[0].weight
    trainer.add_callback(tiny.At(2, lambda: weight.register_hook(lambda gradient: gradient * float("inf"))))
    with pytest.raises(ValueError, match="norm of the gradient is (nan|inf) at step 2.*Images of the batch: photo"):
        trainer.train()
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())


# --- two processes ------------------------------------------------------------------------------------------------


def in_two(tmp_path, case: str, folder: Path | None = None, expect: int = 0) -> tuple[list[dict], str]:
    """Runs a case of `troubles.py` in two processes; what each of them wrote, and the output."""
    script = Path(__file__).with_name("troubles.py")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [sys.executable, "-P", *launcher, str(script), case, str(folder or tmp_path / "run"), str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    output = done.stdout + done.stderr
    assert (done.returncode != 0) == bool(expect), output[-4000:]
    return [json.loads((tmp_path / f"{case}-{rank}.json").read_text()) for rank in (0, 1)], output


@pytest.mark.slow
@pytest.mark.parametrize("case", ["nan", "nan-in-pieces", "inf-gradient"])
def test_no_process_waits_for_one_that_has_no_number(tmp_path, case):
    """Only the second process has a loss that is none; both end, and know the whole batch."""
    (first, second), _ = in_two(tmp_path, case, expect=1)
    assert first["error"] == second["error"]
    assert ("norm of the gradient" if case == "inf-gradient" else "loss is nan") in first["error"]
    assert first["error"].count("photo") == 8


@pytest.mark.slow
@pytest.mark.parametrize("case", ["disk-of-one", "disk-of-one-with-best"])
def test_two_processes_agree_that_a_checkpoint_failed(tmp_path, case):
    """The disk is full for one of two processes: both go on, and what they train is the same as without."""
    for rank in (0, 1):
        folder = tmp_path / f"rank{rank}"
        folder.mkdir()
        results, output = in_two(folder, f"{case}-{rank}")
        assert "checkpoint-4 could not be saved" in output
        assert steps_of(folder / "run") == [2, 6, 8]
        assert all(map(checkpoints.is_complete, (folder / "run").glob("checkpoint-*")))
        assert results[0]["weights"] == results[1]["weights"]


@pytest.mark.slow
def test_two_processes_share_a_feature_cache(tmp_path, rows, processor):
    results, _ = in_two(tmp_path, "cache")
    assert results[0]["images"] == results[1]["images"] and results[0]["skipped"] == {"empty": 2}
