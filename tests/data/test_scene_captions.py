"""Captions of generated scenes against sentences written by hand in each of the ten languages."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest

from ccrk.data.scene_captions import LANGUAGES, describe, variants
from ccrk.data.scenes import COLORS, SHAPES, Group, Scene, sample_scenes, twins


def scene(words: str) -> Scene:
    """Reads "1 red circle left 2 orange square"."""
    parts = words.split()
    groups = tuple(Group(parts[i + 2], parts[i + 1], int(parts[i])) for i in range(0, len(parts), 4))
    return Scene(groups, parts[3] if len(parts) > 3 else None)


# Every shape, colour and count occurs on both sides, in singular and plural; all four relations occur.
PHRASES: dict[str, dict[str, str]] = {
    "1 red circle left 2 orange square": {
        "en": "a red circle to the left of two orange squares",
        "de": "ein roter Kreis links von zwei orangefarbenen Quadraten",
        "fr": "un cercle rouge à gauche de deux carrés orange",
        "es": "un círculo rojo a la izquierda de dos cuadrados naranjas",
        "cs": "červený kruh vlevo od dvou oranžových čtverců",
        "ru": "красный круг слева от двух оранжевых квадратов",
        "tr": "iki turuncu karenin solunda kırmızı bir daire",
        "id": "sebuah lingkaran merah di sebelah kiri dua persegi oranye",
        "zh": "两个橙色的正方形左边的一个红色的圆形",
        "ja": "二つのオレンジ色の正方形の左にある赤い丸",
    },
    "2 yellow triangle right 3 green star": {
        "en": "two yellow triangles to the right of three green stars",
        "de": "zwei gelbe Dreiecke rechts von drei grünen Sternen",
        "fr": "deux triangles jaunes à droite de trois étoiles vertes",
        "es": "dos triángulos amarillos a la derecha de tres estrellas verdes",
        "cs": "dva žluté trojúhelníky vpravo od tří zelených hvězd",
        "ru": "два жёлтых треугольника справа от трёх зелёных звёзд",
        "tr": "üç yeşil yıldızın sağında iki sarı üçgen",
        "id": "dua segitiga kuning di sebelah kanan tiga bintang hijau",
        "zh": "三颗绿色的星星右边的两个黄色的三角形",
        "ja": "三つの緑色の星の右にある二つの黄色い三角形",
    },
    "3 blue heart above 1 purple cross": {
        "en": "three blue hearts above a purple cross",
        "de": "drei blaue Herzen über einem violetten Kreuz",
        "fr": "trois cœurs bleus au-dessus d'une croix violette",
        "es": "tres corazones azules encima de una cruz morada",
        "cs": "tři modrá srdce nad fialovým křížem",
        "ru": "три синих сердца над фиолетовым крестом",
        "tr": "mor bir haçın üstünde üç mavi kalp",
        "id": "tiga hati biru di atas sebuah salib ungu",
        "zh": "一个紫色的十字上方的三颗蓝色的爱心",
        "ja": "紫色の十字の上にある三つの青いハート",
    },
    "1 pink moon below 2 black flower": {
        "en": "a pink moon below two black flowers",
        "de": "ein rosa Mond unter zwei schwarzen Blumen",
        "fr": "une lune rose en dessous de deux fleurs noires",
        "es": "una luna rosa debajo de dos flores negras",
        "cs": "růžový půlměsíc pod dvěma černými květinami",
        "ru": "розовая луна под двумя чёрными цветками",
        "tr": "iki siyah çiçeğin altında pembe bir hilal",
        "id": "sebuah bulan sabit merah muda di bawah dua bunga hitam",
        "zh": "两朵黑色的花下方的一个粉色的月亮",
        "ja": "二輪の黒い花の下にあるピンク色の三日月",
    },
    "2 red flower left 1 yellow triangle": {
        "en": "two red flowers to the left of a yellow triangle",
        "de": "zwei rote Blumen links von einem gelben Dreieck",
        "fr": "deux fleurs rouges à gauche d'un triangle jaune",
        "es": "dos flores rojas a la izquierda de un triángulo amarillo",
        "cs": "dvě červené květiny vlevo od žlutého trojúhelníku",
        "ru": "два красных цветка слева от жёлтого треугольника",
        "tr": "sarı bir üçgenin solunda iki kırmızı çiçek",
        "id": "dua bunga merah di sebelah kiri sebuah segitiga kuning",
        "zh": "一个黄色的三角形左边的两朵红色的花",
        "ja": "黄色い三角形の左にある二輪の赤い花",
    },
    "3 orange square right 1 blue heart": {
        "en": "three orange squares to the right of a blue heart",
        "de": "drei orangefarbene Quadrate rechts von einem blauen Herzen",
        "fr": "trois carrés orange à droite d'un cœur bleu",
        "es": "tres cuadrados naranjas a la derecha de un corazón azul",
        "cs": "tři oranžové čtverce vpravo od modrého srdce",
        "ru": "три оранжевых квадрата справа от синего сердца",
        "tr": "mavi bir kalbin sağında üç turuncu kare",
        "id": "tiga persegi oranye di sebelah kanan sebuah hati biru",
        "zh": "一颗蓝色的爱心右边的三个橙色的正方形",
        "ja": "青いハートの右にある三つのオレンジ色の正方形",
    },
    "1 green star above 3 black circle": {
        "en": "a green star above three black circles",
        "de": "ein grüner Stern über drei schwarzen Kreisen",
        "fr": "une étoile verte au-dessus de trois cercles noirs",
        "es": "una estrella verde encima de tres círculos negros",
        "cs": "zelená hvězda nad třemi černými kruhy",
        "ru": "зелёная звезда над тремя чёрными кругами",
        "tr": "üç siyah dairenin üstünde yeşil bir yıldız",
        "id": "sebuah bintang hijau di atas tiga lingkaran hitam",
        "zh": "三个黑色的圆形上方的一颗绿色的星星",
        "ja": "三つの黒い丸の上にある緑色の星",
    },
    "2 purple cross below 3 pink moon": {
        "en": "two purple crosses below three pink moons",
        "de": "zwei violette Kreuze unter drei rosa Monden",
        "fr": "deux croix violettes en dessous de trois lunes roses",
        "es": "dos cruces moradas debajo de tres lunas rosas",
        "cs": "dva fialové kříže pod třemi růžovými půlměsíci",
        "ru": "два фиолетовых креста под тремя розовыми лунами",
        "tr": "üç pembe hilalin altında iki mor haç",
        "id": "dua salib ungu di bawah tiga bulan sabit merah muda",
        "zh": "三个粉色的月亮下方的两个紫色的十字",
        "ja": "三つのピンク色の三日月の下にある二つの紫色の十字",
    },
    "1 blue flower left 1 pink star": {
        "en": "a blue flower to the left of a pink star",
        "de": "eine blaue Blume links von einem rosa Stern",
        "fr": "une fleur bleue à gauche d'une étoile rose",
        "es": "una flor azul a la izquierda de una estrella rosa",
        "cs": "modrá květina vlevo od růžové hvězdy",
        "ru": "синий цветок слева от розовой звезды",
        "tr": "pembe bir yıldızın solunda mavi bir çiçek",
        "id": "sekuntum bunga biru di sebelah kiri sebuah bintang merah muda",
        "zh": "一颗粉色的星星左边的一朵蓝色的花",
        "ja": "ピンク色の星の左にある青い花",
    },
    "1 orange heart right 1 blue moon": {
        "en": "an orange heart to the right of a blue moon",
        "de": "ein orangefarbenes Herz rechts von einem blauen Mond",
        "fr": "un cœur orange à droite d'une lune bleue",
        "es": "un corazón naranja a la derecha de una luna azul",
        "cs": "oranžové srdce vpravo od modrého půlměsíce",
        "ru": "оранжевое сердце справа от синей луны",
        "tr": "mavi bir hilalin sağında turuncu bir kalp",
        "id": "sebuah hati oranye di sebelah kanan sebuah bulan sabit biru",
        "zh": "一个蓝色的月亮右边的一颗橙色的爱心",
        "ja": "青い三日月の右にあるオレンジ色のハート",
    },
    "2 green circle below 1 black square": {
        "en": "two green circles below a black square",
        "de": "zwei grüne Kreise unter einem schwarzen Quadrat",
        "fr": "deux cercles verts en dessous d'un carré noir",
        "es": "dos círculos verdes debajo de un cuadrado negro",
        "cs": "dva zelené kruhy pod černým čtvercem",
        "ru": "два зелёных круга под чёрным квадратом",
        "tr": "siyah bir karenin altında iki yeşil daire",
        "id": "dua lingkaran hijau di bawah sebuah persegi hitam",
        "zh": "一个黑色的正方形下方的两个绿色的圆形",
        "ja": "黒い正方形の下にある二つの緑色の丸",
    },
}

# The other sentences, with the cases that only they need.
SENTENCES: list[tuple[str, str, str]] = [
    ("en", "1 red star", "There is a red star."),
    ("en", "2 red star", "There are two red stars."),
    ("en", "1 orange cross above 2 pink flower", "at the top an orange cross, at the bottom two pink flowers"),
    ("en", "1 orange cross above 2 pink flower", "A picture of two pink flowers below an orange cross."),
    ("de", "1 red circle", "Man sieht einen roten Kreis."),
    ("de", "1 red flower", "Man sieht eine rote Blume."),
    ("de", "1 green square", "Ein Bild mit einem grünen Quadrat."),
    ("de", "1 blue flower", "Ein Bild mit einer blauen Blume."),
    ("de", "3 black heart", "Ein Bild mit drei schwarzen Herzen."),
    ("de", "1 blue flower left 2 red moon", "Auf dem Bild ist eine blaue Blume links von zwei roten Monden zu sehen."),
    (
        "de",
        "1 blue flower left 2 red moon",
        "Auf dem Bild sind zwei rote Monde rechts von einer blauen Blume zu sehen.",
    ),
    ("de", "1 pink heart above 3 yellow star", "oben ein rosa Herz, unten drei gelbe Sterne"),
    ("fr", "1 green star", "Il y a une étoile verte."),
    ("fr", "3 black cross", "Une image avec trois croix noires."),
    ("fr", "1 purple circle left 2 blue moon", "à gauche un cercle violet, à droite deux lunes bleues"),
    ("es", "1 black flower", "Hay una flor negra."),
    ("es", "3 green heart", "Una imagen con tres corazones verdes."),
    ("es", "2 purple circle above 1 yellow cross", "abajo una cruz amarilla, arriba dos círculos morados"),
    ("cs", "1 yellow circle", "Obrázek se žlutým kruhem."),
    ("cs", "1 red star", "Obrázek s červenou hvězdou."),
    ("cs", "2 red heart", "Na obrázku jsou dvě červená srdce."),
    ("cs", "3 blue star", "Obrázek se třemi modrými hvězdami."),
    ("cs", "2 black heart", "Obrázek se dvěma černými srdci."),
    ("cs", "1 green flower", "Na obrázku je zelená květina."),
    ("cs", "3 green square left 1 red cross", "vpravo červený kříž, vlevo tři zelené čtverce"),
    ("ru", "1 blue star", "Картинка с синей звездой."),
    ("ru", "1 blue heart", "На картинке синее сердце."),
    ("ru", "1 blue star above 2 red square", "синяя звезда над двумя красными квадратами"),
    ("ru", "2 blue star", "На картинке две синие звезды."),
    ("ru", "3 red heart", "Картинка с тремя красными сердцами."),
    ("ru", "2 green moon left 1 black cross", "слева две зелёные луны, справа чёрный крест"),
    ("ru", "3 pink flower left 1 yellow heart", "жёлтое сердце справа от трёх розовых цветков"),
    ("tr", "1 green flower", "yeşil bir çiçeğin resmi"),
    ("tr", "3 red heart", "Resimde üç kırmızı kalp var."),
    ("tr", "1 black circle left 2 pink star", "solda siyah bir daire, sağda iki pembe yıldız"),
    ("tr", "1 black circle left 2 pink star", "Resimde siyah bir dairenin sağında iki pembe yıldız var."),
    ("id", "1 red flower", "Ada sekuntum bunga merah."),
    ("id", "2 black circle", "Gambar dua lingkaran hitam."),
    ("id", "1 red star left 2 black circle", "di kiri ada sebuah bintang merah, di kanan ada dua lingkaran hitam"),
    ("zh", "2 red heart", "图中有两颗红色的爱心。"),
    ("zh", "1 blue cross left 3 yellow flower", "一个蓝色的十字右边有三朵黄色的花。"),
    ("zh", "1 blue cross above 3 yellow flower", "上面是一个蓝色的十字，下面是三朵黄色的花"),
    ("ja", "1 red star", "赤い星が一つあります。"),
    ("ja", "3 yellow flower", "黄色い花が三輪あります。"),
    ("ja", "1 black circle left 2 green heart", "黒い丸の右に緑色のハートが二つあります。"),
    ("ja", "1 black circle above 2 green heart", "上に黒い丸、下に二つの緑色のハート"),
]


def test_the_phrases_cover_the_grammar() -> None:
    scenes = [scene(words) for words in PHRASES]
    groups = [group for one in scenes for group in one.groups]
    assert {group.shape for group in groups} == set(SHAPES)
    assert {group.color for group in groups} == set(COLORS)
    assert {words.split()[3] for words in PHRASES} == {"left", "right", "above", "below"}
    for shape in SHAPES:  # singular and plural of every noun
        assert {group.count > 1 for group in groups if group.shape == shape} == {True, False}
    assert all(set(expected) == set(LANGUAGES) for expected in PHRASES.values())
    assert {language for language, _, _ in SENTENCES} == set(LANGUAGES)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("words", PHRASES)
def test_phrases_told_from_either_side(words: str, language: str) -> None:
    captions = variants(scene(words), language)
    half = len(captions) // 2
    told_first = words.split()[3] in ("left", "above")  # the side that a scene keeps as its first group
    assert captions[0 if told_first else half] == PHRASES[words][language]


@pytest.mark.parametrize(("language", "words", "sentence"), SENTENCES)
def test_sentences(language: str, words: str, sentence: str) -> None:
    assert sentence in variants(scene(words), language)


@pytest.mark.parametrize("language", LANGUAGES)
def test_at_least_three_ways_to_say_it(language: str) -> None:
    for one in sample_scenes(50, seed=0):
        captions = variants(one, language)
        assert len(set(captions)) == len(captions) >= (3 if one.relation is None else 8)
        for caption in captions:
            assert caption == caption.strip() and "  " not in caption
            assert not re.search(r"[{}\[\]]", caption)
            # A sentence ends with a full stop and starts with a large letter; a phrase does neither in English.
            if caption.endswith("."):
                assert caption[0].isupper()


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_caption_fits_two_scenes(language: str) -> None:
    owner: dict[str, Scene] = {}
    scenes = sample_scenes(600, seed=1) + sample_scenes(200, seed=1, held_out=True)
    scenes += [twin for wanted in scenes[:200] for twin in twins(wanted, seed=0).values()]
    for one in dict.fromkeys(scenes):
        for caption in variants(one, language):
            assert owner.setdefault(caption, one) == one, caption


def test_describe_picks_the_variant() -> None:
    one = scene("1 red star left 2 blue circle")
    captions = variants(one, "de")
    assert describe(one, "de") == captions[0]
    assert [describe(one, "de", variant=number) for number in range(len(captions))] == captions
    assert describe(one, "de", variant=3, rng=random.Random(0)) == captions[3]
    with pytest.raises(ValueError, match=r"variant 8 .* 'de' \(expected 0 to 7\)"):
        describe(one, "de", variant=8)
    with pytest.raises(ValueError, match="variant -1"):
        describe(one, "de", variant=-1)


@pytest.mark.parametrize("make", [random.Random, np.random.default_rng])
def test_random_variants_are_repeatable_and_all_occur(make) -> None:
    one = scene("1 red star left 2 blue circle")
    rng = make(7)
    told = [describe(one, "ru", rng=rng) for _ in range(200)]
    assert set(told) == set(variants(one, "ru"))
    rng = make(7)
    assert told == [describe(one, "ru", rng=rng) for _ in range(200)]


@pytest.mark.parametrize("call", [variants, describe])
def test_unknown_language_names_itself_and_the_known_ones(call) -> None:
    with pytest.raises(ValueError, match=r"language 'sv' \(expected one of zh, en, de, fr, ja, cs, id, es, ru, tr\)"):
        call(scene("1 red star"), "sv")
