from __future__ import annotations

import PIL.Image
import pytest
import torch
from transformers import AutoProcessor, AutoTokenizer, XLMRobertaTokenizer

from ccrk import CCRkConfig, CCRkImageProcessor, CCRkProcessor
from ccrk.processing_ccrk import clean_caption


@pytest.fixture(scope="module")
def tokenizer() -> XLMRobertaTokenizer:
    """An XLM-R tokenizer of a few words; everything else falls into single letters."""
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:!?'-/<>"
    pieces = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    pieces += [(word, -1.0) for word in ("▁a", "▁dog", "▁ein", "▁Hund", "▁hund", "▁in", "▁snow", "▁query")]
    pieces += [(letter, -10.0) for letter in "▁" + letters if letter not in dict(pieces)] + [("<mask>", 0.0)]
    return XLMRobertaTokenizer(vocab=pieces)


@pytest.fixture
def processor(tokenizer) -> CCRkProcessor:
    return CCRkProcessor(CCRkImageProcessor(size={"height": 32, "width": 32}), tokenizer)


def photos(count: int) -> list[PIL.Image.Image]:
    return [PIL.Image.new("RGB", (20, 10), (20 * row, 0, 0)) for row in range(count)]


# --- clean-up -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("caption", "cleaned"),
    [
        ("Two dogs (brown/white) run; it's FAST!", "two dogs brown white run it s fast"),
        ("  A\tman\n on a  well-known  bike. ", "a man on a well known bike"),
        ('"<person>" waves: #1 ~ *hi*', "person waves 1 hi"),
        ("Ein Mädchen läuft über die Straße.", "ein mädchen läuft über die straße"),
        ("L'homme s'élance à vélo, déjà !", "l homme s élance à vélo déjà"),
        ("Žluťoučký KŮŇ skáče přes potok.", "žluťoučký kůň skáče přes potok"),
        # Python lowers the dotted capital I to i with a dot above, as the authors' code does
        ("İki IŞIK, bir ağaç", "i\u0307ki işik bir ağaç"),
        ("Собака бежит по СНЕГУ!", "собака бежит по снегу"),
        # only ASCII marks go: those of other scripts stay
        ("一只狗在雪地里奔跑。", "一只狗在雪地里奔跑。"),
        ("两个男孩, 一个球!", "两个男孩 一个球"),
        ("雪の中を走る犬、二匹。", "雪の中を走る犬、二匹。"),
        ("كلب يركض في الثلج.", "كلب يركض في الثلج"),
        ("هل ترى الكلب؟", "هل ترى الكلب؟"),
        ("สุนัขวิ่งในหิมะ", "สุนัขวิ่งในหิมะ"),
        ("...!?", ""),
    ],
)
def test_clean_up(caption, cleaned):
    assert clean_caption(caption) == cleaned


def test_max_words():
    assert clean_caption("One, two three-four five", max_words=4) == "one two three four"
    assert clean_caption("one two", max_words=30) == "one two"
    # without spaces a text is one word
    assert clean_caption("一只狗在雪地里奔跑", max_words=1) == "一只狗在雪地里奔跑"


def test_clean_up_is_an_option(processor):
    assert processor.prepare_text("  A Dog, in snow.  ") == "A Dog, in snow."
    processor.clean_text = True
    assert processor.prepare_text("  A Dog, in snow.  ") == "a dog in snow"
    processor.max_words = 2
    assert processor.prepare_text("  A Dog, in snow.  ") == "a dog"


@pytest.mark.parametrize("text", ["", "   ", "\n\t", "\x00\x01\x7f\x85"])
def test_empty_texts(text, processor):
    for clean in (False, True):
        processor.clean_text = clean
        with pytest.raises(ValueError, match="text 1 is empty"):
            processor(text=["a dog", text])


def test_empty_after_clean_up(processor):
    assert processor.prepare_text("?!") == "?!"
    processor.clean_text = True
    with pytest.raises(ValueError, match=r"caption 1 of image 1 is empty after clean-up: '\?!'"):
        processor(text=[["a dog"], ["a dog", "?!"]])


def test_control_characters_become_spaces(processor):
    assert processor.prepare_text("a\x00dog\x1bin\x7fsnow") == "a dog in snow"
    # joiners and direction marks belong to the scripts that use them
    assert processor.prepare_text("می\u200cخواهم") == "می\u200cخواهم"


def test_prefix(processor, tokenizer):
    processor.text_prefix = "query: "
    assert processor.prepare_text(" a dog ") == "query: a dog"
    assert processor(text="a dog")["input_ids"] == tokenizer(["query: a dog"])["input_ids"]
    processor.clean_text = True
    assert processor.prepare_text("A dog!") == "query: a dog"


# --- batches ------------------------------------------------------------------------------------------------------


def test_ragged_captions(processor, tokenizer):
    batch = processor(images=photos(3), text=[["a dog", "ein Hund"], [], ["snow"]], return_tensors="pt")
    assert set(batch) == {"pixel_values", "input_ids", "attention_mask", "image_index"}
    assert batch["image_index"].tolist() == [0, 0, 2] and batch["image_index"].dtype == torch.long
    assert batch["pixel_values"].shape == (3, 3, 32, 32)
    a, dog, ein, hund, snow = tokenizer.convert_tokens_to_ids(["▁a", "▁dog", "▁ein", "▁Hund", "▁snow"])
    assert batch["input_ids"].tolist() == [[0, a, dog, 2], [0, ein, hund, 2], [0, snow, 2, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 0]]


def test_flat_texts_are_queries(processor):
    batch = processor(text=["a dog", "snow"], return_tensors="pt")
    assert set(batch) == {"input_ids", "attention_mask"} and batch["input_ids"].shape == (2, 4)
    one = processor(text="a dog", return_tensors="pt")
    assert one["input_ids"].tolist() == batch["input_ids"][:1].tolist()
    assert set(processor(images=photos(1)[0], text="a dog", return_tensors="pt")) == {"pixel_values", *one}


def test_images_alone(processor):
    for images in (photos(1)[0], photos(1)):
        batch = processor(images=images, return_tensors="pt")
        assert set(batch) == {"pixel_values"} and batch["pixel_values"].shape == (1, 3, 32, 32)


def test_plain_lists_without_return_tensors(processor):
    batch = processor(text=[["a dog"], ["snow", "a"]])
    assert batch["image_index"] == [0, 1, 1]
    assert isinstance(batch["input_ids"], list)


def test_a_batch_goes_into_a_model(processor, tiny_model):
    from ccrk import CCRkForPreTraining

    size = len(processor.tokenizer)
    model = tiny_model(CCRkForPreTraining, mlm_weight=0, text_config={"vocab_size": size})
    batch = processor(images=photos(2), text=[["a dog", "ein Hund"], ["snow"]], return_tensors="pt")
    assert model(**batch).loss.isfinite()
    assert set(processor.model_input_names) == set(batch)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "give images, text or both"),
        ({"text": []}, ValueError, "text must be a string, a list.* not empty"),
        ({"text": [[], []]}, ValueError, "none of the images has a caption"),
        ({"text": 7}, ValueError, "text must be a string"),
        ({"text": ["a dog", ["snow"]]}, ValueError, "text mixes strings and lists"),
        ({"text": ["a dog", None]}, TypeError, "text 1 is NoneType, not a string"),
        ({"text": [["a dog"], ["snow", 3]]}, TypeError, "caption 1 of image 1 is int, not a string"),
        ({"text": [["a dog"]], "images": photos(2)}, ValueError, "2 images but captions for 1"),
        ({"text": [["a"], ["a"], ["a"]], "images": photos(2)}, ValueError, "2 images but captions for 3"),
    ],
)
def test_wrong_inputs(arguments, error, message, processor):
    with pytest.raises(error, match=message):
        processor(**arguments)


# --- length -------------------------------------------------------------------------------------------------------


def test_long_captions_are_cut(processor, monkeypatch):
    caption = "a dog in snow " * 2500
    processor.max_length = 40
    batch = processor(text=[caption, "a dog"], return_tensors="pt")
    assert batch["input_ids"].shape == (2, 40)
    assert batch["input_ids"][0, 0] == 0 and batch["input_ids"][0, -1] == 2
    assert batch["attention_mask"][0].all() and batch["attention_mask"][1].sum() == 4
    assert processor(text=caption, max_length=16, return_tensors="pt")["input_ids"].shape == (1, 16)
    assert len(processor(text=caption, truncation=False)["input_ids"][0]) == 10_002
    assert processor(text="a dog", padding="max_length", return_tensors="pt")["input_ids"].shape == (1, 40)
    monkeypatch.setattr(processor.tokenizer, "model_max_length", 16)
    assert processor(text=caption, return_tensors="pt")["input_ids"].shape == (1, 16)


def test_the_length_of_earlier_use_is_not_that_of_a_saved_processor(processor, tmp_path):
    caption = "a dog in snow " * 20
    processor.max_length = 12
    assert processor(text=caption, return_tensors="pt")["input_ids"].shape == (1, 12)
    processor.max_length = 40
    processor.save_pretrained(tmp_path)  # the tokenizer's file still says 12
    again = CCRkProcessor.from_pretrained(tmp_path)
    assert again(text=caption, return_tensors="pt")["input_ids"].shape == (1, 40)


def authors_ids(tokenizer, text: str, max_tokens: int = 40) -> list[int]:
    """`<s>` and the first 39 pieces, cut to 39 in all, then `</s>`."""
    pieces = ["<s>", *tokenizer.tokenize(text)[: max_tokens - 1]][: max_tokens - 1] + ["</s>"]
    return tokenizer.convert_tokens_to_ids(pieces)


@pytest.mark.parametrize("length", [1, 37, 38, 39, 40, 100])
def test_truncation_is_the_authors(length, processor, tokenizer):
    processor.max_length = 40
    text = " ".join(["dog", "snow", "in"][number % 3] for number in range(length))
    ids = processor(text=text)["input_ids"][0]
    assert ids == authors_ids(tokenizer, text)
    assert len(ids) == min(length, 38) + 2


def test_truncation_of_real_captions_is_the_authors(shared):
    folder = shared / "weights" / "multilingual-e5-small-pruned"
    real = AutoTokenizer.from_pretrained(folder)
    processor = CCRkProcessor(CCRkImageProcessor(), real, clean_text=True, max_words=40, max_length=40)
    captions = [
        "A brown dog and a white dog run through deep snow.",
        "Ein Mann in einem blauen Hemd steht auf einer Leiter und putzt ein Fenster. " * 4,
        "一个穿着红色衣服的小女孩在公园里和她的狗一起跑步,旁边有很多人在看着他们。" * 3,
        "Hnědý pes běží po zelené trávě s míčkem v tlamě a za ním běží druhý pes. " * 3,
    ]
    lengths = []
    for caption in captions:
        ids = processor(text=caption)["input_ids"][0]
        assert ids == authors_ids(real, clean_caption(caption, 40))
        lengths.append(len(ids))
    assert lengths[0] < 40 and max(lengths) == 40


# --- saving -------------------------------------------------------------------------------------------------------


def test_all_options_are_saved(tokenizer, tmp_path):
    options = {"clean_text": True, "max_words": 30, "max_length": 12, "text_prefix": "query: "}
    processor = CCRkProcessor(CCRkImageProcessor(size={"height": 48, "width": 48}), tokenizer, **options)
    processor.save_pretrained(tmp_path)
    CCRkConfig().save_pretrained(tmp_path)
    texts = [["A DOG, in snow!" * 5], ["snow"]]
    expected = processor(images=photos(2), text=texts, return_tensors="pt")
    assert expected["input_ids"].shape[1] == 12
    for loader in (CCRkProcessor, AutoProcessor):
        loaded = loader.from_pretrained(tmp_path)
        assert isinstance(loaded, CCRkProcessor)
        assert {name: getattr(loaded, name) for name in options} == options
        assert isinstance(loaded.image_processor, CCRkImageProcessor)
        batch = loaded(images=photos(2), text=texts, return_tensors="pt")
        assert batch.keys() == expected.keys()
        assert all(torch.equal(batch[name], expected[name]) for name in expected)
