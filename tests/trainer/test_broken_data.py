"""Data that is broken in many ways: the run ends, and each cause is counted exactly once for each thing it befell."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import ccrk_tests_tiny as tiny
import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.utils.data import IterableDataset

from ccrk import CCRkTrainer, CCRkTrainingArguments
from ccrk.data.corpora import read_corpus
from ccrk.data.references import DatasetCell, TarMember
from ccrk.evaluation import fingerprints
from ccrk.trainer.collator_ccrk import CCRkDataCollator
from ccrk.trainer.feature_cache import FeatureCache

sys.modules.setdefault("tiny", tiny)
sys.path.insert(0, str(Path(__file__).parent))
import broken  # noqa: E402

sys.path.pop(0)


def trainer_of(folder, processor, rows, **options):
    more = {name: options.pop(name) for name in ("data_collator",) if name in options}
    defaults = {"per_device_train_batch_size": 4, "num_train_epochs": 1, "save_strategy": "no"}
    args = CCRkTrainingArguments(
        str(folder), report_to="none", use_cpu=True, disable_tqdm=True, **(defaults | options)
    )
    model = tiny.make_model(processor)
    return CCRkTrainer(model=model, args=args, train_dataset=rows, processing_class=processor, **more)


# --- a corpus -----------------------------------------------------------------------------------------------------


def check(results: list[dict], made: Counter, count: int, reading: str, out: Path) -> None:
    """What was counted and what was used, in all processes together, is what the corpus holds."""
    unread = sum(made[kind] for kind in broken.UNREAD)
    lost = sum(number for kind, number in made.items() if kind not in broken.USABLE)
    if reading == "map":
        unread += made["missing file"] + made["folder"]
    used = [identity for result in results for identity in result["used"]]
    assert len(used) == len(set(used)) == count - lost
    assert results[0]["rows"] == count - unread
    assert {result["steps"] for result in results} == {-(-(count - unread) // broken.BATCH)}
    together = Counter(results[0]["reader"]) + Counter(results[0]["all"])
    assert dict(together) == broken.expected(made, checked=reading == "map")
    assert sum((Counter(result["own"]) for result in results), Counter()) == Counter(results[0]["all"])
    assert json.loads((out / "skipped.json").read_text())["counts"] == results[0]["all"]


def one_process(tmp_path, count: int, reading: str, workers: int) -> None:
    corpus = tmp_path / "corpus"
    made = broken.write_corpus(corpus, count)
    assert len(made) == len(broken.KINDS) and sum(made.values()) == count // 20
    result = broken.train(tmp_path / "run", corpus, reading, workers)
    check([result], made, count, reading, tmp_path / "run")


@pytest.mark.parametrize(("reading", "workers"), [("map", 0), ("stream", 2)])
def test_600_rows_of_which_one_in_twenty_is_broken(tmp_path, reading, workers):
    one_process(tmp_path, 600, reading, workers)


@pytest.mark.slow
@pytest.mark.parametrize(("reading", "workers"), [("map", 2), ("stream", 2)])
def test_10_000_rows_of_which_one_in_twenty_is_broken(tmp_path, reading, workers):
    one_process(tmp_path, 10_000, reading, workers)


@pytest.mark.slow
@pytest.mark.parametrize("reading", ["map", "stream"])
def test_10_000_rows_in_two_processes(tmp_path, reading):
    corpus, out = tmp_path / "corpus", tmp_path / "run"
    made = broken.write_corpus(corpus, 10_000)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = [str(Path(broken.__file__)), str(out), str(corpus), reading]
    out.mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-P", *launcher, *script], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    results = [json.loads((out / f"{reading}-{rank}.json").read_text()) for rank in (0, 1)]
    assert min(len(result["used"]) for result in results) > 4500
    check(results, made, 10_000, reading, out)


def test_a_file_that_is_read_strictly_names_the_line(tmp_path):
    corpus = tmp_path / "corpus"
    broken.write_corpus(corpus, 300, parts=1)
    with pytest.raises(ValueError, match=r"part0.jsonl, line 268 is not JSON"):
        read_corpus(corpus / "part0.jsonl", languages=broken.LANGUAGES)


# --- batches that hardly are any ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mini_batch_size", [None, 2])
@pytest.mark.parametrize("good", [0, 1, 2])
def test_batches_of_few_usable_rows(tmp_path, processor, good, mini_batch_size):
    """The first batch in the order of the data holds `good` rows that can be used, the others all of theirs."""
    rows = tiny.make_rows()
    order = CountingOrder(rows)
    for place in range(4 - good):
        order.rows[place]["image"] = b""
    trainer = trainer_of(tmp_path, processor, order, max_steps=3, mini_batch_size=mini_batch_size, logging_steps=1)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    assert dict(trainer.skipped) == {"empty": 4 - good}
    losses = [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 3 and all(np.isfinite(losses)) and (losses[0] == 0) == (good == 0)
    changed = [name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])]
    assert len(changed) > 50


class CountingOrder(IterableDataset):
    """Rows in their order, whoever reads them; a plain torch stream."""

    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


def test_nothing_usable_is_an_error_that_says_why(tmp_path, processor):
    rows = [{**row, "image": b"<html>"} for row in tiny.make_rows()]
    with pytest.raises(ValueError, match="not one row of the data could be used.*\n *12  web page  photo"):
        trainer_of(tmp_path, processor, rows).train()
    many = [{**row, "image_id": str(place)} for place, row in enumerate(rows * 40)]
    trainer = trainer_of(tmp_path, processor, many)
    with pytest.raises(ValueError, match="200  web page"):  # after 50 batches, not after all
        trainer.train()


def test_ids_that_repeat_or_are_missing(tmp_path, processor):
    rows = tiny.make_rows()
    for row in rows[:6]:
        row["image_id"] = "the same"
    for row in rows[6:]:
        row["image_id"] = None
    del rows[7]["image_id"]
    batch = CCRkDataCollator(processor)(rows)
    assert len(set(batch["image_ids"].tolist())) == 7  # without an id each image is one of its own
    trainer = trainer_of(tmp_path, processor, rows, logging_steps=1)
    trainer.train()
    assert not trainer.skipped


def test_one_language_long_captions_and_tiny_images(tmp_path, processor):
    rows = tiny.make_rows()
    for row in rows:
        row["captions"] = [{"language": "en", "text": "red dog " * 500}]
        row["image"] = Image.fromarray(np.zeros((1, 1, 3), dtype=np.uint8))
    rows[3]["image"] = Image.fromarray(np.zeros((1, 900, 3), dtype=np.uint8))
    for augmentation in ("none", "finetune", "pretrain"):
        trainer = trainer_of(tmp_path, processor, rows, augmentation=augmentation, logging_steps=1)
        trainer.train()
        assert not trainer.skipped and trainer.state.global_step == 3


@pytest.mark.parametrize(
    ("captions", "counted", "message"),
    [
        (None, {"image without captions": 1}, "has no caption"),
        ([None], {"record is not of its format": 1, "image without captions": 1}, "no object with language and text"),
        (["a dog"], {"record is not of its format": 1, "image without captions": 1}, "no object with language"),
        ([{"language": "en"}], {"record is not of its format": 1, "image without captions": 1}, "no object with"),
        ([{"language": None, "text": "a"}], {"caption without language": 1, "image without captions": 1}, "language"),
        ([{"language": "en", "text": None}], {"caption empty": 1, "image without captions": 1}, "a caption of image"),
        ([{"language": "en", "text": 3.5}], {"caption empty": 1, "image without captions": 1}, "a caption of image"),
    ],
)
def test_captions_of_the_wrong_form(tmp_path, processor, captions, counted, message):
    rows = tiny.make_rows()
    rows[5]["captions"] = captions
    trainer = trainer_of(tmp_path, processor, rows)
    trainer.train()
    assert dict(trainer.skipped) == counted
    with pytest.raises(ValueError, match=message):
        trainer_of(tmp_path, processor, rows, on_broken="raise").train()


def test_captions_that_are_no_list_are_an_error(tmp_path, processor):
    rows = [{**row, "captions": {"en": "a dog"}} for row in tiny.make_rows()]
    with pytest.raises(ValueError, match="captions of image 'photo.*' are a dict; they should be a list such as"):
        trainer_of(tmp_path, processor, rows).train()


def test_rows_left_out_at_the_end_of_epochs_are_counted(tmp_path, processor):
    trainer = trainer_of(
        tmp_path, processor, tiny.make_rows(10), num_train_epochs=3, dataloader_drop_last=True, save_strategy="epoch"
    )
    trainer.train()
    assert dict(trainer.skipped) == {"last batch too small": 6}
    again = trainer_of(tmp_path, processor, tiny.make_rows(10), num_train_epochs=3, dataloader_drop_last=True)
    again.train(resume_from_checkpoint=tmp_path / "checkpoint-4")
    assert dict(again.skipped) == dict(trainer.skipped)
    assert again.skipped.examples("last batch too small")[:4] == trainer.skipped.examples("last batch too small")[:4]


def test_a_collator_of_ones_own(tmp_path, processor):
    def collate(rows):
        return processor(
            images=[row["image"] for row in rows],
            text=[[caption["text"] for caption in row["captions"]] for row in rows],
            return_tensors="pt",
            padding=True,
        )

    trainer = trainer_of(tmp_path, processor, tiny.make_rows(), data_collator=collate, logging_steps=1, mlm_weight=0.0)
    trainer.train()
    assert trainer.state.global_step == 3
    assert all(float(entry["loss"]) > 0 for entry in trainer.state.log_history if "loss" in entry)

    def without_index(rows):
        return {name: value for name, value in collate(rows).items() if name != "image_index"}

    with pytest.raises(ValueError, match="batch has no 'image_index'.*attention_mask, input_ids, pixel_values"):
        trainer_of(tmp_path, processor, tiny.make_rows(), data_collator=without_index).train()


# --- data sets of `datasets` --------------------------------------------------------------------------------------


def encoded(place: int) -> bytes:
    buffer = io.BytesIO()
    tiny.make_rows(place + 1)[place]["image"].save(buffer, "PNG")
    return buffer.getvalue()


def table(tmp_path, count: int = 12) -> datasets.Dataset:
    """Rows with images as bytes and by path, some of them broken, and another column of broken images."""
    rows = tiny.make_rows(count)
    for place, row in enumerate(rows):
        row["image"] = {"bytes": encoded(place), "path": None}
        row["thumbnail"] = {"bytes": b"broken", "path": None}
    rows[1]["image"] = {"bytes": b"text", "path": None}
    rows[2]["image"] = {"bytes": None, "path": str(tmp_path / "nowhere.jpg")}
    rows[3]["image"] = None
    rows[4]["image"] = {"bytes": encoded(4)[:-300], "path": "cut.png"}
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "image_id": datasets.Value("string"),
            "captions": [{"language": datasets.Value("string"), "text": datasets.Value("string")}],
            "thumbnail": datasets.Image(),
        }
    )
    return datasets.Dataset.from_dict(columns, features=features)


BROKEN_CELLS = {"not an image": 1, "file missing": 1, "nothing given": 1, "truncated": 1}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["map", "iterable", "sharded"])
def test_a_broken_image_column(tmp_path, processor, kind, workers):
    dataset = table(tmp_path)
    if kind != "map":
        dataset = dataset.to_iterable_dataset(num_shards=3 if kind == "sharded" else 1)
    trainer = trainer_of(tmp_path, processor, dataset, max_steps=3, dataloader_num_workers=workers)
    used = tiny.note_used(trainer)
    trainer.train()
    assert sorted(used) == sorted(f"photo{i}" for i in range(12) if i not in (1, 2, 3, 4))
    assert dict(trainer.skipped) == BROKEN_CELLS


def test_a_stream_that_is_split_already_is_refused(tmp_path, processor):
    from datasets.distributed import split_dataset_by_node

    part = split_dataset_by_node(table(tmp_path).to_iterable_dataset(num_shards=2), rank=0, world_size=2)
    with pytest.raises(ValueError, match="split by node already"):
        trainer_of(tmp_path, processor, part, max_steps=2).train()


# --- the feature cache --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["list", "datasets"])
def test_what_is_broken_is_not_trained_on_from_the_cache(tmp_path, processor, kind):
    """The same rows are left out for the same causes, and the same weights come out, with the cache and without."""
    if kind == "list":
        rows = tiny.make_rows()
        for place, image in ((1, b""), (6, str(tmp_path / "nowhere.jpg")), (7, {"bytes": encoded(7), "path": "x"})):
            rows[place]["image"] = image
        rows[8]["captions"][0]["text"] = " "
        rows[9]["captions"] = None
        rows[10]["captions"] = [{"language": "en", "text": None}]
        expected = {"empty": 2, "file missing": 2, "caption empty": 4, "image without captions": 4}
    else:
        rows, expected = table(tmp_path), {cause: 2 * number for cause, number in BROKEN_CELLS.items()}
    trained = []
    for cached in (False, True):
        trainer = trainer_of(
            tmp_path / str(cached), processor, rows, freeze="towers", cache_features=cached, optim="sgd",
            num_train_epochs=2, save_strategy="epoch",
        )  # fmt: skip
        trainer.train()
        assert dict(trainer.skipped) == expected
        trained.append(load_file(tmp_path / str(cached) / "checkpoint-6" / "model.safetensors"))
    for name, value in trained[0].items():
        assert torch.allclose(value, trained[1][name], atol=1e-4, rtol=1e-3), name
    with pytest.raises(
        ValueError, match={"list": "caption of image 'photo8' is empty", "datasets": "image 'photo1':"}[kind]
    ):
        trainer_of(
            tmp_path / "raise", processor, rows, freeze="towers", cache_features=True, on_broken="raise"
        ).train()


def test_a_cache_of_nothing_but_broken_images(tmp_path, processor):
    rows = [{**row, "image": b"<html>"} for row in tiny.make_rows()]
    model = tiny.make_model(processor).eval()
    with pytest.raises(ValueError, match="none of the 12 images of the data set can be read:\n12  web page  photo0"):
        FeatureCache.build(tmp_path, model, processor, rows)
    rows = [{**row, "captions": [{"language": "en", "text": ""}]} for row in tiny.make_rows()]
    with pytest.raises(ValueError, match="none of the 12 captions"):
        FeatureCache.build(tmp_path, model, processor, rows)


def test_whole_batches_of_broken_images_at_either_end(tmp_path, processor):
    rows = tiny.make_rows()
    for place in (0, 1, 2, 3, 9, 10, 11):
        rows[place]["image"] = b""
    model = tiny.make_model(processor).eval()
    cache = FeatureCache.build(tmp_path, model, processor, rows, batch_size=2)
    assert [cache.broken(place) for place in range(12)] == ["empty"] * 4 + [None] * 5 + ["empty"] * 3
    assert not cache.images[:4].any() and all(cache.images[place].any() for place in range(4, 9))
    del model.retriever.vision_model
    model.retriever.vision_model = tiny.make_model(processor).retriever.vision_model.eval()
    calls = []
    model.retriever.vision_model.register_forward_pre_hook(lambda *given: calls.append(1))
    FeatureCache.build(tmp_path, model, processor, rows, batch_size=2)
    assert not calls


def test_the_identity_of_an_image_changes_when_the_image_does(tmp_path):
    identity = fingerprints.image_identity
    photo = tmp_path / "a.png"
    photo.write_bytes(encoded(0))
    start = {"path": identity(str(photo)), "dict": identity({"bytes": None, "path": str(photo)})}
    start["member"] = identity(TarMember(str(photo), 0, 10))
    assert start["path"] == identity(photo) == start["dict"]
    assert start["member"] == identity(TarMember(str(photo), 0, 10)) != identity(TarMember(str(photo), 0, 11))
    assert identity(encoded(0)) == identity({"bytes": encoded(0), "path": "any name"}) != identity(encoded(1))
    assert identity(io.BytesIO(encoded(0))) == identity(encoded(0))
    photo.write_bytes(encoded(1) + b"\0")
    assert identity(str(photo)) != start["path"] and identity(TarMember(str(photo), 0, 10)) != start["member"]
    photo.unlink()
    assert b"FileNotFoundError" in identity(str(photo))
    column = datasets.Dataset.from_dict({"image": [encoded(0), encoded(1)]})
    first, second = (identity(DatasetCell(column, row, "image")) for row in (0, 1))
    assert first == identity(encoded(0)) != second
    assert identity(None) != identity(3) and identity(DatasetCell(column, 7, "image")).startswith(b"unreadable")
