"""Re-ranking 32 candidates of a search at the paper's size on a CPU: kept image states, recomputed ones, a plain path.

    python benchmarks/rerank_search.py [--queries 4] [--rounds 3] [--threads 1]

An index of 64 photos at 224 px, 523.6 M parameters at random, captions as queries, one at a time; the best 32 are
re-scored. Needs about 6 GiB of free memory. The ways take turns in one process:

`plain` does for a query what the authors' code does for one: text padded to 40 tokens, attention spelled out, the
photos of all candidates through the image tower, keys and values made for each pair, all tokens through the last
layer. `recomputed` is the pipeline with nothing kept, `kept` the pipeline with the states on disk that `ccrk index
--states` keeps (half precision), `memory` the pipeline that has met the candidates before in this process. CPU seconds
(user + system) of a query are what to compare.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import normalize, pad


def load(name: str, path: Path):
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


train_step = load("train_step", Path(__file__).with_name("train_step.py"))
tiny = load("tiny", Path(__file__).parents[1] / "tests" / "pipelines" / "tiny.py")

PHOTOS, CANDIDATES, PADDED = 64, 32, 40
QUERIES = [
    "a dog in the snow and a cat",
    "ein Hund im Schnee",
    "two red boats on a lake",
    "un chat noir",
    "three people walk along",
    "zwei rote Boote im Schnee",
    "a green tree in the sun",
    "the sun on a quiet lake",
]


def build_pipe():
    """A pipeline with a random model of the paper's size, and a real processor at 224 px."""
    from ccrk import CCRkConfig, CCRkImageProcessor, CCRkModel, CCRkProcessor, CCRkRetrievalPipeline

    torch.manual_seed(0)
    model = CCRkModel(CCRkConfig()).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and "embeddings" not in name:
            parameter.data.mul_(1.5)  # or all pairs would score nearly alike
    processor = CCRkProcessor(CCRkImageProcessor(), tiny.build_processor().tokenizer)
    return CCRkRetrievalPipeline(model, processor, device="cpu")


def build_index(pipe, work: str):
    """64 photos, indexed with their states; the URI and the folder of the states."""
    from ccrk.pipelines.gallery_sources import gallery_items
    from ccrk.pipelines.gallery_update import open_gallery_index, update_index
    from ccrk.pipelines.image_states import ImageStateStore
    from ccrk.pipelines.model_fingerprint import embedding_fingerprint, states_name

    folder, random = Path(work) / "photos", np.random.default_rng(0)
    folder.mkdir()
    for number in range(PHOTOS):
        blocks = Image.fromarray(random.integers(0, 256, (7, 7, 3), dtype=np.uint8))
        blocks.resize((448, 336), Image.Resampling.BICUBIC).save(folder / f"{number:02d}.jpg", quality=90)
    uri, items = f"lance://{work}/index", gallery_items(folder)
    index = open_gallery_index(uri, embedding_fingerprint(pipe.model, pipe.processor), items)
    store = ImageStateStore(Path(work) / "states", states_name(pipe.model, pipe.processor))
    update_index(index, items, pipe, states=store)
    print(f"states: {store.nbytes / PHOTOS / 1024:.0f} KiB a photo")
    index.close()
    return uri, Path(work) / "states"


@torch.inference_mode()
def plain_search(pipe, gallery, query: str) -> dict[str, float]:
    """Matching logits by the plain path, by id."""
    model, processor = pipe.model, pipe.processor
    text = processor(text=[query], return_tensors="pt")
    room = PADDED - text["input_ids"].shape[1]
    ids = pad(text["input_ids"], (0, room), value=model.config.text_config.pad_token_id)
    mask = pad(text["attention_mask"], (0, room))
    hidden = train_step.run_layers(model.text_model.layer, model.text_model.embeddings(ids), mask)
    vector = normalize(model.text_projection(hidden[:, 0]), dim=-1)
    ((found, _),) = gallery.search(vector, CANDIDATES)
    photos = [processor.image_processor.open_image(path) for path in gallery.load(found)]
    images = model.vision_model(processor(images=photos, return_tensors="pt")["pixel_values"])
    count = len(found)
    fused = train_step.run_layers(model.fusion_model.layer, hidden.repeat(count, 1, 1), mask.repeat(count, 1), images)
    return dict(zip(found, model.itm_head(fused[:, 0])[:, 1].tolist(), strict=True))


def pipe_search(pipe, query: str) -> dict[str, float]:
    """The same by the pipeline."""
    results = pipe(query, top_k=CANDIDATES, rerank=CANDIDATES, rerank_score="itm")
    return {result["id"]: result["score"] for result in results}


def measure_keys_values(pipe, states: Path) -> None:
    """What keys and values in the place of tokens would save, and take."""
    from ccrk.pipelines.image_states import ImageStateStore
    from ccrk.pipelines.model_fingerprint import states_name

    store = ImageStateStore(states, states_name(pipe.model, pipe.processor))
    before = train_step.cpu_seconds()
    tokens = torch.stack(store.get(list(store._places)[:CANDIDATES])).float()
    reading, before = train_step.cpu_seconds() - before, train_step.cpu_seconds()
    with torch.inference_mode():
        made = pipe.model.get_image_states(image_hidden_states=tokens)
    making = train_step.cpu_seconds() - before
    size = sum(tensor.nbytes for tensor in (*made.keys, *made.values)) / CANDIDATES / 2
    print(
        f"of {CANDIDATES} photos: tokens read in {reading:.3f} CPU s, keys and values made of them in {making:.2f}; "
        f"in half precision {tokens[0].nbytes / 2048:.0f} KiB a photo against {size / 1024:.0f}"
    )


def report(times: dict[str, list[float]], scores: dict[str, list[dict[str, float]]]) -> None:
    """Prints the median of each way, and how far its scores are from those of the plain path."""
    plain = statistics.median(times["plain"])
    for way, seconds in times.items():
        middle, spread = statistics.median(seconds), f"{min(seconds):.2f} to {max(seconds):.2f}"
        print(f"{way:10} CPU s a query {middle:6.2f} ({spread})  of plain {middle / plain:.3f}", end="")
        pairs = list(zip(scores[way], scores["plain"], strict=True))
        apart = max(abs(found[i] - other[i]) for found, other in pairs for i in other)
        first = sum(max(found, key=found.get) == max(other, key=other.get) for found, other in pairs)
        print(f"  scores differ by at most {apart:.1e}, equal first {first} of {len(pairs)}")
    values = [score for found in scores["plain"] for score in found.values()]
    print(f"scores lie from {min(values):.3f} to {max(values):.3f}")


def main() -> None:
    """Runs the ways in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--queries", type=int, default=4, choices=range(1, len(QUERIES) + 1), metavar="1..8")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    import timm

    from ccrk.pipelines.index_gallery import IndexGallery
    from ccrk.pipelines.indexes import open_index

    pipe = build_pipe()
    print(f"{platform.machine()}, {os.cpu_count()} cores, {args.threads} threads, torch {torch.__version__}")
    queries = QUERIES[: args.queries]
    tokens = [len(pipe.processor(text=[query])["input_ids"][0]) for query in queries]
    print(f"{PHOTOS} photos, best {CANDIDATES} of {len(queries)} queries of {statistics.mean(tokens):.1f} tokens")
    with tempfile.TemporaryDirectory() as work:
        uri, states = build_index(pipe, work)
        measure_keys_values(pipe, states)
        times: dict[str, list[float]] = {way: [] for way in ("plain", "recomputed", "kept", "memory")}
        scores: dict[str, list[dict[str, float]]] = {}
        for _ in range(args.rounds):
            for way in times:
                timm.layers.set_fused_attn(way != "plain")
                pipe.model.config.text_config._attn_implementation = "eager" if way == "plain" else "sdpa"
                if way in ("plain", "recomputed", "kept"):
                    pipe.set_gallery(IndexGallery(open_index(uri), states=states if way == "kept" else None))
                scores[way] = []
                for query in queries:
                    if way != "memory":
                        pipe._states.clear()
                    else:
                        pipe_search(pipe, query)  # so that the candidates have been met
                    before = train_step.cpu_seconds()
                    found = plain_search(pipe, pipe.gallery, query) if way == "plain" else pipe_search(pipe, query)
                    times[way].append(train_step.cpu_seconds() - before)
                    scores[way].append(found)
    report(times, scores)


if __name__ == "__main__":
    main()
