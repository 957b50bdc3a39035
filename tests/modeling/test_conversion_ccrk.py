from __future__ import annotations

import collections
import json
import runpy
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForPreTraining

from ccrk import CCRkConfig, CCRkForPreTraining, CCRkModel
from ccrk.conversion_ccrk import (
    DERIVED,
    PAPER_LAYOUT,
    convert_state,
    guess_layout,
    official_config,
    read_checkpoint,
    read_official_config,
    rename,
    resolve_checkpoint,
)

TABLE = "vision_encoder.layers.0.blocks.0.attn.relative_position_bias_table"


@pytest.fixture
def official(fixtures_dir) -> tuple[dict[str, torch.Tensor], CCRkConfig]:
    folder = fixtures_dir / "official_tiny"
    return read_checkpoint(folder / "ccrk_official.th"), official_config(read_official_config(folder / "config.json"))


def finetuning(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The layout of a fine-tuned checkpoint: no language head, no `bert.`."""
    kept = {name: value for name, value in state.items() if ".cls." not in name}
    return {name.replace("text_encoder.bert.", "text_encoder."): value for name, value in kept.items()}


def test_both_layouts_give_the_same_model(official, tiny_batch):
    state, config = official
    pretraining, first = convert_state(state, config)
    retriever, second = convert_state(finetuning(state), config)
    assert (type(pretraining), first.layout) == (CCRkForPreTraining, "pretraining")
    assert (type(retriever), second.layout) == (CCRkModel, "finetuning")
    assert not pretraining.training and not retriever.training
    batch = tiny_batch(size=128)
    with torch.no_grad():
        ours, theirs = pretraining(**batch, return_loss=False), retriever(**batch)
    assert torch.equal(ours.logits_per_image, theirs.logits_per_image)
    assert first.converted - second.converted == 7
    derived = [name for name in state if DERIVED.search(name)]
    assert first.derived == derived and first.unused == []
    assert first.converted + len(derived) == len(state)


@pytest.mark.parametrize("wrapped", [True, False])
def test_weights_bare_or_under_model(wrapped, official, tmp_path):
    state, config = official
    torch.save({"model": state, "epoch": 3} if wrapped else state, tmp_path / "weights.th")
    model, report = convert_state(read_checkpoint(tmp_path / "weights.th"), config)
    assert report.converted == convert_state(state, config)[1].converted
    assert torch.equal(model.ccrk.temperature, state["temp"])


def test_the_format_from_before_torch_1_6(official, tmp_path):
    state, config = official
    torch.save({"model": state}, tmp_path / "old.th", _use_new_zipfile_serialization=False)
    read = read_checkpoint(tmp_path / "old.th")
    assert read.keys() == state.keys() and all(torch.equal(read[name], state[name]) for name in state)


def test_the_unused_head_is_reported(official):
    state, config = official
    extra = {f"bbox_head.{name}": torch.zeros(2) for name in ("0.weight", "1.bias", "3.weight")}
    _, report = convert_state({**state, **extra}, config)
    assert report.unused == list(extra)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("temp"), "1 problems.*missing: ccrk.temperature"),
        (lambda s: s.pop("vision_encoder.norm.weight"), "missing: ccrk.vision_model.timm_model.norm.weight"),
        (lambda s: s.update(extra=torch.zeros(3)), r"unexpected: extra \(3,\)"),
        (lambda s: s.update({"vision_encoder.head.weight": torch.zeros(1)}), "unexpected: vision_encoder.head.weight"),
        (
            lambda s: s.update({"text_proj.bias": torch.zeros(9)}),
            r"1 problems.*text_proj.bias is \(9,\), expected \(16,\)",
        ),
        (lambda s: s.update({"temp": torch.tensor(float("nan"))}), "1 problems.*not finite: temp"),
        (lambda s: s.update({"itm_head.3.bias": torch.tensor([1.0, float("inf")])}), "not finite: itm_head.3.bias"),
        (lambda s: s.update({"itm_head.3.bias": torch.tensor([1, 2])}), "wrong type: itm_head.3.bias is torch.int64"),
        (
            lambda s: s.update({"text_encoder.cls.predictions.decoder.bias": torch.ones(600)}),
            "not tied: mlm_head.decoder.bias differs from mlm_head.bias",
        ),
    ],
)
def test_what_is_wrong_with_a_checkpoint_is_listed(change, message, official):
    state, config = official
    state = dict(state)
    change(state)
    with pytest.raises(ValueError, match="(?s)does not fit the configuration .*" + message):
        convert_state(state, config)


def test_long_lists_are_cut(official):
    state, config = official
    renamed = {f"other.{name}": value for name, value in state.items() if not DERIVED.search(name)}
    with pytest.raises(ValueError, match=r"and \d+ more"):
        convert_state(renamed, config)


def test_a_table_of_another_window(official):
    state, config = official
    with pytest.raises(ValueError, match=r"relative_position_bias_table is \(169, 1\), expected \(49, 1\)"):
        convert_state({**state, TABLE: torch.zeros(169, 1)}, config)


class Planted:
    """What a malicious file would hold: an object that runs something when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (exec, (f"open({str(self.path)!r}, 'w').close()",))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_would_run_something_is_refused(zipped, tmp_path):
    proof = tmp_path / "ran"
    content = {"model": {"temp": torch.tensor(0.1)}, "extra": Planted(proof)}
    torch.save(content, tmp_path / "evil.th", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match="evil.th' is not a torch checkpoint that can be read safely"):
        read_checkpoint(tmp_path / "evil.th")
    assert not proof.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (b"epoch 29, loss 0.31\n" * 50, "is not a torch checkpoint.*truncated, or another kind"),
        (b"PK\x03\x04", "is not a torch checkpoint"),
    ],
)
def test_files_that_are_something_else(content, message, tmp_path):
    (tmp_path / "bad.th").write_bytes(content)
    with pytest.raises(ValueError, match=f"bad.th' {message}"):
        read_checkpoint(tmp_path / "bad.th")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_file(share, fixtures_dir, tmp_path):
    whole = (fixtures_dir / "official_tiny" / "ccrk_official.th").read_bytes()
    (tmp_path / "cut.th").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match="cut.th' is not a torch checkpoint.*truncated"):
        read_checkpoint(tmp_path / "cut.th")


@pytest.mark.parametrize("content", [torch.zeros(3), {"model": [1, 2]}, {"model": {}}, {"epoch": 3}, [torch.zeros(1)]])
def test_files_without_named_tensors(content, tmp_path):
    torch.save(content, tmp_path / "other.th")
    with pytest.raises(ValueError, match="other.th' holds no named tensors"):
        read_checkpoint(tmp_path / "other.th")


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint file '.*gone.th'"):
        read_checkpoint(tmp_path / "gone.th")
    with pytest.raises(FileNotFoundError, match="no checkpoint file"):
        read_checkpoint(tmp_path)
    with pytest.raises(OSError, match="'weights.th' cannot be fetched from 'somebody/ccrk'"):
        resolve_checkpoint("somebody/ccrk:weights.th")
    assert resolve_checkpoint(str(tmp_path)) == tmp_path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"image_size": 224, "colour": "red"}', "unknown fields: colour; known are image_size"),
        ("image_size: 224", "is not a JSON file"),
        ("[224]", "not an object"),
        ("", "is not a JSON file"),
    ],
)
def test_wrong_configurations(text, message, tmp_path):
    (tmp_path / "sizes.json").write_text(text)
    with pytest.raises(ValueError, match=f"sizes.json' .*{message}"):
        read_official_config(tmp_path / "sizes.json")


def test_configurations(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone.json"):
        read_official_config(tmp_path / "gone.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is not a JSON file"):
        read_official_config(tmp_path / "binary.json")
    (tmp_path / "part.json").write_text(json.dumps({"image_size": 384, "swin_window_size": 12, "mask_token_id": 5}))
    assert read_official_config(tmp_path / "part.json") == {**PAPER_LAYOUT, "image_size": 384, "swin_window_size": 12}


def test_the_papers_layout_is_the_default_configuration():
    ours, default = official_config(PAPER_LAYOUT).to_dict(), CCRkConfig().to_dict()
    assert ours == {**default, "contrastive_variant": "official"}  # the one choice that is not the authors'
    assert guess_layout({}) == PAPER_LAYOUT
    assert guess_layout({TABLE: torch.zeros(169, 4)})["image_size"] == 224
    large = guess_layout({TABLE: torch.zeros(529, 4)})
    assert (large["image_size"], large["swin_window_size"]) == (384, 12)


def test_a_converted_model_is_saved_and_loaded(official, tiny_batch, tmp_path):
    model, _ = convert_state(*official)
    model.save_pretrained(tmp_path)
    batch = tiny_batch(size=128)
    with torch.no_grad():
        expected = model(**batch, return_loss=False).logits_per_image
        assert torch.equal(AutoModel.from_pretrained(tmp_path)(**batch).logits_per_image, expected)
    loaded = AutoModelForPreTraining.from_pretrained(tmp_path)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_a_converted_model_can_be_trained(official, masked_batch, tmp_path, fixtures_dir):
    """Its weights are mapped from the file: training must neither fail nor write there."""
    shutil.copy(fixtures_dir / "official_tiny" / "ccrk_official.th", tmp_path / "copy.th")
    before = (tmp_path / "copy.th").read_bytes()
    model, _ = convert_state(read_checkpoint(tmp_path / "copy.th"), official[1])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()(**masked_batch(size=128)).loss.backward()
    optimizer.step()
    assert not torch.equal(model.ccrk.visual_projection[0].weight, official[0]["vision_proj.weight"])
    assert (tmp_path / "copy.th").read_bytes() == before


# --- the paper's size ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def paper_model() -> CCRkForPreTraining:
    with torch.device("meta"):
        return CCRkForPreTraining(CCRkConfig())


def test_number_of_parameters(paper_model):
    assert sum(p.numel() for p in paper_model.parameters()) == 523_565_901
    with torch.device("meta"):
        larger = CCRkModel(CCRkConfig(image_size=384))
    # the fine-tuned model has larger bias tables and no language head
    assert sum(p.numel() for p in larger.parameters()) == 522_399_611


def keymap_sections(path) -> dict[str, dict[str, tuple[int, ...]]]:
    """Names and shapes of the authors' state dicts, by part."""
    sections: dict[str, dict[str, tuple[int, ...]]] = {}
    for line in path.read_text().splitlines():
        if line.startswith("##"):
            current = sections.setdefault(line, {})
        elif line.strip():
            name, rest = line.split(" ", 1)
            shape = rest[: rest.rindex(")")].strip("(").split(",")
            current[name] = tuple(int(n) for n in shape if n.strip())
    return sections


@pytest.mark.parametrize("layout", ["pretraining", "finetuning"])
def test_every_key_of_the_authors_has_one_place(layout, paper_model, shared):
    heads = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "paper_size.py"))["HEADS"]
    sections = list(keymap_sections(shared / "reference" / "ccrk_keymap.txt").values())
    assert [len(section) for section in sections] == [362, 362, 265, 258]
    if layout == "pretraining":
        names, model, prefix = {**sections[0], **sections[2], **heads}, paper_model, "ccrk."
    else:
        names, prefix = {**sections[1], **sections[3], **heads}, ""
        with torch.device("meta"):
            model = CCRkModel(CCRkConfig(image_size=384))
    places = {name: rename(name, 6, prefix) for name in names if not DERIVED.search(name)}
    assert [name for name, count in collections.Counter(places.values()).items() if count > 1] == []
    targets = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert set(places.values()) == set(targets)
    for name, place in places.items():
        assert targets[place] == names[name], name
