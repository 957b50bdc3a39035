"""A folder with what the pages name: models, towers, photos and captions, all tiny and random.

Where a page names a model of the Hub, the folder has a model under the same path, and a path that exists is taken
before the Hub is asked; so the code of a page runs as it stands there, without a network.
"""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from transformers import XLMRobertaConfig, XLMRobertaForMaskedLM

from ccrk import CCRkRetrievalPipeline

SWIN = {"img_size": 32, "window_size": 4, "embed_dim": 8, "depths": [2, 1], "num_heads": [1, 2]}
IMAGE_TOWERS = {
    "timm/swin_base_patch4_window7_224.ms_in22k": ("swin_base_patch4_window7_224", SWIN),
    "timm/tf_efficientnet_lite0.in1k": ("tf_efficientnet_lite0", {}),
}
TEXT_TOWERS = ("FacebookAI/xlm-roberta-base", "FacebookAI/xlm-roberta-large", "intfloat/multilingual-e5-small")
CAPTIONS = {
    "en": ("a dog in the snow", "two red boats on a lake", "a green tree", "the sun"),
    "de": ("ein Hund im Schnee", "zwei rote Boote auf einem See", "ein grüner Baum", "die Sonne"),
}


def build(folder: Path, tiny, root: Path, photos: int = 8, copies: int = 1) -> None:
    """Fills an empty folder.

    Args:
        folder: where to.
        tiny: the module tests/pipelines/tiny.py.
        root: of the checkout.
        photos: how many there are.
        copies: how often they are in train.jsonl, under other ids; the batch of a command is 64, of a recipe 256.
    """
    processor = tiny.build_processor()
    model = tiny.build_model(len(processor.tokenizer))
    search = CCRkRetrievalPipeline(model=model, processor=processor, device="cpu")
    for name in ("my-model", "demo_output", "org/ccrk"):
        search.save_pretrained(folder / name)
    for name, (architecture, arguments) in IMAGE_TOWERS.items():
        _save_image_tower(folder / name, architecture, arguments)
    for name in TEXT_TOWERS:
        _save_text_tower(folder / name, processor.tokenizer)
    _write_data(folder, tiny, photos, copies)
    fixture = root / "tests" / "fixtures" / "official_tiny"
    shutil.copy(fixture / "ccrk_official.th", folder / "small.th")
    shutil.copy(fixture / "config.json", folder / "sizes.json")
    for name in ("examples", "metrics"):
        shutil.copytree(root / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))


def _save_image_tower(folder: Path, architecture: str, arguments: dict) -> None:
    torch.manual_seed(0)
    model = timm.create_model(architecture, num_classes=0, **arguments)
    folder.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")
    stated = {key: model.pretrained_cfg[key] for key in ("mean", "std", "interpolation", "crop_pct", "first_conv")}
    config = {
        "architecture": architecture,
        "num_classes": 0,
        "pretrained_cfg": {**stated, "input_size": [3, 32, 32], "num_classes": 0, "classifier": "", "pool_size": None},
        "model_args": arguments,
    }
    (folder / "config.json").write_text(json.dumps(config))


def _save_text_tower(folder: Path, tokenizer) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "num_hidden_layers": 12}
    config = XLMRobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=66, type_vocab_size=1, **sizes)
    XLMRobertaForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _write_data(folder: Path, tiny, photos: int, copies: int) -> None:
    (folder / "photos").mkdir()
    rows, table = [], []
    drawn = [photo for seed in range(-(-photos // 8)) for photo in tiny.build_photos(8, seed)]
    for number, photo in enumerate(drawn[:photos]):
        photo.save(folder / "photos" / f"{number}.png")
        texts = {tag: of_language[number % 4] for tag, of_language in CAPTIONS.items()}
        captions = {"en": [texts["en"], f"photo {number}"], "de": texts["de"]}
        rows.append({"image": f"photos/{number}.png", "id": str(number), "captions": captions})
        table += [(f"{number}.png", tag, text) for tag, text in texts.items()]
    photo.convert("RGB").save(folder / "dog.jpg")
    many = [{**row, "id": f"{row['id']}-{copy}"} for copy in range(1, copies) for row in rows]
    for name, written in (("train", rows + many), ("val", rows)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, written)), encoding="utf-8")
    (folder / "captions.txt").write_text("\n".join(CAPTIONS["en"]), encoding="utf-8")
    with open(folder / "captions.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("image", "language", "caption"), *table])
