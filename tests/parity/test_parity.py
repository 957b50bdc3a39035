"""Every tensor of the reference sets against ours. Run this file as a script for the table of differences."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import BatchEncoding

from ccrk.configuration_ccrk import CCRkVisionConfig
from ccrk.conversion_ccrk import convert_state, official_config, read_checkpoint, read_official_config, rename
from ccrk.evaluation.candidates import find_candidates
from ccrk.evaluation.features import encode
from ccrk.evaluation.reranking import matching_logits, rerank_scores
from ccrk.evaluation.retrieval import evaluate_retrieval
from ccrk.image_tower_ccrk import CCRkImageTower, interpolate_relative_positions
from ccrk.losses_ccrk import matching_loss, one_to_k, one_to_one
from ccrk.sampling_ccrk import MatchingPairs, negative_weights, positive_text_weights

FIXTURES = Path(__file__).parent.parent / "fixtures"
# At temperature 0.001 losses reach hundreds, where float32 numbers lie 3e-5 apart: hence the relative part.
HIDDEN, OUTPUT = (2e-5, 0.0), (1e-5, 1e-6)
GRADIENT = (1e-6, 1e-3)
SHORT_NAMES = {
    "word_embeddings": "ccrk.text_model.embeddings.word_embeddings.weight",
    "decoder_bias": "mlm_head.bias",
}
BASE_NAMES = [
    "image_hidden_states",
    "text_hidden_states",
    "image_embeds",
    "text_embeds",
    "fusion_hidden_states_image0",
    "itm_logits",
    "mlm_logits",
    "loss_1_to_k",
    "loss_1_to_1_first_language",
    "loss_itm",
    "loss_cmlm",
    "loss_total",
]


@dataclass
class Row:
    """One compared tensor."""

    name: str
    difference: float
    tolerance: tuple[float, float]
    ok: bool


def compare(name: str, ours: torch.Tensor, expected: torch.Tensor, tolerance: tuple[float, float]) -> Row:
    """Largest absolute difference, and whether it is within atol + rtol * |expected| everywhere."""
    ours, expected = ours.detach().double(), expected.double()
    assert ours.shape == expected.shape, f"{name}: {tuple(ours.shape)} against {tuple(expected.shape)}"
    difference = (ours - expected).abs()
    ok = bool((difference <= tolerance[0] + tolerance[1] * expected.abs()).all())
    return Row(name, float(difference.max()), tolerance, ok)


class Reference:
    """A reference set and our model with its weights."""

    def __init__(self, folder: Path):
        self.tensors = load_file(folder / "expected.safetensors")
        self.config = official_config(read_official_config(folder / "config.json"))
        self.state = read_checkpoint(folder / "ccrk_official.th")
        self.model, self.report = convert_state(self.state, self.config)
        self.batch = {name: self.tensors[name] for name in ("pixel_values", "input_ids", "attention_mask")}
        num_images, num_texts = len(self.tensors["pixel_values"]), len(self.tensors["input_ids"])
        self.languages = num_texts // num_images
        self.batch["image_index"] = torch.arange(num_texts) // self.languages
        self.batch["masked_input_ids"] = self.tensors["masked_input_ids"]
        labels = torch.full_like(self.tensors["input_ids"], -100)
        used = self.tensors["masked_labels"] != -100
        rows = torch.arange(num_texts)[:, None].expand_as(used)
        labels[rows[used], self.tensors["masked_positions"][used]] = self.tensors["masked_labels"][used]
        self.batch["mlm_labels"] = labels

    def first_languages(self, count: int) -> dict[str, torch.Tensor]:
        """The batch with the first `count` languages of each image."""
        rows = (torch.arange(len(self.batch["image_index"])) % self.languages) < count
        return {name: value if name == "pixel_values" else value[rows] for name, value in self.batch.items()}

    def gradients(self, prefix: str, expected: dict[str, torch.Tensor]) -> Iterator[Row]:
        """Our gradients against `prefix + name of the authors`."""
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        for key in sorted(expected):
            if key.startswith(prefix):
                name = key.removeprefix(prefix)
                name = SHORT_NAMES.get(name) or rename(name, self.config.num_text_layers, "ccrk.")
                yield compare(key, parameters[name].grad, expected[key], GRADIENT)


def pairs_of(tensors: dict[str, torch.Tensor], prefix: str, num_images: int, names: tuple[str, ...]) -> MatchingPairs:
    """The pinned draws of a reference as our rows."""
    return MatchingPairs(torch.arange(num_images), *(tensors[prefix + name] for name in names))


def base_rows(reference: Reference) -> Iterator[Row]:
    """`expected.safetensors`: hidden states, features, logits, losses and all gradients."""
    model, tensors, batch = reference.model, reference.tensors, reference.batch
    pairs = pairs_of(tensors, "itm_", 3, ("positive_text", "negative_image", "negative_text"))
    model.zero_grad()
    output = model(**batch, matching_pairs=pairs)
    output.loss.backward()
    with torch.no_grad():
        states = model.ccrk.fusion_model.image_states(output.image_hidden_states)
        image0 = torch.zeros(len(batch["input_ids"]), dtype=torch.long)
        text, mask = output.text_hidden_states, batch["attention_mask"]
        fused = model.ccrk.fusion_model(text, mask, states, image0)
        masked = model.mlm_hidden_states(batch["masked_input_ids"], mask, states, batch["image_index"])
        positions = tensors["masked_positions"]
        masked = masked[torch.arange(len(positions))[:, None], positions]
        ours = {
            "image_hidden_states": output.image_hidden_states,
            "text_hidden_states": text,
            "image_embeds": output.image_embeds,
            "text_embeds": output.text_embeds,
            "fusion_hidden_states_image0": fused,
            "itm_logits": model.match(**{k: batch[k] for k in ("pixel_values", "input_ids", "attention_mask")}),
            "mlm_logits": model.mlm_head(masked),
            "loss_1_to_k": output.loss_contrastive,
            "loss_1_to_1_first_language": one_to_one(output.logits_per_image[:, :: reference.languages]),
            "loss_itm": output.loss_matching,
            "loss_cmlm": output.loss_mlm,
            "loss_total": output.loss,
        }
    real = mask.bool()  # what stands in the padding is read by nobody; the authors compute it all the same, we do not
    for name in BASE_NAMES:
        mine, theirs = ours[name], tensors[name]
        if name in ("text_hidden_states", "fusion_hidden_states_image0"):
            mine, theirs = mine[real], theirs[real]
        yield compare(name, mine, theirs, HIDDEN if "hidden" in name else OUTPUT)
    yield from reference.gradients("grad.", tensors)


def model_rows(reference: Reference, ext: dict[str, torch.Tensor]) -> Iterator[Row]:
    """`model.K*` and `clamp.*`: the whole forward with the first K languages; the temperature's clamp."""
    model = reference.model
    for count in (1, 2, 4, 10):
        prefix = f"model.K{count}."
        pairs = pairs_of(ext, prefix, 3, ("positive_text", "negative_image", "negative_text"))
        model.zero_grad()
        output = model(**reference.first_languages(count), matching_pairs=pairs)
        output.loss.backward()
        losses = {"mitc": "loss_contrastive", "hitm": "loss_matching", "hmlm": "loss_mlm", "total": "loss"}
        for theirs, ours in losses.items():
            yield compare(f"{prefix}loss_{theirs}", output[ours], ext[f"{prefix}loss_{theirs}"], OUTPUT)
        norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
        yield compare(prefix + "grad_norm_total", norm, ext[prefix + "grad_norm_total"], GRADIENT)
        yield from reference.gradients(prefix + "grad.", ext)
    before = model.ccrk.temperature.detach().clone()
    for value in ("1e-05", "3.0"):
        model.ccrk.temperature.data.fill_(float(value))
        with torch.no_grad():
            output = model(**reference.first_languages(2))
        yield compare(f"clamp.{value}.temp_after", model.ccrk.temperature, ext[f"clamp.{value}.temp_after"], OUTPUT)
        loss = ext[f"clamp.{value}.loss_mitc"]
        yield compare(f"clamp.{value}.loss_mitc", output.loss_contrastive, loss, OUTPUT)
    model.ccrk.temperature.data.copy_(before)


def contrastive_rows(ext: dict[str, torch.Tensor]) -> Iterator[Row]:
    """`itc.*`, `itc1.*`, `itck_with_K1.*`: the contrastive losses on plain features."""

    def loss_and_gradients(texts: int, temperature: float, **options):
        image = ext["itc.image_feat"].clone().requires_grad_()
        text = ext["itc.text_feat"].view(6, 10, -1)[:, :texts].reshape(6 * texts, -1).clone().requires_grad_()
        temp = torch.tensor(temperature, requires_grad=True)
        logits = image @ text.t() / temp
        function = options.pop("function", one_to_k)
        if function is one_to_k:
            options["image_index"] = torch.arange(6).repeat_interleave(texts)
        loss = function(logits, **options)
        loss.backward()
        return loss, {"image_feat": image.grad, "text_feat": text.grad, "temp": temp.grad}

    for texts in (1, 2, 4, 10):
        for divisor in (-1, 0, 1, 4, 10):
            chosen = None if divisor == 0 else 1.0 if divisor < 0 else float(divisor)
            loss, gradients = loss_and_gradients(texts, 0.07, divisor=chosen)
            prefix = f"itc.K{texts}.divm{divisor}."
            yield compare(prefix + "loss", loss, ext[prefix + "loss"], OUTPUT)
            for name, gradient in gradients.items():
                for key in (k for k in ext if k.startswith(prefix + "grad.") and k.endswith(name)):
                    yield compare(key, gradient, ext[key], GRADIENT)
    for temperature in ("0.001", "0.01", "0.5"):
        key = f"itc.K4.temp{temperature}.loss"
        yield compare(key, loss_and_gradients(4, float(temperature))[0], ext[key], OUTPUT)
    for case, ids in (("noidx", None), ("idx", ext["itc1.idx"])):
        loss, gradients = loss_and_gradients(1, 0.07, function=one_to_one, image_ids=ids)
        yield compare(f"itc1.{case}.loss", loss, ext[f"itc1.{case}.loss"], OUTPUT)
        for key in (k for k in ext if k.startswith(f"itc1.{case}.grad.")):
            yield compare(key, gradients[key.rsplit(".", 1)[1]], ext[key], GRADIENT)
        loss, _ = loss_and_gradients(1, 0.07, image_ids=ids)
        yield compare(f"itck_with_K1.{case}.loss", loss, ext[f"itck_with_K1.{case}.loss"], OUTPUT)


def matching_rows(reference: Reference, ext: dict[str, torch.Tensor]) -> Iterator[Row]:
    """`mitm.*` and `mitm1.*`: sampling weights, and the loss of the pinned draws."""
    model = reference.model.ccrk
    cases = [
        (f"mitm.type{number}.", name, 10, None) for number, name in enumerate(("uniform", "probability", "similarity"))
    ]
    cases += [("mitm1.noidx.", "uniform", 1, None), ("mitm1.idx.", "uniform", 1, ext["mitm1.idx"])]
    for prefix, choice, texts, ids in cases:
        batch = reference.first_languages(texts)
        batch = {name: batch[name] for name in ("pixel_values", "input_ids", "attention_mask", "image_index")}
        with torch.no_grad():
            output = model(**batch)
            weights = positive_text_weights(output.logits_per_image, batch["image_index"], choice)
            for_images, for_texts = negative_weights(output.logits_per_image, batch["image_index"], ids)
            positive = ext.get(prefix + "positive_text", torch.arange(3))
            named = {
                "positive_weights": torch.stack([weights[b, b * texts : (b + 1) * texts] for b in range(3)]),
                "negative_image_weights": for_texts[positive],
                "negative_text_weights": for_images,
            }
            for name, value in named.items():
                if prefix + name in ext:
                    yield compare(prefix + name, value, ext[prefix + name], OUTPUT)
            pairs = MatchingPairs(
                torch.arange(3), positive, ext[prefix + "negative_image"], ext[prefix + "negative_text"]
            )
            images, rows, labels = pairs.stacked()
            states = model.fusion_model.image_states(output.image_hidden_states)
            logits = model.match_rows(states, output.text_hidden_states, batch["attention_mask"], images, rows)
            yield compare(prefix + "loss", matching_loss(logits, labels), ext[prefix + "loss"], OUTPUT)


def masked_rows(reference: Reference, ext: dict[str, torch.Tensor]) -> Iterator[Row]:
    """`cmlm.*` and `pad.*`: the masked-language loss with gradients; the same texts padded more or not at all."""
    model, batch = reference.model, reference.batch
    model.zero_grad()
    positive = ext["cmlm.positive_text"]
    for name, rows in (("cmlm.loss", positive), ("cmlm.all_texts_loss", torch.arange(len(batch["image_index"])))):
        states = model.ccrk.get_image_states(batch["pixel_values"])
        masked, mask, labels = (batch[n][rows] for n in ("masked_input_ids", "attention_mask", "mlm_labels"))
        loss = model.masked_language_loss(masked, mask, labels, states, batch["image_index"][rows])
        yield compare(name, loss, ext[name], OUTPUT)
        if name == "cmlm.loss":
            loss.backward()
            yield from reference.gradients("cmlm.grad.", ext)
    with torch.no_grad():
        states = model.ccrk.get_image_states(batch["pixel_values"])
        for length in (32, 40):
            missing = length - batch["input_ids"].shape[1]
            ids = torch.nn.functional.pad(batch["input_ids"], (0, missing), value=1)
            mask = torch.nn.functional.pad(batch["attention_mask"], (0, missing))
            text = model.get_text_features(ids, mask)
            prefix = f"pad.L{length}."
            yield compare(prefix + "text_cls", text.last_hidden_state[:, 0], ext[prefix + "text_cls"], HIDDEN)
            yield compare(prefix + "text_embeds", text.pooler_output, ext[prefix + "text_embeds"], OUTPUT)
            logits = model.match(image_states=states.select(torch.tensor([0])), input_ids=ids, attention_mask=mask)[0]
            yield compare(prefix + "itm_logits_image0", logits, ext[prefix + "itm_logits_image0"], OUTPUT)
        for row in range(4):
            key = f"pad.alone{row}.text_hidden"
            ids = batch["input_ids"][row : row + 1, : len(ext[key])]
            yield compare(key, model.ccrk.text_model(ids)[0], ext[key], HIDDEN)


def finetune_rows(reference: Reference, ext: dict[str, torch.Tensor]) -> Iterator[Row]:
    """`finetune.*`: the authors' fine-tuning model, one language, positives shared by id."""
    batch = reference.first_languages(1)
    batch = {name: batch[name] for name in ("pixel_values", "input_ids", "attention_mask", "image_index")}
    pairs = MatchingPairs(
        torch.arange(3), torch.arange(3), ext["finetune.negative_image"], ext["finetune.negative_text"]
    )
    reference.model.zero_grad()
    reference.model.config.contrastive_variant = "one-to-one"
    try:
        output = reference.model.ccrk(**batch, image_ids=ext["finetune.idx"], return_loss=True, matching_pairs=pairs)
        output.loss.backward()
    finally:
        reference.model.config.contrastive_variant = "official"
    yield compare("finetune.loss_itc", output.loss_contrastive, ext["finetune.loss_itc"], OUTPUT)
    yield compare("finetune.loss_itm", output.loss_matching, ext["finetune.loss_itm"], OUTPUT)
    yield from reference.gradients("finetune.grad.", ext)


def relpos_rows(ext: dict[str, torch.Tensor]) -> Iterator[Row]:
    """`relpos.*`: bias tables taken to larger windows."""
    for window in (12, 15):
        key = f"relpos.table7_to_{window}"
        ours = interpolate_relative_positions(ext["relpos.table7"], (2 * window - 1) ** 2)
        yield compare(key, ours, ext[key], OUTPUT)


def swin_rows(path: Path) -> Iterator[Row]:
    """A `swin_*` file: output, stage means and gradients of the image tower alone."""
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        sizes = file.metadata()
    config = CCRkVisionConfig(
        image_size=int(sizes["img_size"]),
        model_args={
            "window_size": int(sizes["window_size"]),
            "embed_dim": int(sizes["embed_dim"]),
            "depths": [int(n) for n in sizes["depths"].split(",")],
            "num_heads": [int(n) for n in sizes["num_heads"].split(",")],
        },
    )
    tower = CCRkImageTower(config).eval()
    names = {}
    for key in tensors:
        if key.startswith("state.") and not key.endswith(("relative_position_index", "attn_mask")):
            name = key.removeprefix("state.").removeprefix("vision_encoder.")
            names[name] = rename("vision_encoder." + name, 6, "").removeprefix("vision_model.")
    tower.load_state_dict({ours: tensors["state." + theirs] for theirs, ours in names.items()}, strict=True)
    means = []
    stages = tower.timm_model.layers
    for number, stage in enumerate(stages):
        # the authors merge patches at the end of a stage, so their mean of stage n is that of timm's merged input
        module = stages[number + 1].downsample if number + 1 < len(stages) else stage
        module.register_forward_hook(lambda _m, _i, output: means.append(output.flatten(1, 2).mean(1)))
    output = tower(tensors["input"].float())
    output.square().mean().backward()
    prefix = path.stem + "."
    yield compare(prefix + "output", output, tensors["output"], HIDDEN)
    for number, mean in enumerate(means):
        yield compare(f"{prefix}stage{number}_cls_mean", mean, tensors[f"stage{number}_cls_mean"], HIDDEN)
    parameters = dict(tower.named_parameters())
    for key in sorted(k for k in tensors if k.startswith("grad.")):
        name = key.removeprefix("grad.").removeprefix("vision_encoder.")
        yield compare(prefix + key, parameters[names[name]].grad, tensors[key], GRADIENT)


class Gallery:
    """In the place of a processor: hands out the pixels and tokens of the reference by number."""

    def __init__(self, ext: dict[str, torch.Tensor]):
        self.tensors = {name.removeprefix("rerank."): ext[name] for name in ext if name.startswith("rerank.")}

    def __call__(self, images=None, text=None, **kwargs) -> BatchEncoding:
        if images is not None:
            return BatchEncoding({"pixel_values": self.tensors["pixel_values"][list(images)]})
        rows = [int(number) for number in text]
        return BatchEncoding({name: self.tensors[name][rows] for name in ("input_ids", "attention_mask")})


def rerank_rows(reference: Reference, ext: dict[str, torch.Tensor]) -> Iterator[Row]:
    """`rerank.*`: the authors' two stages in both directions; -100 is what is not among the best."""
    model = reference.model.eval()
    captions = [[{"language": "en", "text": str(t)} for t in (2 * i, 2 * i + 1)] for i in range(6)]
    rows = [{"image": i, "captions": captions[i]} for i in range(6)]
    features = encode(model, Gallery(ext), rows, states=True, batch_size=4)
    similarity = features.image_embeds @ features.text_embeds.t()
    yield compare("rerank.sims_i2t", similarity, ext["rerank.sims_i2t"], OUTPUT)
    yield compare("rerank.sims_t2i", similarity.t(), ext["rerank.sims_t2i"], OUTPUT)
    for top, prefix in ((4, "rerank.scores_"), (6, "rerank.scores6_")):
        candidates = find_candidates(features, top)
        logits = matching_logits(model, features, candidates, batch_size=5)
        temperature = model.ccrk.temperature.item()
        for name, best in (("t2i", candidates.of_texts), ("i2t", candidates.of_images["en"])):
            expected = ext[prefix + name]
            scores = torch.full_like(expected, -100)
            scores.scatter_(1, torch.from_numpy(best.items), rerank_scores(best, logits, "itm", temperature))
            yield compare(prefix + name, scores, expected, OUTPUT)


EXT_GROUPS = ("model", "contrastive", "matching", "masked", "finetune", "relpos", "rerank")


def ext_rows(group: str, reference: Reference, ext: dict[str, torch.Tensor]) -> Iterator[Row]:
    """The rows of one group of `ext.safetensors`."""
    if group in ("contrastive", "relpos"):
        return {"contrastive": contrastive_rows, "relpos": relpos_rows}[group](ext)
    functions = {"model": model_rows, "matching": matching_rows, "masked": masked_rows, "finetune": finetune_rows}
    functions["rerank"] = rerank_rows
    return functions[group](reference, ext)


def check(rows: Iterator[Row]) -> None:
    """Asserts that there are rows and that all are within tolerance."""
    rows = list(rows)
    assert rows
    wrong = [f"{row.name}: {row.difference:.3g}" for row in rows if not row.ok]
    assert not wrong, "\n".join(wrong)


@pytest.fixture(scope="module")
def golden(shared) -> tuple[Reference, dict[str, torch.Tensor]]:
    folder = shared / "reference" / "golden_ext"
    return Reference(folder), load_file(folder / "ext.safetensors")


def test_official_tiny():
    check(base_rows(Reference(FIXTURES / "official_tiny")))


def test_golden_base(golden):
    check(base_rows(golden[0]))


@pytest.mark.parametrize("group", EXT_GROUPS)
def test_golden_ext(golden, group):
    check(ext_rows(group, *golden))


@pytest.mark.parametrize(("top", "metrics"), [(0, "metrics_dual"), (4, "metrics_cross"), (6, "metrics_cross_k6")])
def test_figures_of_the_authors_evaluation(golden, shared, top, metrics):
    """Their recall where it is defined: among the re-ranked, or everywhere without re-ranking."""
    reference, ext = golden
    expected = json.loads((shared / "reference" / "golden_ext" / "meta.json").read_text())["rerank"][metrics]
    rows = [{"image": i, "captions": [{"language": "en", "text": str(2 * i + j)} for j in (0, 1)]} for i in range(6)]
    options = {"rerank": top, "protocol": "official", "batch_size": 4}
    report = evaluate_retrieval(reference.model, Gallery(ext), rows, **options)
    figures = report["reranked" if top else "languages"]
    figures = (figures["languages"] if top else figures)["en"]
    defined = [k for k in (1, 5, 10) if not top or k <= top]
    assert defined
    for k in defined:
        assert 100 * figures[f"ir@{k}"] == pytest.approx(expected[f"img_r{k}"])
        assert 100 * figures[f"tr@{k}"] == pytest.approx(expected[f"txt_r{k}"])


@pytest.mark.parametrize("size", ["w4_128", "w7_224", "w8_256", "w12_384", "w15_480"])
def test_swin(shared, size):
    check(swin_rows(shared / "reference" / "golden_ext" / f"swin_{size}.safetensors"))


def main() -> int:
    """Prints the table of all tensors in Markdown; the folder of the reference sets is the first argument."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else os.environ.get("CCRK_SHARED", "../shared")) / "reference"
    golden = Reference(folder / "golden_ext")
    ext = load_file(folder / "golden_ext" / "ext.safetensors")
    sets = [("official_tiny", base_rows(Reference(FIXTURES / "official_tiny"))), ("golden_ext", base_rows(golden))]
    sets += [("golden_ext/ext", ext_rows(group, golden, ext)) for group in EXT_GROUPS]
    sets += [("golden_ext", swin_rows(path)) for path in sorted((folder / "golden_ext").glob("swin_*.safetensors"))]
    failed = total = 0
    print("| set | tensor | largest difference | allowed | within |\n| --- | --- | --- | --- | --- |")
    for name, rows in sets:
        for row in rows:
            total, failed = total + 1, failed + (not row.ok)
            allowed = f"{row.tolerance[0]:g}" + (f" + {row.tolerance[1]:g} rel" if row.tolerance[1] else "")
            print(f"| {name} | `{row.name}` | {row.difference:.2e} | {allowed} | {'yes' if row.ok else 'NO'} |")
    print(f"\n{total} tensors, {failed} outside their tolerance")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
