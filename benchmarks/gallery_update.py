"""An index of 10,000 photos made, and brought up to date after 100 came, 50 changed and 50 went.

    python benchmarks/gallery_update.py [--photos 10000] [--threads 1]

Photos are drawn (coloured blocks, JPEG, 320 x 240) into a temporary folder, 100 MB of them. The model is tiny and
random, so that the time is that of the update itself: listing, hashing, decoding, writing. What is measured: wall and
CPU seconds of each run, how many contents went through the model, and whether the updated index equals one that is
built afresh. Then the folder is moved, which changes every path and no content.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

spec = importlib.util.spec_from_file_location("tiny", Path(__file__).parents[1] / "tests" / "pipelines" / "tiny.py")
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)

ADDED, CHANGED, DELETED = 100, 50, 50


def draw(path: Path, seed: int) -> None:
    """Writes one photo; another seed gives another one."""
    random = np.random.default_rng(seed)
    blocks = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    blocks.resize((320, 240), Image.Resampling.BICUBIC).save(path, quality=85)


def name_of(number: int) -> str:
    """A hundred photos to a folder."""
    return f"{number // 100:03d}/{number:05d}.jpg"


def cpu_seconds() -> float:
    """Of this process, all threads."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def update(uri: str, folder: Path, pipe, what: str):
    """One run, printed."""
    from ccrk.pipelines.gallery_sources import gallery_items
    from ccrk.pipelines.gallery_update import open_gallery_index, update_index
    from ccrk.pipelines.model_fingerprint import embedding_fingerprint

    begun, before = time.perf_counter(), cpu_seconds()
    items = gallery_items(folder)
    index = open_gallery_index(uri, embedding_fingerprint(pipe.model, pipe.processor), items)
    report = update_index(index, items, pipe, batch_size=32)
    index.close()
    wall, cpu = time.perf_counter() - begun, cpu_seconds() - before
    counts = {name: number for name, number in report.counts().items() if number and name != "seconds"}
    print(f"{what:28} wall s {wall:7.2f}  CPU s {cpu:7.2f}  {counts}", flush=True)
    return report


def contents(uri: str) -> dict[str, dict]:
    """All rows of an index by id."""
    from ccrk.pipelines.indexes import open_index

    index = open_index(uri)
    rows = {row["id"]: row for row in index.scan([*index.columns, "vector"])}
    index.close()
    return rows


def compare(found: dict[str, dict], expected: dict[str, dict]) -> str:
    """How two indexes differ, in words."""
    if found.keys() != expected.keys():
        return f"{len(found.keys() ^ expected.keys())} ids differ"
    told = [name for name in next(iter(found.values())) if name != "vector"]
    metadata = sum(found[i][name] != expected[i][name] for i in found for name in told)
    vectors = [torch.stack([torch.as_tensor(rows[i]["vector"]) for i in sorted(found)]) for rows in (found, expected)]
    apart = (vectors[0] - vectors[1]).abs().max()
    return f"the same {len(found)} ids, {metadata} values of metadata differ, vectors by at most {apart:.1e}"


def main() -> None:
    """Makes the photos, and runs the updates one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    from ccrk import CCRkModel, CCRkRetrievalPipeline

    processor = tiny.build_processor()
    model = tiny.build_model(len(processor.tokenizer), CCRkModel)
    pipe = CCRkRetrievalPipeline(model, processor, device="cpu")
    print(f"{platform.machine()}, {os.cpu_count()} cores, {args.threads} threads, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as work:
        folder, uri = Path(work) / "photos", f"lance://{work}/index"
        for number in range(args.photos):
            path = folder / name_of(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            draw(path, number)
        size = sum(file.stat().st_size for file in folder.rglob("*.jpg"))
        print(f"{args.photos} photos, {size / 2**20:.0f} MiB")
        time.sleep(3)  # the time of a file that has just changed is not trusted
        update(uri, folder, pipe, "first run")
        update(uri, folder, pipe, "nothing to do")
        for number in range(args.photos, args.photos + ADDED):
            (folder / name_of(number)).parent.mkdir(exist_ok=True)
            draw(folder / name_of(number), number)
        for number in range(0, CHANGED * 7, 7):
            draw(folder / name_of(number), args.photos + ADDED + number)
        for number in range(1, DELETED * 7, 7):
            (folder / name_of(number)).unlink()
        time.sleep(3)
        report = update(uri, folder, pipe, "100 new, 50 changed, 50 gone")
        assert (report.added, report.changed, report.deleted, report.embedded) == (100, 50, 50, 150)
        update(f"lance://{work}/fresh", folder, pipe, "built afresh")
        print("the updated index against the fresh one:", compare(contents(uri), contents(f"lance://{work}/fresh")))
        moved = folder.rename(Path(work) / "moved")
        update(uri, moved, pipe, "the folder moved")


if __name__ == "__main__":
    main()
