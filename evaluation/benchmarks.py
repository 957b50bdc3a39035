"""Published benchmarks by name: captions are checked, images found, parts made that are evaluated one by one.

Nothing is downloaded. What each benchmark is, and how its figures are reported, stands in `benchmark_facts`.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ccrk.data.coco_corpora import image_ids_of_list
from ccrk.data.corpora import read_corpus
from ccrk.data.report import IMAGE_MISSING, SkipReport
from ccrk.data.rows import CaptionDataset, kept_captions
from ccrk.evaluation.benchmark_facts import BENCHMARKS, BenchmarkSpec, Split

OUTSIDE_FOLDS = "image beyond the last fold"
SHOWN = 10
"""Missing images that a message names."""


class Part(NamedTuple):
    """What is evaluated by itself: a gallery and its captions.

    Attributes:
        label: `test`, a year, a language, or `en fold 1`.
        dataset: rows with captions; rows without any are distractors.
    """

    label: str
    dataset: CaptionDataset


class MissingImage(NamedTuple):
    """An image that is not there.

    Attributes:
        image_id: its id.
        file: the file that was looked for first, within the folder of images.
    """

    image_id: str
    file: str


@dataclass
class Benchmark:
    """A benchmark that was loaded.

    Attributes:
        spec: what it is, and the protocol of its published figures.
        parts: to be evaluated one by one.
        groups: name -> labels of the parts whose figures make one table; see `figures`.
        notes: what a reader of the figures has to know, a sentence each.
        missing: images that were left out because they are not there.
    """

    spec: BenchmarkSpec
    parts: list[Part]
    groups: dict[str, list[str]]
    notes: list[str] = field(default_factory=list)
    missing: list[MissingImage] = field(default_factory=list)

    @property
    def skipped(self) -> SkipReport:
        """What was left out of all parts."""
        report = SkipReport()
        for part in self.parts:
            report.merge(part.dataset.skipped)
        return report

    def describe(self) -> str:
        """A line for each part, and the notes below."""
        lines = [f"{self.spec.title}, {part.label}: {part.dataset.describe()}" for part in self.parts]
        return "\n".join([*lines, *self.notes])

    def write_missing(self, path: str | os.PathLike) -> None:
        """Writes the missing images: a line each, its id, a tab and its file."""
        _write_missing(path, self.missing)

    def mrv_image_ids(self, label: str) -> list[str]:
        """Images of a part whose ranks MRV compares: those with a caption in each of its languages.

        Args:
            label: of the part.

        Returns:
            Image ids in the order of the rows; none where MRV is not defined or one of its languages was not loaded.
        """
        wanted = set(self.spec.mrv_languages)
        dataset = dict(self.parts)[label]
        if not wanted or not wanted <= set(dataset.languages):
            return []
        return [row["image_id"] for row in dataset.rows if wanted <= {c["language"] for c in row["captions"]}]

    def figures(self, reports: Mapping[str, dict]) -> dict[str, dict]:
        """The table of each group from the reports of its parts: figures of folds averaged, then those of languages.

        Args:
            reports: label -> what `evaluate_retrieval` returned for the part, with `ks` 1, 5 and 10. Figures that were
                re-ranked take the place of plain ones.

        Returns:
            group -> `languages` (tag -> figures of `evaluate_retrieval` and `mean_recall`, the mean of its recalls in
            both directions), `reported` (names of the figures that published tables show) and, where these show an
            average, `average` (figure -> mean) over the languages `average_over`. Shares between 0 and 1.

        Raises:
            ValueError: if the report of a part is missing.
        """
        absent = [part.label for part in self.parts if part.label not in reports]
        if absent:
            raise ValueError(f"{self.spec.name}: there is no report of {', '.join(absent)}")
        tables = {}
        for group, labels in self.groups.items():
            found: dict[str, list[dict]] = {}
            for label in labels:
                for tag, figures in _of_report(reports[label]).items():
                    found.setdefault(tag, []).append(figures)
            languages = {tag: _means(folds) for tag, folds in found.items()}
            tables[group] = {"languages": languages, "reported": list(self.spec.reported)}
            averaged = [tag for tag in self.spec.average_over if tag in languages]
            if averaged:
                means = _means([languages[tag] for tag in averaged])
                tables[group] |= {"average": means, "average_over": averaged}
        return tables


def _of_report(report: dict) -> dict[str, dict[str, float]]:
    """Recalls by language, re-ranked ones in the place of plain ones, and their mean."""
    result = {}
    again = report.get("reranked", {}).get("languages", {})
    for tag, figures in report["languages"].items():
        recalls = {name: value for name, value in {**figures, **again.get(tag, {})}.items() if "@" in name}
        result[tag] = {**recalls, "mean_recall": float(np.mean(list(recalls.values())))}
    return result


def _means(tables: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([table[name] for table in tables])) for name in tables[0]}


def _write_missing(path: str | os.PathLike, missing: Sequence[MissingImage]) -> None:
    text = "".join(f"{image.image_id}\t{image.file}\n" for image in missing)
    Path(path).write_text(text, encoding="utf-8")


def benchmark_spec(name: str) -> BenchmarkSpec:
    """What is known of a benchmark.

    Raises:
        ValueError: if there is none of that name.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"there is no benchmark '{name}'; there are {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]


def content_sha256(path: str | os.PathLike) -> str:
    """SHA-256 of what a file holds, in hexadecimal; of a file that ends in `.gz`, of what is packed in it.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is not gzip.
    """
    digest, path = hashlib.sha256(), Path(path)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"'{path}' is not gzip: {error}") from error
    return digest.hexdigest()


def load_benchmark(
    name: str,
    captions: str | os.PathLike | None = None,
    images: str | os.PathLike | None = None,
    *,
    languages: Sequence[str] | None = None,
    year: str | Sequence[str] = "2016",
    fold: int | None = None,
    names: Mapping[str, str] | str | os.PathLike | None = None,
    allow_missing: bool = False,
    missing_list: str | os.PathLike | None = None,
    check: bool = True,
    check_images: bool = True,
) -> Benchmark:
    """Loads a benchmark: reads its captions, checks that they are the known ones, and looks for its images.

    Args:
        name: `xflickrco`, `wit`, `multi30k` or `coco`.
        captions: folder of the annotation files, named as they are published; that of the images by default.
        images: folder of the images; that of the captions by default.
        languages: those to evaluate; all that have files by default. The gallery does not depend on them where it is
            one for all languages.
        year: of Multi30K: `2016`, `2017`, `2017_mscoco`, `2018`, several of them, or `all` that have files.
        fold: of COCO: one fold instead of all, from 1.
        names: of WIT: URL -> file in the image folder, or a JSON file of that.
        allow_missing: go on without images that are not there. The gallery is smaller then, and figures are not
            those of the benchmark; a note says so.
        missing_list: file that takes a line for each image that is not there, whether that is an error or not.
        check: whether a checksum or a count that differs is an error; otherwise it is a note.
        check_images: whether to look for the images at all.

    Raises:
        OSError: if a file cannot be read or written.
        ValueError: if the name, a language, a year or a fold is not known; a file is not there, not of its format, or
            not the known one; or images are missing.
    """
    spec = benchmark_spec(name)
    if captions is None and images is None:
        raise ValueError(f"{name}: neither captions nor images names a folder")
    _check_options(spec, languages, year, fold, names)
    folders = [Path(one) for one in (captions, images) if one is not None]
    loader = _Loader(spec, folders[0], folders[-1], check, check_images, names)
    parts: list[Part] = []
    groups = {}
    for group in _groups(spec, year, folders[0]):
        split = spec.splits[group]
        wanted = loader.languages(split, languages)
        if spec.joined:
            found = [loader.joined(split, group, wanted)]
        else:
            found = [part for tag in wanted for part in loader.single(split, tag, fold)]
        groups[group] = [part.label for part in found]
        parts += found
    loader.finish(allow_missing, missing_list)
    return Benchmark(spec, parts, groups, loader.notes, loader.missing)


def _check_options(spec: BenchmarkSpec, languages, year, fold, names) -> None:
    unknown = [tag for tag in languages or () if tag not in spec.languages]
    if unknown:
        raise ValueError(f"{spec.name} has no captions in {', '.join(unknown)}; it has {', '.join(spec.languages)}")
    if year != "2016" and spec.name != "multi30k":
        raise ValueError(f"{spec.name} has no years; year= belongs to multi30k")
    if names is not None and spec.name != "wit":
        raise ValueError(f"{spec.name} names its image files itself; names= belongs to wit")
    if fold is not None and not spec.folds:
        raise ValueError(f"{spec.name} has no folds; fold= belongs to coco")
    if fold is not None and not 1 <= fold <= min(spec.folds.values()):
        raise ValueError(f"{spec.name} has no fold {fold}; folds are 1 to {min(spec.folds.values())}")


def _groups(spec: BenchmarkSpec, year: str | Sequence[str], folder: Path) -> list[str]:
    """Names of the splits that are asked for."""
    if spec.name != "multi30k":
        return list(spec.splits)
    if year == "all":
        listed = [name for name, split in spec.splits.items() if (folder / f"{split.name}.txt").is_file()]
        if not listed:
            raise ValueError(f"'{folder}' holds no test set of {spec.name}, such as {spec.splits['2016'].name}.txt")
        return listed
    years = [year] if isinstance(year, str) else list(dict.fromkeys(year))
    unknown = [one for one in years if one not in spec.splits]
    if unknown or not years:
        raise ValueError(f"{spec.name} has no year '{', '.join(unknown)}'; it has {', '.join(spec.splits)}, or all")
    return years


@dataclass
class _Loader:
    """Reads the parts of one benchmark and keeps account of what is to be told."""

    spec: BenchmarkSpec
    captions: Path
    images: Path
    check: bool
    check_images: bool
    names: Any
    notes: list[str] = field(default_factory=list)
    missing: list[MissingImage] = field(default_factory=list)
    known: set[str] = field(default_factory=set)  # ids of all images, there or not
    empty: list[str] = field(default_factory=list)  # labels of parts that have too few images to be evaluated

    def __post_init__(self):
        folders = {"captions": self.captions} | ({"images": self.images} if self.check_images else {})
        for what, folder in folders.items():
            if not folder.is_dir():
                layout = f", with {self.spec.image_layout}" if what == "images" else ""
                raise ValueError(f"{self.spec.name}: there is no folder '{folder}' of {what}{layout}")

    def _complain(self, text: str) -> None:
        """Raises ValueError, or takes a note with `check=False`."""
        if self.check:
            raise ValueError(f"{text}; check=False goes on with it")
        self.notes.append(f"{text}.")

    def files(self, split: Split, tag: str) -> tuple[list[Path], list[str]]:
        """Files of a language that are there, captions first, and names of those that are not."""
        found, absent = [], []
        for template in self.spec.files.get(tag) or self.spec.files["*"]:
            pattern = template.format(language=tag, split=split.name)
            file = next((f for one in pattern.split("|") if (f := self._file(one)) is not None), None)
            found += [file] if file is not None else []
            absent += [pattern.replace("|", " or ")] if file is None else []
        return found, absent

    def _file(self, pattern: str) -> Path | None:
        if "*" not in pattern:
            return next((f for f in (self.captions / pattern, self.captions / f"{pattern}.gz") if f.is_file()), None)
        found = sorted(self.captions.glob(pattern))
        if len(found) > 1:
            listed = ", ".join(file.name for file in found)
            raise ValueError(f"'{self.captions}' has several files '{pattern}', and there must be one: {listed}")
        return found[0] if found else None

    def languages(self, split: Split, wanted: Sequence[str] | None) -> list[str]:
        """Those to evaluate; files of each are checked.

        Raises:
            ValueError: if a wanted one, or every one, has no files.
        """
        absent = {}
        for tag in split.languages:
            lacking = self.files(split, tag)[1]
            if lacking:
                absent[tag] = lacking
        chosen = list(dict.fromkeys(wanted)) if wanted is not None else [t for t in split.languages if t not in absent]
        for tag in chosen:
            if tag in absent or tag not in split.languages:
                why = f": no {', '.join(absent[tag])} in '{self.captions}'" if tag in absent else ""
                raise ValueError(f"{self.spec.name}, {split.name} has no captions in {tag}{why}")
        if not chosen:
            lacking = "; ".join(f"{tag}: {', '.join(names)}" for tag, names in absent.items())
            raise ValueError(f"'{self.captions}' holds no captions of {self.spec.name}, {split.name} ({lacking})")
        if wanted is None and absent:
            self.notes.append(f"{split.name}: no files of {', '.join(absent)}, so these languages are left out.")
        self._check_files(split, chosen)
        return chosen

    def _check_files(self, split: Split, languages: Sequence[str]) -> None:
        unknown = []
        for file in dict.fromkeys(file for tag in languages for file in self.files(split, tag)[0]):
            name = file.relative_to(self.captions).as_posix().removesuffix(".gz")
            expected = self.spec.sha256.get(name)
            if expected is None:
                unknown.append(name)
            elif (found := content_sha256(file)) != expected:
                self._complain(
                    f"'{file}' is not the known file of {self.spec.name}: the SHA-256 of its content is {found}, "
                    f"expected {expected}"
                )
        if unknown:
            self.notes.append(f"{split.name}: no checksum is known of {', '.join(unknown)}.")

    def _read(self, source: Path, form: str, label: str, **options: Any) -> tuple[CaptionDataset, CaptionDataset]:
        """All rows, and those whose image is there; the others are put on the list of missing ones."""
        options |= {"format": form, "images": self.images, "names": self.names}
        whole = read_corpus(source, check_images=False, **options)
        if not self.check_images:
            return whole, whole
        try:
            found = read_corpus(source, check_images=True, **options)
        except ValueError:  # the same was just read without looking for images, so there is none
            found = CaptionDataset([])
            for row in whole.rows:
                found.skipped.add(IMAGE_MISSING, row["image_id"])
            self.empty.append(label)
        there = {row["image_id"] for row in found.rows}
        lost = {image.image_id for image in self.missing}
        for row in whole.rows:
            if row["image_id"] not in there and row["image_id"] not in lost:
                self.missing.append(MissingImage(row["image_id"], os.path.relpath(row["image"], self.images)))
        self.known.update(row["image_id"] for row in whole.rows)
        return whole, found

    def _check_counts(self, split: Split, whole: CaptionDataset, languages: Sequence[str]) -> None:
        for tag in languages:
            expected = split.counts.get(tag)
            if expected is None:
                continue
            of_rows = [sum(caption["language"] == tag for caption in row["captions"]) for row in whole.rows]
            counts = {"images": sum(count > 0 for count in of_rows), "captions": sum(of_rows)}
            for what, count in counts.items():
                wanted = getattr(expected, what)
                if wanted is not None and count != wanted:
                    self._complain(
                        f"{self.spec.name}, {split.name} has {count} {what} in {tag} in '{self.captions}', "
                        f"expected {wanted}"
                    )

    def joined(self, split: Split, label: str, languages: Sequence[str]) -> Part:
        """One gallery for all languages: every image that a file of any language names is in it."""
        form = self.spec.formats["*"]
        present = [tag for tag in split.languages if not self.files(split, tag)[1]]
        whole, found = self._read(self.captions, form, label, languages=present, split=split.name)
        self._check_counts(split, whole, languages)
        for row in found.rows:
            row["captions"] = kept_captions(row["captions"], languages, found.skipped, row["image_id"])
        lacking = [tag for tag in self.spec.mrv_languages if tag not in languages]
        if self.spec.mrv_languages and lacking:
            self.notes.append(f"{split.name}: no MRV, as it compares {' '.join(self.spec.mrv_languages)}.")
        return Part(label, found)

    def single(self, split: Split, tag: str, fold: int | None) -> list[Part]:
        """A language with a gallery of its own, or the folds of it."""
        file, *others = self.files(split, tag)[0]
        form = self.spec.formats.get(tag) or self.spec.formats["*"]
        part: Any = {"wit": None}.get(form, split.name)
        order = None
        if form == "yjcaptions":
            order = self._listed(others[0], split)
            part = set(order)
        whole, found = self._read(file, form, tag, languages=[tag], split=part)
        self._check_counts(split, whole, [tag])
        if order is not None:
            places = {image_id: place for place, image_id in enumerate(order)}
            found.rows.sort(key=lambda row: places[row["image_id"]])
        count = self.spec.folds.get(tag, 1)
        if len(whole) < count:
            raise ValueError(f"'{file}' has {len(whole)} images of the test set, too few for {count} folds")
        if len(found) < count:  # images are missing, which is told at the end
            self.empty += [tag] if found.rows else []
            return [Part(tag, found)]
        return _folds(found, tag, count, fold) if count > 1 else [Part(tag, found)]

    def _listed(self, file: Path, split: Split) -> list[str]:
        """Images of Karpathy's split, or of a text file that names one a line, in that order."""
        if file.suffix == ".json":
            whole = read_corpus(file, format="karpathy", split=split.name, check_images=False)
            return [row["image_id"] for row in whole.rows]
        return image_ids_of_list(file)

    def finish(self, allow_missing: bool, missing_list: str | os.PathLike | None) -> None:
        """Tells of missing images.

        Raises:
            ValueError: if there are any and they are not allowed, or a part has no image at all.
        """
        if missing_list is not None:
            _write_missing(missing_list, self.missing)
        if not self.missing:
            return
        text = f"{self.spec.name}: {len(self.missing)} of {len(self.known)} images are not in '{self.images}'"
        shown = ", ".join(image.file for image in self.missing[:SHOWN])
        shown += ", ..." if len(self.missing) > SHOWN else ""
        where = f" (all are listed in '{missing_list}')" if missing_list is not None else ""
        if not allow_missing:
            layout = f"which is to hold {self.spec.image_layout}"
            raise ValueError(f"{text}, {layout}: {shown}{where}; allow_missing goes on without them")
        if self.empty:
            raise ValueError(f"{text}, and too few are left of {', '.join(self.empty)}: {shown}{where}")
        self.notes.append(f"{text}, so the galleries are smaller and figures are not those of the benchmark{where}.")


def _folds(dataset: CaptionDataset, tag: str, count: int, wanted: int | None) -> list[Part]:
    """Consecutive folds of n // count images; what is beyond the last is counted. The first one has the account."""
    size = len(dataset) // count
    for row in dataset.rows[count * size :]:
        dataset.skipped.add(OUTSIDE_FOLDS, row["image_id"])
    parts: list[Any] = []
    for number in range(1, count + 1) if wanted is None else [wanted]:
        rows = dataset.rows[(number - 1) * size : number * size]
        report = SkipReport() if parts else dataset.skipped
        parts.append(Part(f"{tag} fold {number}", CaptionDataset(rows, report)))
    return parts
