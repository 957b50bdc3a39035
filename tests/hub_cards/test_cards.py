"""A card shows what its results files hold and nothing else, and a check finds whatever was changed by hand."""

from __future__ import annotations

import hashlib
import json
import re
import sys

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries

from ccrk.hub_cards.cards import CARD, SOURCES, check_card, check_foreign, dataset_card, model_card, read_runs
from ccrk.hub_cards.data_card import DataCardOptions
from ccrk.hub_cards.figures import CardError, look_up, render, typed_figures
from ccrk.hub_cards.model_card import CardOptions

# --- what is on it --------------------------------------------------------------------------------------------------


def test_metadata_is_what_the_hub_reads(card):
    data = ModelCard(card.files[CARD].decode()).data
    assert data.language == ["de", "en", "pt"] and data.license == "mit" and data.library_name == "transformers"
    assert data.base_model == ["timm/resnet10t.c3_in1k"]  # a folder of somebody's machine is no model of the Hub
    values = {(one.dataset_name, one.metric_name): one.metric_value for one in data.eval_results}
    assert len(values) == 6 + 1 + 3
    result = card.document("results/evaluation.json")["results"][0]
    assert values["val.jsonl", "ir@1, mean of languages, %"] == pytest.approx(100 * result["means"]["ir@1"], abs=0.05)
    assert values["val.jsonl", "MRV, lower is better"] == pytest.approx(result["mrv"]["mrv"], abs=0.005)


def test_every_figure_stands_where_it_says_and_comes_from_its_source(card):
    lines = card.files[CARD].decode().splitlines()
    sources = json.loads(card.files[SOURCES])
    assert len(sources["figures"]) > 60
    for figure in sources["figures"]:
        content = card.files[figure["file"]]
        assert sources["results"][figure["file"]] == hashlib.sha256(content).hexdigest()
        assert figure["text"] == render(look_up(json.loads(content), figure["pointer"]), figure["form"])
        if figure["line"]:
            assert lines[figure["line"] - 1].startswith(figure["text"], figure["column"] - 1)


def test_no_cell_of_a_figure_table_is_without_a_source(card):
    """Independent of how the card is made: all numbers in tables lie within figures."""
    figures = json.loads(card.files[SOURCES])["figures"]
    spans = {}
    for figure in figures:
        start = figure["column"] - 1
        spans.setdefault(figure["line"], []).append((start, start + len(figure["text"])))
    text = card.files[CARD].decode()
    header = re.compile(r"(ir@|tr@|95 %)\S*")
    checked = 0
    for number, line in enumerate(text.splitlines(), 1):
        if not line.startswith("| ") or header.search(line):
            continue
        for match in re.finditer(r"\d+(?:[.,]\d+)*", line):
            assert any(a <= match.start() and match.end() <= b for a, b in spans.get(number, [])), (number, match[0])
            checked += 1
    assert checked > 40


def test_the_body_says_what_was_measured_and_how(card, made):
    text = card.files[CARD].decode()
    mrv = made.make_result()["mrv"]["mrv"]
    assert f"**MRV {mrv:.2f}** (95 % interval" in text
    assert (
        "over de, en, pt-BR; 40 photos with ranks in two languages or more, 0 left out; gallery of 40 photos" in text
    )
    assert (
        "| data | 1,200 photos; captions: de 1,200, en 2,400 |" in text
        and "| left out | 3 × image file missing |" in text
    )
    assert "The training took 66 s, 9 s of processor time, and 1,208 MiB of memory at its highest" in text
    assert "Carbon: not measured." in text and 'pipeline("ccr-retrieval", model="org/scenes"' in text
    assert "Left out: 2 photos that could not be read." in text


def test_nothing_of_the_data_or_the_machine_is_published(card, made):
    everything = b"".join(content for name, content in card.files.items() if not name.endswith(".png")).decode()
    for private in (made.CAPTION, made.PHOTO, made.FOLDER):
        assert private not in everything
    assert "val.jsonl" in everything and "my-tower" in everything  # names alone


def test_a_card_without_an_evaluation_says_so():
    text = model_card(CardOptions("bare"), {}).files[CARD].decode()
    assert "Nothing was measured" in text and "How the model was trained is not recorded" in text
    assert ModelCard(text).data.eval_results is None


def test_one_language_has_no_mrv(made, tmp_path):
    runs = made.write_runs(tmp_path, made.make_result(languages=("tr",)))
    text = model_card(CardOptions("one"), read_runs(runs)).files[CARD].decode()
    assert "Asked in Turkish, the model finds" in text
    assert "MRV compares languages, and there is none here: only one language was measured." in text


def test_benchmarks_with_a_page_on_the_hub_get_an_entry(made, tmp_path):
    runs = made.write_runs(tmp_path, {**made.make_result(), "benchmark": "xflickrco"})
    options = CardOptions("m", leaderboards={"xflickrco": {"dataset": "org/xflickrco", "task": "retrieval"}})
    made_card = model_card(options, read_runs(runs))
    (entry,) = parse_eval_result_entries(yaml.safe_load(made_card.files[".eval_results/xflickrco.yaml"]))
    value = made_card.document("results/evaluation.json")["results"][0]["means"]["ir@1"]
    assert (entry.dataset_id, entry.task_id) == ("org/xflickrco", "retrieval") and entry.value == round(100 * value, 2)


def test_the_same_runs_give_the_same_card(made, tmp_path, card):
    again = model_card(CardOptions("scenes", "org/scenes", license="mit"), read_runs(made.write_runs(tmp_path)))
    assert again.files == card.files


def test_files_of_trainings_and_of_the_demo_are_read(made, tmp_path):
    result = {name: value for name, value in made.make_result().items() if name not in ("items", "settings")}
    (tmp_path / "evaluation.json").write_text(
        json.dumps({"cost": {}, "arguments": {"eval": ["/x/val.csv"]}, **result})
    )
    read = read_runs([tmp_path / "evaluation.json"])["results/evaluation.json"]["results"]
    assert read[0]["settings"]["data"] == ["val.csv"] and read[0]["mrv"]["mrv"] == pytest.approx(result["mrv"]["mrv"])
    (tmp_path / "demo.json").write_text(json.dumps({"hard": {"gallery": 5, **result}, "cpu_seconds": 3}))
    assert [part["part"] for part in read_runs([tmp_path / "demo.json"])["results/demo.json"]["results"]] == ["data"]


def test_emissions_come_from_codecarbons_file(tmp_path):
    (tmp_path / "emissions.csv").write_text(
        "timestamp,project_name,run_id,duration,emissions,energy_consumed,country_name,longitude\n"
        "2026-01-01,secret project,17,60,0.0123,0.05,Germany,8.1\n"
    )
    made_card = model_card(CardOptions("m"), read_runs([tmp_path / "emissions.csv"]))
    text = made_card.files[CARD].decode()
    assert "Carbon: 0.0123 kg CO₂-equivalent, by codecarbon; 0.05 kWh in Germany." in text
    assert ModelCard(text).data.co2_eq_emissions == {"emissions": 12.3, "source": "codecarbon"}
    assert b"secret" not in made_card.files["results/emissions.json"]
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(CardError, match="is no emissions.csv of codecarbon"):
        read_runs([tmp_path / "other.csv"])


# --- text of people -------------------------------------------------------------------------------------------------


def test_texts_of_people_take_figures_from_sources(made, tmp_path):
    runs = made.write_runs(tmp_path)
    text = 'Found: {{ figure("evaluation.json", "/results/0/recall/mean", "percent") }} %. Since 2024, 3 languages.'
    made_card = model_card(CardOptions("m", texts={"limits": text}), read_runs(runs))
    mean = made_card.document("results/evaluation.json")["results"][0]["recall"]["mean"]
    assert f"Found: {100 * mean:.1f} %. Since 2024, 3 languages." in made_card.files[CARD].decode()
    made_card.write(tmp_path)
    check_card(tmp_path)


@pytest.mark.parametrize(
    ("text", "figure"),
    [
        ("It finds 87.3 of 100.", "87.3"),
        ("fine\n\nIt finds 87 % of them.", "87 %"),
        ("It finds 87 percent.", "87 percent"),
        ("| de | 12 |", "12"),
        ("better by 3 points", "3 points"),
        ("in `87.3` of the cases", "87.3"),
    ],
)
def test_texts_of_people_may_not_state_figures(text, figure):
    with pytest.raises(CardError, match=f"the figure '{re.escape(figure)}' has no source"):
        model_card(CardOptions("m", texts={"intended_use": text}), {})


@pytest.mark.parametrize(
    "text",
    [
        "Since 2024, in 12 languages.",
        "With `torch 2.14.1`.",
        "See [here](https://a.org/v1.2/x).",
        "```\n1.5\n```",
        "Apache-2.0",
    ],
)
def test_what_is_no_figure(text):
    assert typed_figures(text) == []


def test_placeholders_without_a_source_are_refused():
    for text, message in (
        ('{{ figure("evaluation.json", "/results/0/recall", "percent") }}', "there is no results file"),
        ("{{ figure(1) }}", "is not of the form"),
    ):
        with pytest.raises(CardError, match=message):
            model_card(CardOptions("m", texts={"limits": text}), {})
    with pytest.raises(CardError, match="a card has no text 'limit'"):
        CardOptions("m", texts={"limit": ""})


def test_a_text_cannot_run_code_in_the_template():
    text = model_card(CardOptions("m", texts={"what": "{{ ''.__class__ }} {% for x in y %}"}), {}).files[CARD].decode()
    assert "{{ ''.__class__ }} {% for x in y %}" in text


# --- checks ---------------------------------------------------------------------------------------------------------


def test_an_untouched_card_passes(folder):
    assert check_card(folder).files[CARD] == (folder / CARD).read_bytes()


def edit(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_a_figure_that_was_changed_by_hand_is_named_with_its_line(folder):
    lines = (folder / CARD).read_text().splitlines()
    number = next(n for n, line in enumerate(lines) if line.startswith("| German"))
    edit(folder / CARD, lines[number], re.sub(r"\| [\d.]+ \|", "| 99.9 |", lines[number], count=1))
    with pytest.raises(
        CardError, match=rf"README\.md, line {number + 1}: the figure '99\.9' has no source; .*/de/ir@1"
    ):
        check_card(folder)


def test_the_list_of_sources_is_checked(folder):
    sources = json.loads((folder / SOURCES).read_text())
    sources["figures"][-1]["pointer"] = "/results/0/elsewhere"
    (folder / SOURCES).write_text(json.dumps(sources))
    with pytest.raises(CardError, match="elsewhere.* is not on the card as told there"):
        check_card(folder)


def test_a_figure_that_was_added_is_refused(folder):
    edit(folder / CARD, "## Intended use\n", "## Intended use\n\nIt beats all others by 12.5 points.\n")
    with pytest.raises(CardError, match="the figure '12.5' has no source"):
        check_card(folder)
    edit(folder / CARD, "\nIt beats all others by 12.5 points.\n", "")
    check_card(folder)


def test_a_figure_of_the_metadata_is_checked(folder):
    edit(folder / CARD, "    - type: mrv\n      value: ", "    - type: mrv\n      value: 0")
    with pytest.raises(CardError, match="README.md, line"):
        check_card(folder)


def test_results_plots_and_weights_that_changed_are_refused(folder):
    kept = (folder / "results/evaluation.json").read_bytes()
    edit(folder / "results/evaluation.json", '"mean": 0.', '"mean": 0.9')
    with pytest.raises(CardError, match="evaluation.json' was changed after the card was made"):
        check_card(folder)
    (folder / "results/evaluation.json").write_bytes(kept)
    plot = next((folder / "assets").glob("*.png"))
    drawn = plot.read_bytes()
    plot.write_bytes(drawn + b"\0")
    with pytest.raises(CardError, match="draw it anew"):
        check_card(folder)
    plot.write_bytes(drawn)
    (folder / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(CardError, match="the card is of other weights: 'model.safetensors'"):
        check_card(folder)


def test_an_evaluation_of_other_weights_makes_no_card(made, tmp_path, tmp_path_factory):
    weights = {"model.safetensors": hashlib.sha256(b"weights").hexdigest()}
    result = made.make_result()
    result["settings"]["weights"] = weights
    documents = read_runs(made.write_runs(tmp_path, result))
    model_card(CardOptions("m"), documents, weights, {})
    with pytest.raises(CardError, match="results/evaluation.json' is of other weights"):
        model_card(CardOptions("m"), documents, {"model.safetensors": "0"}, {})
    model_card(
        CardOptions("m", adapter="AutoModel"), documents, {"adapter_model.safetensors": "0"}, {}
    )  # measured merged


def test_results_and_checksum_changed_together_are_refused(folder):
    """Whoever changes a result and its checksum still has to change every figure of it."""
    results, sources = folder / "results/evaluation.json", json.loads((folder / SOURCES).read_text())
    content = json.loads(results.read_text())
    content["results"][0]["mrv"]["mrv"] = 0.01
    results.write_text(json.dumps(content))
    sources["results"]["results/evaluation.json"] = hashlib.sha256(results.read_bytes()).hexdigest()
    (folder / SOURCES).write_text(json.dumps(sources))
    with pytest.raises(CardError, match=r"README\.md, line \d+: the figure '[\d.]+' has no source"):
        check_card(folder)


@pytest.mark.parametrize(
    "name", ["../secret.json", "results/../../secret.json", "results/a/b.json", "evaluation.json"]
)
def test_a_card_from_elsewhere_reads_no_other_files(folder, name):
    (folder.parent / "secret.json").write_text("{}")
    sources = json.loads((folder / SOURCES).read_text())
    sources["results"] = {name: ""}
    (folder / SOURCES).write_text(json.dumps(sources))
    with pytest.raises(CardError, match="is no file of a card"):
        check_card(folder)


@pytest.mark.parametrize(
    ("part", "value"),
    [("options", {"texts": []}), ("options", {"nme": 1}), ("results", []), ("figures", None), ("card", "x")],
)
def test_broken_sources_are_an_error_in_words(folder, part, value):
    sources = json.loads((folder / SOURCES).read_text())
    sources[part] = {**sources[part], **value} if isinstance(value, dict) else value
    (folder / SOURCES).write_text(json.dumps(sources))
    with pytest.raises(CardError):
        check_card(folder)


def test_results_that_lack_what_a_card_shows(folder):
    results, sources = folder / "results/evaluation.json", json.loads((folder / SOURCES).read_text())
    results.write_text(json.dumps({"kind": "evaluation", "results": [{"settings": {}}]}))
    sources["results"]["results/evaluation.json"] = hashlib.sha256(results.read_bytes()).hexdigest()
    (folder / SOURCES).write_text(json.dumps(sources))
    with pytest.raises(CardError, match="do not hold what a card is made of"):
        check_card(folder)


def test_a_folder_of_results_elsewhere_is_not_read(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other") / "results"
    (folder / "results").rename(other)
    (folder / "results").symlink_to(other)
    with pytest.raises(CardError, match="is no file of a card"):
        check_card(folder)


def test_what_is_missing_is_named(folder, tmp_path_factory):
    (folder / "results/training.json").unlink()
    with pytest.raises(CardError, match="training.json', which the card is made of, cannot be read"):
        check_card(folder)
    with pytest.raises(CardError, match="has no card_sources.json beside it"):
        check_card(tmp_path_factory.mktemp("empty"))


def test_writing_takes_away_what_an_earlier_card_had(folder):
    assert (folder / "results/evaluation.json").exists()
    model_card(CardOptions("scenes"), {}).write(folder)
    assert not (folder / "results/evaluation.json").exists() and not list((folder / "assets").iterdir())
    check_card(folder)


def test_cards_written_by_hand_show_no_figures():
    check_foreign("---\nlicense: mit\n---\n\n# Mine\n\nFinds photos, since 2024.\n")
    with pytest.raises(CardError, match="line 5: the figure '98.1' has no source"):
        check_foreign("---\nlicense: mit\n---\n\nRecall 98.1\n")
    with pytest.raises(CardError, match="model-index"):
        check_foreign("---\nmodel-index: []\n---\n\n# Mine\n")


# --- data sets ------------------------------------------------------------------------------------------------------


FACTS = {
    "rows": 1500,
    "captions": {"de": 1500, "en": 3000},
    "skipped": {"image file missing": 3},
    "splits": {"train": 1500},
}


def test_the_card_of_a_data_set(tmp_path):
    options = DataCardOptions("My photos", "org/photos", license="cc-by-4.0", sources=["taken by <us>"])
    made_card = dataset_card(options, FACTS)
    text = made_card.files[CARD].decode()
    assert "1,500 photos with 4,500 captions, 3.0 for each photo on average." in text
    assert "| English (en) | 3,000 |" in text and "| image file missing | 3 |" in text and "&lt;us&gt;" in text
    data = yaml.safe_load(text.split("---")[1])
    assert data["size_categories"] == "1K<n<10K" and data["language"] == ["de", "en"]
    made_card.write(tmp_path)
    check_card(tmp_path)
    edit(tmp_path / CARD, "3,000", "9,000")
    with pytest.raises(CardError, match="'9,000' has no source; results/data.json#/captions/en is '3,000'"):
        check_card(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": -1}, "the number of rows is -1"),
        ({"captions": {"de": 1.5}}, "captions of 'de' is 1.5"),
        ({"captions": {}}, "the data set is empty"),
        ({"size": 3}, "'size' is nothing that a card of a data set tells"),
    ],
)
def test_facts_of_a_data_set_are_counts(change, message):
    with pytest.raises(CardError, match=message):
        dataset_card(DataCardOptions("d"), {**FACTS, **change})


# --- without what is optional ---------------------------------------------------------------------------------------


def test_without_matplotlib_and_scipy_there_are_the_figures_alone(made, tmp_path, monkeypatch):
    for name in ("matplotlib", "scipy", "scipy.stats"):
        monkeypatch.setitem(sys.modules, name, None)  # `import` of it raises ModuleNotFoundError
    made_card = model_card(CardOptions("m"), read_runs(made.write_runs(tmp_path)))
    text = made_card.files[CARD].decode()
    assert "**MRV " in text and "95 %" not in text and not [name for name in made_card.files if "assets" in name]
    made_card.write(tmp_path)
    check_card(tmp_path)
