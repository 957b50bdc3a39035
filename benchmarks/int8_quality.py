"""What int8 costs in recall: real towers, real photos and captions, the same model in float32 and exported in 8 bits.

    python benchmarks/int8_quality.py --data FOLDER --image-tower FOLDER --text-tower FOLDER [--train 600]

FOLDER of the data holds `train.jsonl` and `val.jsonl` as `ccrk train` reads them. The towers are taken as they are;
photos are brought into the space of texts by a linear map, fitted by least squares (ridge) on captions of the first
photos of `train.jsonl`: seconds of training, and recall enough to see it move. Text-to-image recall is over the photos
of `val.jsonl`, and caption-to-caption recall over the captions in two languages.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch
from torch.nn.functional import normalize

BATCH = 16


def read(file: Path, count: int | None) -> list[tuple[Path, dict[str, str]]]:
    """Photo and first caption of each language, of the first records."""
    records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()[:count]]
    return [(file.parent / one["image"], {tag: texts[0] for tag, texts in one["captions"].items()}) for one in records]


@torch.inference_mode()
def photos(encoders, processor, rows, hidden: bool = False) -> torch.Tensor:
    """Vectors of photos, or summaries of the image tower."""
    found = []
    for start in range(0, len(rows), BATCH):
        pixels = processor(images=[row[0] for row in rows[start : start + BATCH]], return_tensors="pt")["pixel_values"]
        output = encoders.get_image_features(pixels)
        found.append(output.last_hidden_state[:, 0] if hidden else output.pooler_output)
    return torch.cat(found)


@torch.inference_mode()
def texts(encoders, processor, captions: list[str]) -> torch.Tensor:
    """Vectors of captions."""
    found = []
    for start in range(0, len(captions), BATCH):
        inputs = processor(text=captions[start : start + BATCH], return_tensors="pt", padding=True)
        found.append(encoders.get_text_features(inputs["input_ids"], inputs["attention_mask"]).pooler_output)
    return torch.cat(found)


def recall(queries: torch.Tensor, gallery: torch.Tensor, k: int) -> float:
    """Share of queries whose own row is among the best k."""
    best = (queries @ gallery.T).topk(k).indices
    return float((best == torch.arange(len(queries))[:, None]).any(1).float().mean())


def build(args: argparse.Namespace):
    """The model of two towers, and its processor."""
    from transformers import AutoTokenizer

    from ccrk import CCRkImageProcessor, CCRkModel, CCRkProcessor
    from ccrk.towers_ccrk import load_timm_model, tower_preprocessing

    width = json.loads((args.text_tower / "config.json").read_text())["hidden_size"]
    layers = json.loads((args.text_tower / "config.json").read_text())["num_hidden_layers"]
    model = CCRkModel.from_towers(
        args.image_tower,
        args.text_tower,
        text_layers=list(range(layers)),
        fusion_layers=[layers - 1],
        text_pooling="mean",
        projection_dim=width,
    )
    settings = tower_preprocessing(load_timm_model(args.image_tower))
    side = settings["image_size"]
    images = CCRkImageProcessor(
        size={"height": side, "width": side}, image_mean=settings["mean"], image_std=settings["std"]
    )
    tokenizer = AutoTokenizer.from_pretrained(args.text_tower)
    return model, CCRkProcessor(images, tokenizer, text_prefix=args.text_prefix)


@torch.no_grad()
def fit(model, processor, rows) -> None:
    """Texts stay where the tower puts them; photos are mapped to the mean of their captions."""
    linear = model.text_projection[0]
    linear.weight.copy_(torch.eye(len(linear.weight)))
    linear.bias.zero_()
    spoken = sorted(set.intersection(*(set(row[1]) for row in rows)))[:2]
    wanted = sum(texts(model, processor, [row[1][tag] for row in rows]) for tag in spoken).double()
    wanted = normalize(wanted - wanted.mean(0), dim=-1)
    summaries = photos(model, processor, rows, hidden=True).double()
    centre = summaries.mean(0)
    x = summaries - centre
    system = x.T @ x + x.pow(2).sum() / len(x) * 0.3 * torch.eye(x.shape[1], dtype=x.dtype)
    weight = torch.linalg.solve(system, x.T @ wanted).T
    model.visual_projection[0].weight.copy_(weight)
    model.visual_projection[0].bias.copy_(-weight @ centre)


def main() -> None:
    """Fits, exports, measures both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--image-tower", type=Path)
    parser.add_argument("--text-tower", type=Path)
    parser.add_argument("--text-prefix", default="query: ")
    parser.add_argument("--train", type=int, default=600, help="photos that the map is fitted on")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    if args.data is None or args.image_tower is None or args.text_tower is None:
        print("skipped: name photos and towers with --data, --image-tower and --text-tower")
        return
    torch.set_num_threads(args.threads)

    from ccrk.pipelines.onnx_encoders import OnnxEncoders
    from ccrk.pipelines.onnx_export import export_encoders

    model, processor = build(args)
    fit(model, processor, read(args.data / "train.jsonl", args.train))
    rows = read(args.data / "val.jsonl", None)
    languages = sorted(set.intersection(*(set(row[1]) for row in rows)))
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        export_encoders(model, None, Path(folder) / "int8", int8=True)
        for name, encoders in (("float32", model), ("int8", OnnxEncoders(Path(folder) / "int8"))):
            vectors = {tag: texts(encoders, processor, [row[1][tag] for row in rows]) for tag in languages}
            results[name] = photos(encoders, processor, rows), vectors
    print(f"{len(rows)} photos, languages {', '.join(languages)}")
    for name, (images, vectors) in results.items():
        for tag, of_texts in vectors.items():
            centred = normalize(of_texts - of_texts.mean(0), dim=-1)
            figures = [recall(centred, images, k) for k in (1, 10)]
            other = recall(of_texts, vectors["en"], 1)
            print(
                f"{name:8} {tag}: text-to-image R@1 {figures[0]:.3f} R@10 {figures[1]:.3f}, to English R@1 {other:.3f}"
            )
    (images, vectors), (images8, vectors8) = results["float32"], results["int8"]
    print(f"photos: lowest cosine {float((images * images8).sum(1).min()):.5f}")
    for tag in languages:
        cosines = (vectors[tag] * vectors8[tag]).sum(1)
        print(f"texts {tag}: cosine lowest {float(cosines.min()):.5f}, mean {float(cosines.mean()):.5f}")


if __name__ == "__main__":
    main()
