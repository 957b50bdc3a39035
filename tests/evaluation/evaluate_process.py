"""One of two processes that evaluate together; run by test_distributed.py, which also does the same alone."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from pathlib import Path

import torch

from ccrk.evaluation.retrieval import evaluate_retrieval
from ccrk.image_tower_ccrk import CCRkImageTower

spec = importlib.util.spec_from_file_location("tiny", Path(__file__).resolve().parents[1] / "pipelines" / "tiny.py")
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)


def write_rows(folder: Path) -> None:
    """Nine photos as files, one of them broken, with captions in two languages; two photos share their id."""
    made = []
    for number, photo in enumerate(tiny.build_photos(9)):
        path = folder / f"{number}.png"
        photo.save(path)
        captions = [{"language": "en", "text": f"a dog {'very ' * (number % 4)}{number}"}]
        if number % 3:
            captions.append({"language": "de", "text": f"ein Hund {number}"})
        made.append({"image": str(path), "image_id": str(number % 8), "captions": captions})
    Path(made[4]["image"]).write_bytes(b"no image")
    (folder / "rows.json").write_text(json.dumps(made))


def report(rows: list[dict], cache: Path | None) -> dict:
    """A report with re-ranking."""
    processor = tiny.build_processor()
    model = tiny.build_model(len(processor.tokenizer))
    return evaluate_retrieval(model, processor, rows, batch_size=2, on_broken="skip", rerank=3, cache=cache)


def alone(folder: Path, delay: float) -> None:
    """Evaluates with a cache, so much slower by image."""
    whole = CCRkImageTower.forward
    CCRkImageTower.forward = lambda *args, **kwargs: time.sleep(delay) or whole(*args, **kwargs)
    rows = json.loads((folder / "rows.json").read_text())
    (folder / "alone.json").write_text(json.dumps(report(rows, folder / "cache")))


def evaluate(folder: Path, rank: int, world_size: int) -> list[dict]:
    """Reports with several batches for each process, with none for the second, and of the error."""
    rows = json.loads((folder / "rows.json").read_text())
    processor = tiny.build_processor()
    model = tiny.build_model(len(processor.tokenizer))
    share = {"rank": rank, "world_size": world_size, "rerank": 3}
    options = {"on_broken": "skip", **share}
    reports = [evaluate_retrieval(model, processor, rows, batch_size=size, **options) for size in (2, 5, 16)]
    kept = {"batch_size": 2, "cache": folder / f"cache{world_size}", **options}
    assert [evaluate_retrieval(model, processor, rows, **kept) for _ in range(2)] == [reports[0]] * 2
    try:
        evaluate_retrieval(model, processor, rows, batch_size=2, **share)
    except ValueError as error:
        reports.append({"error": str(error)})
    return reports


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "alone":
        alone(Path(sys.argv[2]), float(sys.argv[3]))
        sys.exit()
    own, place = int(sys.argv[1]), Path(sys.argv[2])
    torch.distributed.init_process_group("gloo", init_method=f"file://{place}/meeting", rank=own, world_size=2)
    (place / f"report{own}.json").write_text(json.dumps(evaluate(place, own, 2)))
    torch.distributed.destroy_process_group()
