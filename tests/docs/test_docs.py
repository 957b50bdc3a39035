"""The documentation holds: links resolve, code parses and runs, command lines parse, tables name what there is."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib.util
import json
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "examples/README.md")),
    *sorted(ROOT.glob("docs/*.md")),
]
RUN = "<!-- run -->"
FENCE = re.compile(r"(?P<before>[^\n]*)\n```(?P<kind>\w+)\n(?P<body>.*?)\n```", re.DOTALL)


def page_id(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, *kinds: str) -> list[tuple[str, str]]:
    """(line before, body) of every block of these kinds."""
    text = "\n" + page.read_text(encoding="utf-8")
    return [(m["before"].strip(), m["body"]) for m in FENCE.finditer(text) if m["kind"] in kinds]


def prose(page: Path) -> str:
    return re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def rows(page: Path) -> list[list[str]]:
    """Cells of every table row; a bar within backticks does not occur."""
    lines = [line for line in prose(page).splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def load(path: Path):
    spec = importlib.util.spec_from_file_location(f"docs_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- links --------------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_resolve(page: Path):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"\w+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists() and file.is_relative_to(ROOT), f"{target} leads nowhere"
        assert not anchor or anchor in anchors(file), f"{target}: no such heading among {sorted(anchors(file))}"


def test_every_page_is_in_the_index_and_in_the_readme():
    for index in (ROOT / "README.md", ROOT / "docs" / "README.md"):
        targets = {(index.parent / t).resolve() for t in re.findall(r"\]\(([^)#\s]+)", index.read_text())}
        assert set(ROOT.glob("docs/*.md")) - {ROOT / "docs" / "README.md"} <= targets


# --- code ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_code_parses(page: Path):
    for _, body in blocks(page, "python"):
        ast.parse(body)
    for _, body in blocks(page, "json"):
        for line in body.splitlines():
            assert isinstance(json.loads(line), dict)


def test_every_run_mark_stands_above_a_block():
    for page in PAGES:
        marked = [before for before, _ in blocks(page, "python") if before == RUN]
        assert len(marked) == page.read_text(encoding="utf-8").count(RUN)


@pytest.fixture(scope="module")
def tiny():
    return load(ROOT / "tests" / "pipelines" / "tiny.py")


@pytest.fixture
def workplace(tiny, tmp_path: Path, monkeypatch) -> Path:
    """The current folder, with what the pages name: a model, photos, captions."""
    processor = tiny.build_processor()
    tiny.build_model(len(processor.tokenizer)).save_pretrained(tmp_path / "my-model")
    processor.save_pretrained(tmp_path / "my-model")
    (tmp_path / "photos").mkdir()
    lines = []
    for number, photo in enumerate(tiny.build_photos(8)):
        photo.save(tmp_path / "photos" / f"{number}.png")
        captions = {"en": ["a dog in the snow", f"photo {number}"], "de": f"Hund {number}"}
        lines.append(json.dumps({"image": f"photos/{number}.png", "id": str(number), "captions": captions}))
    for name in ("train", "val"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return tmp_path


RUNNING = [page for page in PAGES if RUN in page.read_text(encoding="utf-8")]


@pytest.mark.parametrize("page", RUNNING, ids=page_id)
def test_marked_blocks_run(page: Path, workplace: Path, capsys):
    """In the order of the page and in one namespace, as a reader would."""
    namespace: dict = {"__name__": "__docs__"}
    for number, (before, body) in enumerate(blocks(page, "python")):
        if before == RUN:
            exec(compile(body, f"{page_id(page)}, block {number}", "exec"), namespace)
    assert capsys.readouterr().out


def test_the_saved_folder_of_the_readme_is_complete(tiny, tmp_path: Path):
    from ccrk import CCRkRetrievalPipeline

    processor = tiny.build_processor()
    model = tiny.build_model(len(processor.tokenizer))
    CCRkRetrievalPipeline(model=model, processor=processor, device="cpu").save_pretrained(tmp_path)
    names = {file.name for file in tmp_path.iterdir()}
    assert {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json"} <= names
    assert {"modeling_ccrk.py", "processing_ccrk.py", "ccr_retrieval.py"} <= names


def test_the_example_searches(workplace: Path, capsys):
    example = load(ROOT / "examples" / "search_photos.py")
    words = ["my-model", "photos", "--ask", "en=a dog", "--ask", "de=ein Hund", "--top-k", "3", "--rerank", "4"]
    assert example.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "en: a dog   (3 of 3 also found in en)" and len(lines) == 8
    assert lines[4].startswith("de: ein Hund   (")
    assert example.main(["my-model", "photos"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 6 * 6
    with pytest.raises(SystemExit):
        example.main(["my-model", "photos", "--ask", "a dog"])


# --- commands -----------------------------------------------------------------------------------------------------


def command_lines(page: Path) -> list[list[str]]:
    lines = []
    for _, body in blocks(page, "console", "bash"):
        for line in body.replace("\\\n", " ").splitlines():
            lines.append(shlex.split(line.removeprefix("$ "), comments=True))
    return [line for line in lines if line]


def told_by(name: str) -> list[tuple[Path, list[str]]]:
    return [(page, line[1:]) for page in PAGES for line in command_lines(page) if line[0] == name]


def test_command_lines_of_ccrk_parse(capsys):
    from ccrk.cli.main import COMMANDS, build_parser

    seen = set()
    for page, words in told_by("ccrk"):
        command = next((word for word in words if not word.startswith("-")), None)
        seen.add(command)
        try:
            args = build_parser(command).parse_args(words)
        except SystemExit as end:
            pytest.fail(f"{page_id(page)}: ccrk {shlex.join(words)} ends with {end.code}: {capsys.readouterr().err}")
        assert callable(args.run)
    assert seen == set(COMMANDS), "every command is shown somewhere"


def test_targets_scripts_and_tests_exist():
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for _, words in told_by("make"):
        assert set(words) <= targets
    checked = 0
    for name in ("python", "pytest"):
        for page, words in told_by(name):
            assert (ROOT / words[0]).exists(), f"{page_id(page)}: {words[0]}"
            checked += 1
    assert checked
    for _, words in told_by("pip"):
        extras = re.search(r"\[(.+)\]", words[-1])
        for extra in extras[1].split(",") if extras else ():
            assert f'"{extra}": [' in (ROOT / "setup.py").read_text() or extra == "all"


# --- tables -------------------------------------------------------------------------------------------------------


def defaults_on(page: Path) -> dict[str, str]:
    """Name -> default of rows of the form | `name` | `default` | ..."""
    found = {}
    for cells in rows(page):
        if len(cells) >= 3 and re.fullmatch(r"`\w+`", cells[0]) and re.fullmatch(r"`[^`]+`", cells[1]):
            found[cells[0].strip("`")] = cells[1].strip("`")
    return found


def plain_default(field: dataclasses.Field):
    return field.default if field.default is not dataclasses.MISSING else field.default_factory()


def test_every_field_of_the_configuration_has_its_default():
    from ccrk import CCRkConfig, CCRkVisionConfig

    told = defaults_on(ROOT / "docs" / "model.md")
    for config_class in (CCRkConfig, CCRkVisionConfig):
        fields = {field.name: field for field in dataclasses.fields(config_class)}
        for name in config_class.__annotations__:
            assert name in told, f"docs/model.md lacks the field {name}"
            assert ast.literal_eval(told[name]) == plain_default(fields[name]), name


def test_every_training_argument_has_its_default():
    from ccrk import CCRkTrainingArguments

    told = defaults_on(ROOT / "docs" / "training.md")
    fields = {field.name: field for field in dataclasses.fields(CCRkTrainingArguments)}
    for name in CCRkTrainingArguments.__annotations__:
        assert name in told, f"docs/training.md lacks the argument {name}"
        assert ast.literal_eval(told[name]) == plain_default(fields[name]), name


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("train", "training"),
        ("evaluate", "evaluation"),
        ("index", "galleries"),
        ("search", "search"),
        ("serve", "serving"),
        ("convert", "converting"),
    ],
)
def test_every_option_is_told(command: str, name: str):
    parser = argparse.ArgumentParser()
    importlib.import_module(f"ccrk.cli.{command}").add_arguments(parser)
    told = set(re.findall(r"--[a-z0-9-]+", (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")))
    assert {o for action in parser._actions for o in action.option_strings if o.startswith("--")} - {"--help"} <= told


def test_cleaned_captions():
    from ccrk.processing_ccrk import clean_caption

    table = [cells for cells in rows(ROOT / "docs" / "preprocessing.md") if len(cells) == 2 and cells[1][0] == "`"]
    assert len(table) >= 8
    for raw, cleaned in table:
        assert clean_caption(raw.strip("`")) == cleaned.strip("`")


def test_galleries_of_the_demo():
    from ccrk.data.scenes import count_near_duplicates
    from ccrk.trainer.demo import DemoPlan, galleries

    text = (ROOT / "docs" / "demo.md").read_text(encoding="utf-8")
    plan = DemoPlan()
    for gallery in galleries(plan):
        near = count_near_duplicates(gallery.scenes)
        assert f"| {len(gallery)} | {gallery.described} | {near} |" in text
    sizes = (f"{plan.steps} steps of {plan.batch_size} scenes", f"drawn at {plan.image_size} px")
    for words in sizes:
        assert words in text, f"docs/demo.md does not say '{words}'"


def test_the_table_of_bad_input_has_every_case():
    cases = load(ROOT / "tests" / "contract" / "test_bad_input.py").CASES
    told = [cells[0] for cells in rows(ROOT / "docs" / "bad-input.md")][2:]
    missing = "run the command of docs/bad-input.md again"
    assert told == list(cases), missing
    for cells in rows(ROOT / "docs" / "bad-input.md")[2:]:
        _, words = cases[cells[0]]
        assert cells[1].startswith("accepted") == (words is None), f"{cells[0]}: {missing}"


def test_pages_name_no_machine_path():
    for page in PAGES:
        found = re.search(r"(?<![\w.])/(work|root|tmp|home)/", page.read_text(encoding="utf-8"))
        assert found is None, f"{page_id(page)}: {found}"
