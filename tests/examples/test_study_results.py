"""The studies that are in the repository: configurations, results, pages and plots fit one another."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMES = sorted(path.parent.name for path in ROOT.glob("examples/studies/*/study.yaml"))
PAGES = ROOT / "docs" / "studies"


def test_there_are_ten():
    assert len(NAMES) == 10


@pytest.mark.parametrize("name", NAMES)
def test_every_run_that_a_study_names_has_a_result(studies, name):
    study = studies("plan").load_study(name)
    records = studies("runs").Results(study.folder / "results.jsonl").read()
    for part in study.parts:
        assert len(part.seeds) >= 3
        for cell in part.cells():
            for seed in part.seeds:
                key = studies("runs").key_of(part.bed, part.settings(cell), seed)
                assert key in records, f"{part.name}: {cell}, seed {seed} has no result"
                record = records[key]
                assert record["seed"] == seed and record["bed"] == part.bed
                assert record["cpu_seconds"]["training"] > 0 and {"torch", "ccrk"} <= record["versions"].keys()


@pytest.mark.parametrize("name", NAMES)
def test_tables_of_a_page_are_those_of_the_results(studies, name):
    study, read = studies("plan").load_study(name), studies("read")
    texts, _ = studies("views").VIEWS[study.view](study)
    page = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    marks = re.findall(r"<!-- table (.+?) -->", page)
    assert marks and set(marks) <= texts.keys()
    for mark in marks:
        assert f"<!-- table {mark} -->\n\n{texts[mark]}\n\n<!-- end -->" in page, f"write it: run.py {name} --read"
    assert read.DOCS == PAGES


@pytest.mark.parametrize("name", NAMES)
def test_a_page_says_what_a_study_does_not_show(name):
    page = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    for heading in ("## Set-up", "## Result", "## What it does not show"):
        assert heading in page
    assert f"../../examples/studies/{name}/plot.png" in page
    assert (ROOT / "examples" / "studies" / name / "plot.png").stat().st_size > 10_000
    assert re.search(rf"examples/studies/run\.py {int(name.split('-')[0])}\b", page)


def test_studies_stay_within_their_time():
    """At most 3 hours of processor time for each study and 15 for all; what studies share counts for each."""
    total: dict[str, float] = {}
    for name in NAMES:
        path = ROOT / "examples" / "studies" / name / "results.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        own = {record["key"]: record["cpu_seconds"]["all"] for record in lines}
        assert sum(own.values()) < 3 * 3600
        total |= own
    assert sum(total.values()) < 15 * 3600


def test_every_study_is_pointed_to_by_what_to_choose():
    index = (PAGES / "README.md").read_text(encoding="utf-8")
    table = index.split("## What to choose")[1]
    assert {f"{name}.md" for name in NAMES} <= set(re.findall(r"\]\(([^)#]+)\)", table))
