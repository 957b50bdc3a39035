"""How the results of a study are told: tables for its page, and what is drawn."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import plots
from plan import HERE, Study, study_names
from read import Estimate, Reading, heading, markdown, table, told
from runs import Results, resolved
from scipy import stats

Told = tuple[dict[str, str], Callable[[Path], None]]


def readings(study: Study) -> list[Reading]:
    """The results of every part."""
    records = Results(study.folder / "results.jsonl").read()
    return [Reading(part, records) for part in study.parts]


def grid(study: Study) -> Told:
    """A table for each part, and its first figures drawn."""
    found = readings(study)
    return {one.part.name: table(one, one.part.columns) for one in found}, lambda path: plots.grid(study, found, path)


def _told(estimate: Estimate | None, decimals: int, sign: bool = False) -> str:
    """An estimate or, with a sign, a difference, in brackets where it is not shown."""
    if sign or estimate is None:
        return told(estimate, decimals)
    return estimate.text(decimals)


def apart(reading: Reading, cell: tuple[str, ...], name: str, other: str) -> Estimate | None:
    """The difference between two figures of the same runs, paired by seed."""
    first, second = reading.values(cell, other), reading.values(cell, name)
    both = [second[seed] - first[seed] for seed in sorted(first.keys() & second.keys())]
    return Estimate.of(both) if both else None


def depths(study: Study) -> Told:
    """Figures by the number of candidates that the fusion encoder re-scores."""
    texts, found = {}, readings(study)
    for one in found:
        (cell,) = one.runs
        of_depths = sorted(one.part.common["depths"])
        rows = [
            ["0", *(_told(one.estimate(cell, name), heading(name)[1]) for name in ("ir@1", "ir@10", "mrv")), *[""] * 4]
        ]
        for score in ("itm+sim", "itm"):
            for depth in of_depths:
                path = f"depths/{score} {depth}"
                row = [f"{depth}, {score}"]
                row += [
                    _told(one.estimate(cell, f"{path}/{name}"), heading(name)[1]) for name in ("ir@1", "ir@10", "mrv")
                ]
                row += [
                    _told(apart(one, cell, f"{path}/{n}", n), heading(n)[1], True) for n in ("ir@1", "ir@10", "mrv")
                ]
                rows.append([*row, _told(one.estimate(cell, f"{path}/cpu ms"), 0)])
        heads = ["candidates, score", "R@1", "R@10", "MRV", "R@1 less that of 0", "R@10", "MRV", "CPU-ms a query"]
        texts[one.part.name] = markdown(heads, rows)
    return texts, lambda path: plots.depths(study, found, path)


def _lost(reading: Reading, cell: tuple[str, ...], name: str) -> dict[int, float]:
    """Seed -> percent of a figure that is lost beside the cell without noise."""
    first, second = reading.values(reading.part.baseline(cell), name), reading.values(cell, name)
    return {
        seed: 100 * (1 - second[seed] / first[seed]) for seed in sorted(first.keys() & second.keys()) if first[seed]
    }


def noise(study: Study) -> Told:
    """The usual table, and what share of their recall other languages lose, also beside another way."""
    texts, found = {}, readings(study)
    for one in found:
        texts[one.part.name] = table(one, one.part.columns)
        other = next(way for way in ("direct", "one-to-one") if (way, "0 %") in one.runs)
        rows = []
        for cell in one.runs:
            if one.part.baseline(cell) is None:
                continue
            row = list(cell)
            for name in ("ir@1 en", "of kept/ir@1", "of kept/ir@10"):
                lost = _lost(one, cell, name)
                row.append(told(Estimate.of(list(lost.values())) if lost else None, 1))
            theirs = _lost(one, (other, cell[1]), "of kept/ir@10")
            both = [lost[seed] - theirs[seed] for seed in sorted(lost.keys() & theirs.keys())]
            rows.append([*row, told(Estimate.of(both), 1) if both and cell[0] != other else ""])
        lost_of = "of de, fr, cs lost, %"
        heads = ["English R@1 lost, %", f"R@1 {lost_of}", f"R@10 {lost_of}", f"the same less that of {other}"]
        texts[f"{one.part.name}, lost"] = markdown([*one.part.axes, *heads], rows)
    return texts, lambda path: plots.noise(study, found, path)


GEOMETRY = ("distance", "distance variance", "centroid distance", "spread", "cosine projections", "cosine towers")


def looks(reading: Reading, cell: tuple[str, ...], name: str) -> np.ndarray | None:
    """(seeds, looks) of a figure of the probe."""
    rows = [[look[name] for look in r["figures"]["probe"] if name in look] for r in reading.runs[cell].values()]
    return np.array(rows) if rows and rows[0] else None


def geometry(study: Study) -> Told:
    """The last look, and cosines of gradients as means over the training; differences from one-to-one."""
    texts, found = {}, readings(study)
    for one in found:
        rows = []
        for cell in one.runs:
            base, row = one.part.baseline(cell), list(cell)
            for name in GEOMETRY:
                values = looks(one, cell, name)
                if values is None:
                    row.append("")
                    continue
                # gradients: over the training without its first look, when nothing was learned
                of_seed = values[:, 1:].mean(1) if name.startswith("cosine") else values[:, -1]
                text = Estimate.of(list(of_seed)).text(4 if "variance" in name else 3)
                other = None if base is None else looks(one, base, name)
                if other is not None and len(other) == len(values):
                    of_other = other[:, 1:].mean(1) if name.startswith("cosine") else other[:, -1]
                    difference = Estimate.of(list(of_seed - of_other))
                    text += f"; {_told(difference, 4 if 'variance' in name else 3, True)}"
                row.append(text)
            rows.append(row)
        texts[one.part.name] = markdown([*one.part.axes, *GEOMETRY], rows)
    return texts, lambda path: plots.geometry(study, found, path)


def comparable(bed: str) -> list[dict[str, Any]]:
    """Every training of any study on a bed that was measured in the four languages and on the whole gallery."""
    found, usual = {}, resolved(bed, {})["bed"]
    for name in study_names():
        for record in Results(HERE / name / "results.jsonl").read().values():
            if record["bed"] != bed:
                continue
            of_bed = record["settings"]["bed"]
            if list(of_bed["languages"]) == list(usual["languages"]) and of_bed["asked"] == usual["asked"]:
                found[_training(record), record["seed"]] = record  # what was looked at beside makes no other training
    return list(found.values())


def _training(record: dict[str, Any]) -> str:
    """The settings of a training, without what was only looked at."""
    looked_at = ("kept", "probe", "depths")
    return json.dumps(
        {key: value for key, value in record["settings"].items() if key not in looked_at}, sort_keys=True
    )


SEEN = ("switch@10", "looks apart", "pages lost", "overlap@10")


def _spearman(one: np.ndarray, other: np.ndarray) -> float:
    return float(stats.spearmanr(one, other).statistic)


def _given(one: np.ndarray, other: np.ndarray, third: np.ndarray) -> float:
    """Spearman's correlation of two figures at equal third one (partial correlation of ranks)."""
    a, b, c = (stats.rankdata(values) for values in (one, other, third))
    ab, ac, bc = (np.corrcoef(*pair)[0, 1] for pair in ((a, b), (a, c), (b, c)))
    return float((ab - ac * bc) / np.sqrt((1 - ac**2) * (1 - bc**2)))


def _resampled(figure: Callable[..., float], runs: list[dict], *names: str, draws: int = 2000) -> list[float]:
    """A correlation of figures over runs, and the ends of its 95 % interval: settings drawn anew, with all seeds."""
    groups: dict[str, list[int]] = {}
    for place, record in enumerate(runs):
        groups.setdefault(_training(record), []).append(place)
    columns = [np.array([record["figures"][name] for record in runs]) for name in names]
    places, rng, drawn = list(groups.values()), np.random.default_rng(0), []
    for chosen in rng.integers(len(places), size=(draws, len(places))):
        rows = np.concatenate([places[one] for one in chosen])
        with np.errstate(invalid="ignore", divide="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", stats.ConstantInputWarning)
            drawn.append(figure(*(column[rows] for column in columns)))
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return [figure(*columns), float(low), float(high)]


def _span(values: list[float]) -> str:
    return "{:+.2f} ({:+.2f} to {:+.2f})".format(*values)


def searchers(study: Study) -> Told:
    """Rank correlations over runs between MRV, recall, and what a searcher sees."""
    texts, runs, found = {}, {bed: comparable(bed) for bed in ("photos", "scenes")}, {}
    for bed, records in runs.items():
        count = len({_training(record) for record in records})
        found[bed] = {"runs": len(records), "settings": count, "correlations": {}}
        rows = []
        for name in SEEN:
            values = {key: _resampled(_spearman, records, key, name) for key in ("mrv", "ir@1", "ir@10")}
            values["mrv at equal ir@10"] = _resampled(_given, records, "mrv", name, "ir@10")
            found[bed]["correlations"][name] = values
            rows.append([heading(name)[0], *map(_span, values.values())])
        heads = ["what a searcher sees", "with MRV", "with R@1", "with R@10", "with MRV at equal R@10"]
        texts[bed] = f"{len(records)} runs of {count} settings.\n\n" + markdown(heads, rows)

    def draw(path: Path) -> None:
        path.with_name("results.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        plots.searchers(study, runs, path)

    return texts, draw


def recall(study: Study) -> Told:
    """The usual table, and how MRV and recall go together over all runs."""
    texts, found = {}, readings(study)
    for one in found:
        texts[one.part.name] = table(one, one.part.columns)
        runs = [record for of_cell in one.runs.values() for record in of_cell.values()]
        rows = [
            [heading(name)[0], _span(_resampled(_spearman, runs, "mrv", name))]
            for name in ("ir@1", "ir@10", "mean rank")
        ]
        texts[f"{one.part.name}, together"] = markdown(["figure", f"correlation with MRV over {len(runs)} runs"], rows)
    return texts, lambda path: plots.recall(study, found, path)


VIEWS: dict[str, Callable[[Study], Told]] = {
    "grid": grid,
    "depths": depths,
    "noise": noise,
    "geometry": geometry,
    "recall": recall,
    "searchers": searchers,
}
