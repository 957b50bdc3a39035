"""What the studies add to the package: objectives, noise, figures, a file of results that grows."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from ccrk.evaluation.features import encode
from ccrk.losses_ccrk import one_to_one

STUDIES = Path(__file__).resolve().parents[2] / "examples" / "studies"


@pytest.fixture
def embeds():
    """Five images and their texts in three languages, as unit vectors, image-major."""
    generator = torch.Generator().manual_seed(3)
    images, texts = (torch.randn(n, 8, generator=generator) for n in (5, 15))
    unit = torch.nn.functional.normalize
    return unit(images, dim=1), unit(texts, dim=1), torch.arange(5).repeat_interleave(3), torch.arange(3).repeat(5)


def test_per_language_is_the_mean_of_one_to_one_losses(studies, embeds):
    images, texts, index, languages = embeds
    logits = images @ texts.t() / 0.1
    expected = sum(one_to_one(logits[:, language::3]) for language in range(3)) / 3
    found = studies("learning").per_language(logits, index, languages, torch.arange(5))
    torch.testing.assert_close(found, expected)


def test_pivot_aligns_images_with_english_and_others_with_english(studies, embeds):
    images, texts, index, languages = embeds
    english, german, french = texts[0::3], texts[1::3], texts[2::3]
    expected = one_to_one(images @ english.t() / 0.1) / 2
    expected = expected + (one_to_one(english @ german.t() / 0.1) + one_to_one(english @ french.t() / 0.1)) / 4
    pivot = studies("learning").pivot
    found = pivot(images, texts, 0.1, index, languages, ["en", "de", "fr"], torch.arange(5))
    torch.testing.assert_close(found, expected)
    # with a right English beside it, translations are aligned with that one, and images with the other
    found = pivot(images, texts, 0.1, index, languages, ["en", "de", "en-x-true"], torch.arange(5))
    expected = (one_to_one(images @ english.t() / 0.1) + one_to_one(french @ german.t() / 0.1)) / 2
    torch.testing.assert_close(found, expected)


def test_figures_of_ranks_by_hand(studies):
    ranks = {"en": np.array([0, 3, 12]), "de": np.array([0, 11, 12])}
    found = studies("measure").table_figures(ranks, {tag: [list(range(10))] * 3 for tag in ranks})
    assert found["ir@1"] == pytest.approx(100 / 3) and found["ir@5"] == pytest.approx(50)
    assert found["mrv"] == pytest.approx(4 / 3)  # (0 + 4 + 0) / 3
    assert found["switch@10"] == pytest.approx(100 / 3)
    assert found["looks apart"] == pytest.approx(100 * (0.8**3 - 0.8**11) / 3)
    assert found["pages lost"] == pytest.approx(0.5 / 3)  # half a turn for the second image
    assert found["overlap@10"] == 100


def test_wrong_captions_are_a_share_and_none_stays(studies):
    scenes = studies("scenes")
    settings = scenes.SceneSettings(wrong={"en": 0.4}, true_english=True, varied=0.0)
    drawn = studies("ccrk.trainer.demo").training_scenes(60, 0)
    rows = scenes.SceneRows(drawn, settings, 0)
    told = np.array(rows.told["en"])
    assert (told != np.arange(60)).sum() == 24 and sorted(told) == list(range(60))
    for row in range(60):
        texts = {one["language"]: one["text"] for one in rows[row]["captions"]}
        assert texts["en-x-true"] == scenes.caption(drawn[row], "en")
        assert texts["de"] == scenes.caption(drawn[row], "de")
        assert texts["en"] == scenes.caption(drawn[told[row]], "en")


def test_made_up_languages_say_all_and_differ(studies):
    scenes = studies("scenes")
    drawn = list({scene.key: scene for scene in studies("ccrk.trainer.demo").training_scenes(300, 1)}.values())
    captions = {tag: [scenes.caption(scene, tag) for scene in drawn] for tag in scenes.MADE_UP}
    assert all(len(set(of_tag)) == len(drawn) for of_tag in captions.values())  # no two scenes sound alike
    assert len({of_tag[0] for of_tag in captions.values()}) == 16
    again = [scenes.caption(scene, "art-x-03", random.Random(5)) for scene in drawn]
    assert again == captions["art-x-03"]


def test_the_summary_of_cached_tokens_embeds_as_they_do(studies, tmp_path):
    from PIL import Image

    tiny = _tiny_model()
    model, processor = tiny.make_model(tiny.make_processor(), text_pooling="mean"), tiny.make_processor()
    rows = [
        {"image": Image.new("RGB", (32, 32), (40 * i, 0, 90)), "image_id": str(i), "captions": c["captions"]}
        for i, c in enumerate(tiny.make_rows()[:4])
    ]
    photos = studies("photos")
    folder = photos.FeatureCache.build(tmp_path, model, processor, rows).folder
    whole, summary = photos.StudyCache(folder), photos.StudyCache(folder, whole=False)
    model.eval()
    for row in range(4):
        for place in range(len(rows[row]["captions"])):
            a, b = (
                model.retriever.get_text_features(None, None, text_hidden_states=cache.text_states(row, place)[None])
                for cache in (whole, summary)
            )
            torch.testing.assert_close(a.pooler_output, b.pooler_output, atol=1e-5, rtol=1e-5)
        a, b = (
            model.retriever.get_image_features(None, image_hidden_states=cache.image_states(row)[None])
            for cache in (whole, summary)
        )
        torch.testing.assert_close(a.pooler_output, b.pooler_output)
    exchanged = photos.StudyCache(folder, whole=False, exchanged={(0, 0): (2, 0)})
    torch.testing.assert_close(exchanged.text_states(0, 0), summary.text_states(2, 0))


def _tiny_model():
    import importlib.util

    path = Path(__file__).resolve().parents[1] / "trainer" / "tiny.py"
    spec = importlib.util.spec_from_file_location("tiny_of_studies", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


SMALL = {
    "bed": {"pool": 24, "asked": 4, "hidden_size": 32, "channels": [8, 8, 16, 16]},
    "train": {"max_steps": 2, "per_device_train_batch_size": 8},
}


def test_a_run_gives_a_record_and_the_same_one_again(studies):
    runs = studies("runs")
    settings = runs.merged(SMALL, {"probe": 1, "objective": "per-language"})
    first, second = (runs.train_and_measure("scenes", settings, 3, None) for _ in range(2))
    assert first["figures"] == second["figures"] and first["key"] == second["key"]
    assert [look["step"] for look in first["figures"]["probe"]] == [0, 1, 2]
    plain = runs.train_and_measure("scenes", runs.merged(settings, {"probe": None}), 3, None)
    first["figures"].pop("probe")
    assert plain["figures"] == first["figures"]  # looking changes nothing


def test_a_run_reranks(studies):
    runs = studies("runs")
    settings = runs.merged(SMALL, {"depths": [2, 4], "train": {"matching_weight": 1.0, "matching_images": 4}})
    found = runs.train_and_measure("scenes", settings, 0, None)["figures"]["depths"]
    assert set(found) == {"itm+sim 2", "itm+sim 4", "itm 2", "itm 4"}
    assert found["itm 4"]["cpu ms"] == pytest.approx(2 * found["itm 2"]["cpu ms"])


@pytest.fixture
def photo_folders(studies, shared, tmp_path, monkeypatch):
    """Folders of 40 real photos, of which 12 are the gallery."""
    data = shared / "data" / "flickr8k_multi"
    if not data.is_dir() or not (shared / "weights").is_dir():
        pytest.skip("no photos and towers beside this checkout")
    lines = (data / "train.jsonl").read_text(encoding="utf-8").splitlines()[:40]
    for line in lines:
        copy = tmp_path / "data" / json.loads(line)["image"]
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(data / json.loads(line)["image"], copy)
    (tmp_path / "data" / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")
    photos, runs = studies("photos"), studies("runs")
    monkeypatch.setattr(photos, "GALLERY", 12)
    runs.photo_bed.cache_clear()
    yield runs.Folders(tmp_path / "data", shared / "weights", tmp_path / "work")
    runs.photo_bed.cache_clear()
    photos._summaries.cache_clear()


def test_a_run_on_real_photos(studies, photo_folders):
    runs, photos = studies("runs"), studies("photos")
    settings = {
        "bed": {"whole": True, "asked": 12, "photos": 20, "wrong": {"en": 0.4}},
        "train": {"max_steps": 2, "per_device_train_batch_size": 8, "matching_weight": 1.0, "matching_images": 4},
        "depths": [4],
    }
    first, second = (runs.train_and_measure("photos", settings, 1, photo_folders)["figures"] for _ in range(2))
    for found in (first, second):
        for of_depth in found["depths"].values():
            assert of_depth.pop("cpu ms") > 0
    assert first == second and set(first["depths"]) == {"itm+sim 4", "itm 4"}

    bed, of_bed = runs.photo_bed(photo_folders), photos.PhotoSettings(asked=12)
    model = bed.model(of_bed).eval()
    # features of the cache (bf16) are those of photos and captions that are read and encoded
    cached = bed.features(model, of_bed)
    rows = [bed.rows[row] for row in bed.gallery]
    plain = encode(model, bed.processor, rows, languages=of_bed.languages)
    for one, other in ((cached.image_embeds, plain.image_embeds), (cached.text_embeds, plain.text_embeds)):
        close = one @ other.t()
        assert close.diagonal().min() > 0.99 and close.argmax(1).tolist() == list(range(len(one)))

    taken = [{row["row"] for row in bed.training_rows(photos.PhotoSettings(photos=count), 1)} for count in (10, 20)]
    assert len(taken[0]) == 10 and taken[0] < taken[1] < set(bed.training)
    assert taken[0] != {row["row"] for row in bed.training_rows(photos.PhotoSettings(photos=10), 2)}


def test_results_grow_and_survive_a_cut(studies, tmp_path):
    results = studies("runs").Results(tmp_path / "results.jsonl")
    results.add({"key": "a", "figures": {"mrv": 1 / 3}})
    results.path.write_text(results.path.read_text() + '{"key": "b", "figu')  # killed while writing
    assert set(results.read()) == {"a"}
    results.add({"key": "c", "figures": {}})
    assert set(results.read()) == {"a", "c"} and results.read()["a"]["figures"]["mrv"] == 0.333333


def test_intervals_and_paired_differences(studies):
    read, plan = studies("read"), studies("plan")
    estimate = read.Estimate.of([1.0, 2.0, 3.0])
    assert estimate.mean == 2 and estimate.half == pytest.approx(4.302653 / 3**0.5, rel=1e-6) and not estimate.shown
    part = plan.Part("p", "scenes", {"way": {"a": None, "b": {"train": {"max_steps": 3}}}}, {"way": "a"})
    key_of, records = studies("runs").key_of, {}
    for seed, (a, b) in enumerate([(10, 13), (20, 23.5), (30, 33)]):
        for cell, value in (("a",), a), (("b",), b):
            key = key_of("scenes", part.settings(cell), seed)
            records[key] = {
                "seed": seed,
                "figures": {"ir@1": value},
                "cpu_seconds": {"training": 2 + value % 2},
                "steps": 3,
            }
    reading = read.Reading(part, records)
    apart = reading.difference(("b",), "ir@1")
    assert apart.mean == pytest.approx(3.1667, rel=1e-4) and apart.shown  # though the values themselves vary by 10
    assert not reading.estimate(("b",), "ir@1").shown
    # 3 seconds beside 2, 3.5 beside 2, 3 beside 2: times 1.5, 1.75, 1.5
    assert "| b | +3.2 ± 0.7 | 1.58 ± 0.36 |" in read.table(reading, ["ir@1", "cpu s"])


def test_an_unknown_study_is_told():
    command = [sys.executable, STUDIES / "run.py"]
    asked = subprocess.run([*command, "77", "--dry-run"], capture_output=True, text=True)
    assert asked.returncode == 2 and "there is no study '77'; there are 01-one-to-k" in asked.stderr


WORKERS = """
import multiprocessing, os, sys, time
from concurrent.futures import ProcessPoolExecutor

sys.path.insert(0, sys.argv[1])
import run

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=run._end_with_parent) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        pool.submit(time.sleep, 600).result()
"""


def test_workers_end_when_their_parent_is_killed(tmp_path):
    script = tmp_path / "pool.py"
    script.write_text(WORKERS)
    parent = subprocess.Popen([sys.executable, script, STUDIES], stdout=subprocess.PIPE, text=True)
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    for _ in range(300):
        try:
            if Path(f"/proc/{worker}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return
            os.kill(worker, 0)
        except (ProcessLookupError, FileNotFoundError):
            return
        time.sleep(0.1)
    os.kill(worker, 9)
    pytest.fail("a worker went on for 30 seconds after its parent was killed")


def test_a_folder_that_is_missing_is_told(tmp_path):
    command = [sys.executable, STUDIES / "run.py", "1", "--part", "photos", "--seeds", "99", "--data", tmp_path / "no"]
    asked = subprocess.run(command, capture_output=True, text=True)
    assert asked.returncode == 2 and "there is no folder" in asked.stderr and "--data" in asked.stderr


def test_correlations_over_settings_and_at_equal_recall(studies):
    views = studies("views")
    rng = np.random.default_rng(0)
    third = rng.normal(size=4000)
    one, other = third + rng.normal(size=4000), third + rng.normal(size=4000)
    assert views._spearman(one, other) > 0.4 and abs(views._given(one, other, third)) < 0.06
    runs = [
        {"settings": {"train": {"max_steps": setting}, "probe": seed}, "figures": {"mrv": setting, "ir@1": -setting}}
        for setting in range(6)
        for seed in range(3)
    ]
    assert views._resampled(views._spearman, runs, "mrv", "ir@1", draws=50) == pytest.approx([-1, -1, -1])


def test_languages_are_drawn_for_each_occurrence_of_a_scene(studies):
    learning, tiny = studies("learning"), _tiny_model()
    collator = learning.StudyCollator(tiny.make_processor(), ["en", "de", "fr"], 1)
    captions = [{"language": tag, "text": "a"} for tag in ("en", "de", "fr")]
    rows = [{"image": tiny.make_rows()[0]["image"], "image_id": "same", "captions": captions} for _ in range(40)]
    collator.tags = ["en", "de", "fr"]
    alike = collator(rows)["text_languages"]
    assert len(set(alike.tolist())) == 1  # without a place they are the same row
    apart = collator([{**row, "place": place} for place, row in enumerate(rows)])["text_languages"]
    assert {0, 1, 2} == set(apart.tolist())
