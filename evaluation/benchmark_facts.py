"""What is known of the published benchmarks: their languages, files, sizes, and the protocol they are reported in.

Counts are of images and captions in a language once empty captions are left out. Checksums are SHA-256 of what a file
holds, unpacked if it is packed, so a file passes as `NAME` and as `NAME.gz`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Counts:
    """How much there is in a language; None where it is not known.

    Attributes:
        images: that have a caption.
        captions: that are not empty.
    """

    images: int | None = None
    captions: int | None = None


@dataclass(frozen=True)
class Split:
    """A part of a benchmark with files of its own.

    Attributes:
        name: as it stands in the names of files.
        languages: in the order in which they are reported.
        counts: language -> what is expected in it.
    """

    name: str
    languages: tuple[str, ...]
    counts: Mapping[str, Counts] = field(default_factory=dict)


@dataclass(frozen=True)
class BenchmarkSpec:
    """A benchmark, and the protocol of its published figures.

    Attributes:
        name: what it is called by.
        title: in full.
        splits: what a user calls a split -> the split.
        formats: language, or `*` for all -> format of `ccrk.data.corpora.read_corpus`.
        files: language, or `*` -> its files within the folder of captions, with `{language}` and `{split}`, the
            captions themselves first. A pattern may hold `*`; any file may be packed, with `.gz` added.
        joined: whether the captions of all languages describe the same images, which then are one gallery. Otherwise
            each language is searched by itself.
        folds: language -> how many folds its images are cut into, whose figures are averaged.
        image_layout: what is expected in the folder of images.
        sha256: file -> checksum of its content.
        k_test: how many of the best are re-ranked.
        max_tokens: tokens that a caption is cut to.
        max_words: words that a caption is cut to before.
        reported: the figures that tables show.
        average_over: languages of the published average; none where each language is reported by itself.
        mrv_languages: languages that MRV compares; none where it is not defined.
        mrv_reason: why those, or why it is not defined.
    """

    name: str
    title: str
    splits: Mapping[str, Split]
    formats: Mapping[str, str]
    files: Mapping[str, tuple[str, ...]]
    joined: bool
    image_layout: str
    k_test: int
    max_tokens: int
    max_words: int
    reported: tuple[str, ...]
    mrv_reason: str
    average_over: tuple[str, ...] = ()
    mrv_languages: tuple[str, ...] = ()
    folds: Mapping[str, int] = field(default_factory=dict)
    sha256: Mapping[str, str] = field(default_factory=dict)

    @property
    def languages(self) -> tuple[str, ...]:
        """Languages of all splits."""
        return tuple(dict.fromkeys(tag for split in self.splits.values() for tag in split.languages))


RECALL_AT_1 = ("ir@1", "tr@1")
MEAN_RECALL = ("mean_recall",)

_XFLICKRCO_FILES = {
    "de/test.jsonl": "647785be2836736b0065199424898aeec964a5cc4b436ec26e371026e8509d87",
    "en/test.jsonl": "96f102fceef19da2d35a905a42970de88bd6d0d3d8182b05e496bb11a27ee6cd",
    "es/test.jsonl": "9b968f6df79a64a39f52f130f32f0c7581dfc25c63523334ae12eee94b23ce10",
    "id/test.jsonl": "d392e97e8ca2ff9c8a7968715ff67efabacd4a039e4134b4b8e645fa9ba7b9b2",
    "ja/test.jsonl": "b5a08a6ce93a4184b94ff94c87e34794fee828d3414b85fe2b52bb8a19689636",
    "ru/test.jsonl": "50514b959489443ccca3bb2a135333f92d46d958337a40f10e89b4135ea2690d",
    "tr/test.jsonl": "a5aff0830de3158a873992c944ae4b6782b527e405a12ef5b7c89b0b0636526b",
    "zh/test.jsonl": "393319895e096f81e376460bcd1289d2664c592b2a9b6f3bf5bdc17c51499698",
    "de/train_100.jsonl": "6c65edcab6de224a39e0081dfd5037f612fe8cb17c69a8d135c9a17cb49aa158",
    "es/train_100.jsonl": "c96738d52636e04eb2c0b754ae39f703e1b0e1a64ba376bb7f946225e9fba3b8",
    "id/train_100.jsonl": "2fa04fde9204531d1f4e07cecc524f6a4bdbab8f28e0df90a0f80967ff3fa844",
    "ja/train_100.jsonl": "c6b86ab59863abdbf2ac27a2d9b97e18d9cff4cccf4133203ec34248978b3530",
    "ru/train_100.jsonl": "4e9597bb20d8537cacc55ed5261485c04d900cd5b5de472028fbc57621de4e4b",
    "tr/train_100.jsonl": "03873e0d9e21909b88b14689b8c24d8ed9e10af55e5d34338618a67aa8c6c810",
    "zh/train_100.jsonl": "5f2ca6f83cec857f3fb9cdda171209060fb3efdf120091f23d88339ef323e477",
}

_MULTI30K_FILES = {
    "test_2016_flickr.cs": "45adb85f688de8407fddcbe1b36dca15d12aab868149b337e2576f2d6d2ff8d8",
    "test_2016_flickr.de": "4be6b5b3236b79c25475c6bb829800a7ce559e9ba7a1f6c2394fe4d40be46d16",
    "test_2016_flickr.en": "399a4382932c1aadd3ceb9bef1008d388a64c76d4ae4e9d4728c6f4301cac182",
    "test_2016_flickr.fr": "cb3160d69b002bb638e66cc7612fcd56cb0af82eadc9c142dedc438afb885ef6",
    "test_2016_flickr.txt": "871e8ecafc66fb13e044ecccf669d04a865b4c58553227df86b933f0337a1563",
    "test_2017_flickr.de": "c3078bc3b36808bf9d20eb2347ed6137016179ef59ec0d2b9b8ecc3fb2880081",
    "test_2017_flickr.en": "ce1450ddc5ab0834502579d77a170849952e15a2938b34cc503bdc25ebb4fb98",
    "test_2017_flickr.fr": "6f3764e31dac41e9455e612958bcfd4e877c5e15cd66df2c2b2be6d9bd83e5b6",
    "test_2017_flickr.txt": "7bef9b1eb747593c23a8597e830ac804d28180d1226c1d6e5bc3f08ccc561e85",
    "test_2017_mscoco.de": "58277df3c75f92f7145a11b910b553d1cf82c439249d4dc237c899609eafac22",
    "test_2017_mscoco.en": "43051fdfa86fd5395182e718a94ca67b1b227b9f7c79596ff0f6b813216981d2",
    "test_2017_mscoco.fr": "39cde3f43f32b0a6bf29ce4917a46329ff32e53070c2fac87506695a740ae0a0",
    "test_2017_mscoco.txt": "8f976b3c0beed9d96c918fb41e36178f1af11f0ff61d964592b80f932cb5c6d8",
    "test_2018_flickr.cs": "1db59fe6980c9b3f9bade65122a985e71150214837d76f4768a5a8384c0b2dc7",
    "test_2018_flickr.de": "39fcc8b3331d76fb42d648d019c6898b0d5e58baac87bc2a0bb93f44ec8db207",
    "test_2018_flickr.en": "4e585c2dd525911a6ea7730e9d0b516239af3f1b1ffae6a2130223cfb639f25e",
    "test_2018_flickr.fr": "234b4a887da0da4801a3e2c6f21336231ff7dd46daeb80cfa1b551c8bbb78239",
    "test_2018_flickr.txt": "8922c98be3e2b6866cd27d90e855214c2d9437fb9ebe406cdcde0edb786b4b95",
}

_WIT_FILES = {
    "test_ar.jsonl": "31c2b06744be65fe6d766c872a8d8e26a58d63d65b9b5e57c778a5b19db44fa5",
    "test_en.jsonl": "fb3aab705d894fbb992d767839411f72c9cb2524fee3d0cf9060a92cde4b7fae",
    "test_id.jsonl": "a957549049a5a9287bab01338e39ef30c795ce2903e25080a51fe42ac1e24e33",
    "test_ja.jsonl": "da1707d3af893e7115d8b17fd50a4bc0c3e40598caad1414666e2805ebef38d0",
    "test_tr.jsonl": "b3700378f76a17ed4263eae71216bf476f4891a09242a136db849bd6f065fc40",
}


def _alike(languages: tuple[str, ...], count: int, **other: int) -> dict[str, Counts]:
    """As many images as captions in every language, but for `other`."""
    return {tag: Counts(other.get(tag, count), other.get(tag, count)) for tag in languages}


_XFLICKRCO = ("en", "de", "es", "id", "ja", "ru", "tr", "zh")
_MULTI30K = ("en", "de", "fr", "cs")
_WIT = ("en", "ar", "bg", "da", "el", "et", "id", "ja", "ko", "tr", "vi")

BENCHMARKS: dict[str, BenchmarkSpec] = {
    "xflickrco": BenchmarkSpec(
        name="xflickrco",
        title="xFlickr&CO",
        # one German and one Indonesian caption are empty
        splits={"test": Split("test", _XFLICKRCO, _alike(_XFLICKRCO, 2000, de=1999, id=1999))},
        formats={"*": "xflickrco"},
        files={"*": ("{language}/{split}.jsonl",)},
        joined=True,
        image_layout="flickr30k-images/ and val2014/",
        sha256=_XFLICKRCO_FILES,
        k_test=128,
        max_tokens=80,
        max_words=80,
        reported=RECALL_AT_1,
        average_over=_XFLICKRCO[1:],
        mrv_languages=("en", "de", "ja", "zh"),
        mrv_reason="the four languages of the authors' script",
    ),
    "wit": BenchmarkSpec(
        name="wit",
        title="WIT as IGLUE has it",
        splits={
            "test": Split(
                "test",
                _WIT,
                {
                    "ar": Counts(792, 890),
                    "en": Counts(685, 1000),
                    "id": Counts(853, 900),  # one caption is empty, the only one of its image
                    "ja": Counts(842, 1000),
                    "tr": Counts(681, 721),
                },
            )
        },
        formats={"*": "wit"},
        files={"*": ("{split}_{language}.jsonl",)},
        joined=False,
        image_layout="images named by the MD5 or SHA-256 of their URL or by its last part, or as names= says",
        sha256=_WIT_FILES,
        k_test=128,
        max_tokens=80,
        max_words=80,
        reported=RECALL_AT_1,
        average_over=_WIT[1:],
        mrv_reason="each language has images of its own, so there is no rank of one image in several languages",
    ),
    "multi30k": BenchmarkSpec(
        name="multi30k",
        title="Multi30K",
        splits={
            "2016": Split("test_2016_flickr", _MULTI30K, _alike(_MULTI30K, 1000)),
            "2017": Split("test_2017_flickr", _MULTI30K[:3], _alike(_MULTI30K[:3], 1000)),
            "2017_mscoco": Split("test_2017_mscoco", _MULTI30K[:3], _alike(_MULTI30K[:3], 461)),
            "2018": Split("test_2018_flickr", _MULTI30K, _alike(_MULTI30K, 1071)),
        },
        formats={"*": "multi30k"},
        files={"*": ("{split}.{language}", "{split}.txt")},
        joined=True,
        image_layout="the images, or flickr30k-images/, train2014/ and val2014/",
        sha256=_MULTI30K_FILES,
        k_test=128,
        max_tokens=40,
        max_words=30,
        reported=MEAN_RECALL,
        mrv_languages=_MULTI30K,
        mrv_reason="the four languages of the published table; the years without Czech have none",
    ),
    "coco": BenchmarkSpec(
        name="coco",
        title="COCO: Karpathy's test split, YJCaptions, COCO-CN",
        splits={"test": Split("test", ("en", "ja", "zh"), {"en": Counts(images=5000)})},
        formats={"en": "karpathy", "ja": "yjcaptions", "zh": "coco-cn"},
        files={
            "en": ("dataset_coco.json",),
            "ja": ("*yjcaptions*.json", "yjcaptions_{split}.txt|dataset_coco.json"),
            "zh": ("imageid.human-written-caption.txt", "coco-cn_{split}.txt"),
        },
        joined=False,
        folds={"en": 5, "ja": 5},
        image_layout="train2014/ and val2014/",
        k_test=256,
        max_tokens=40,
        max_words=30,
        reported=MEAN_RECALL,
        mrv_reason="the captions of each language come from another source, on other images",
    ),
}
