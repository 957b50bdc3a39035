"""Captions of generated scenes in ten languages, with the grammar that each of them asks for.

A language is a table of words, a function that inflects one group of objects ("forms"), and sentence frames that pick
the forms they need: gender and case in German, French, Spanish, Czech and Russian, the case that a numeral asks for in
Czech and Russian, counters in Chinese, Japanese and Indonesian, the genitive before a place word in Turkish. Scenes
of two groups are told from either side ("A left of B", "B right of A").
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .scenes import COLORS, INVERSE, SHAPES, Group, Scene

LANGUAGES: tuple[str, ...] = ("zh", "en", "de", "fr", "ja", "cs", "id", "es", "ru", "tr")

Forms = dict[str, str]


@dataclass(frozen=True)
class _Grammar:
    """How one language says a scene.

    `forms` inflects a group. `one` are the frames for one group `a`; `two` those for a group `a` that stands to a
    group `b`. A frame sees `rel`, the filled place phrase of `places[relation][0]`, and `here` and `there`, the
    adverbs of `a` and of `b` (`places[...][1]`).
    """

    forms: Callable[[Group], Forms]
    one: tuple[str, ...]
    two: tuple[str, ...]
    places: dict[str, tuple[str, str]]


def _by_color(words: str) -> dict[str, str]:
    """Comma-separated words in the order of `COLORS`."""
    return dict(zip(COLORS, words.split(","), strict=True))


def _by_shape(words: str) -> dict[str, str]:
    """Comma-separated words in the order of `SHAPES`."""
    return dict(zip(SHAPES, words.split(","), strict=True))


def _table(words: str) -> dict[str, tuple[str, ...]]:
    """One line per shape, in the order of `SHAPES`, with its gender and inflected forms."""
    return dict(zip(SHAPES, (tuple(line.split()) for line in words.strip().splitlines()), strict=True))


# ----------------------------------------------------------------------------------------------------- English

_EN_PLURAL = _by_shape("circles,squares,triangles,stars,hearts,crosses,moons,flowers")


def _english(group: Group) -> Forms:
    if group.count == 1:
        article = "an" if group.color[0] in "aeiou" else "a"
        return {"np": f"{article} {group.color} {group.shape}", "be": "is"}
    return {"np": f"{('two', 'three')[group.count - 2]} {group.color} {_EN_PLURAL[group.shape]}", "be": "are"}


_EN = _Grammar(
    _english,
    one=("{a[np]}", "There {a[be]} {a[np]}.", "A picture of {a[np]}."),
    two=(
        "{a[np]} {rel}",
        "There {a[be]} {a[np]} {rel}.",
        "A picture of {a[np]} {rel}.",
        "{here} {a[np]}, {there} {b[np]}",
    ),
    places={
        "left": ("to the left of {b[np]}", "on the left"),
        "right": ("to the right of {b[np]}", "on the right"),
        "above": ("above {b[np]}", "at the top"),
        "below": ("below {b[np]}", "at the bottom"),
    },
)

# ------------------------------------------------------------------------------------------------------ German

_DE_COLOR = _by_color("rot,orangefarben,gelb,grün,blau,violett,rosa,schwarz")
# Gender, nominative, dative singular, plural, dative plural.
_DE_NOUN = _table("""
    m Kreis Kreis Kreise Kreisen
    n Quadrat Quadrat Quadrate Quadraten
    n Dreieck Dreieck Dreiecke Dreiecken
    m Stern Stern Sterne Sternen
    n Herz Herzen Herzen Herzen
    n Kreuz Kreuz Kreuze Kreuzen
    m Mond Mond Monde Monden
    f Blume Blume Blumen Blumen
""")
_DE_ARTICLE = {"m": ("ein", "einen", "einem"), "f": ("eine", "eine", "einer"), "n": ("ein", "ein", "einem")}
_DE_ENDING = {"m": ("er", "en", "en"), "f": ("e", "e", "en"), "n": ("es", "es", "en")}


def _german(group: Group) -> Forms:
    gender, nominative, dative, plural, dative_plural = _DE_NOUN[group.shape]
    color = _DE_COLOR[group.color]

    def inflected(ending: str) -> str:
        return color if color == "rosa" else color + ending  # "rosa" never changes

    if group.count == 1:
        nouns = (nominative, nominative, dative)
        phrases = [
            f"{article} {inflected(ending)} {noun}"
            for article, ending, noun in zip(_DE_ARTICLE[gender], _DE_ENDING[gender], nouns, strict=True)
        ]
    else:
        number = ("zwei", "drei")[group.count - 2]
        phrases = [f"{number} {inflected('e')} {plural}"] * 2 + [f"{number} {inflected('en')} {dative_plural}"]
    return dict(zip(("nom", "acc", "dat"), phrases, strict=True), be="ist" if group.count == 1 else "sind")


_DE = _Grammar(
    _german,
    one=("{a[nom]}", "Man sieht {a[acc]}.", "Auf dem Bild {a[be]} {a[nom]} zu sehen.", "Ein Bild mit {a[dat]}."),
    two=(
        "{a[nom]} {rel}",
        "Man sieht {a[acc]} {rel}.",
        "Auf dem Bild {a[be]} {a[nom]} {rel} zu sehen.",
        "{here} {a[nom]}, {there} {b[nom]}",
    ),
    places={
        "left": ("links von {b[dat]}", "links"),
        "right": ("rechts von {b[dat]}", "rechts"),
        "above": ("über {b[dat]}", "oben"),
        "below": ("unter {b[dat]}", "unten"),
    },
)

# ------------------------------------------------------------------------------------------------------ French

# Masculine and feminine, singular and plural.
_FR_COLOR = {
    "red": ("rouge", "rouge", "rouges", "rouges"),
    "orange": ("orange",) * 4,
    "yellow": ("jaune", "jaune", "jaunes", "jaunes"),
    "green": ("vert", "verte", "verts", "vertes"),
    "blue": ("bleu", "bleue", "bleus", "bleues"),
    "purple": ("violet", "violette", "violets", "violettes"),
    "pink": ("rose", "rose", "roses", "roses"),
    "black": ("noir", "noire", "noirs", "noires"),
}
_FR_NOUN = _table("""
    m cercle cercles
    m carré carrés
    m triangle triangles
    f étoile étoiles
    m cœur cœurs
    f croix croix
    f lune lunes
    f fleur fleurs
""")


def _french(group: Group) -> Forms:
    gender, singular, plural = _FR_NOUN[group.shape]
    color = _FR_COLOR[group.color][(gender == "f") + 2 * (group.count > 1)]
    if group.count == 1:
        phrase = f"{'une' if gender == 'f' else 'un'} {singular} {color}"
        return {"np": phrase, "de": f"d'{phrase}"}
    phrase = f"{('deux', 'trois')[group.count - 2]} {plural} {color}"
    return {"np": phrase, "de": f"de {phrase}"}


_FR = _Grammar(
    _french,
    one=("{a[np]}", "Il y a {a[np]}.", "Une image avec {a[np]}."),
    two=("{a[np]} {rel}", "Il y a {a[np]} {rel}.", "Une image avec {a[np]} {rel}.", "{here} {a[np]}, {there} {b[np]}"),
    places={
        "left": ("à gauche {b[de]}", "à gauche"),
        "right": ("à droite {b[de]}", "à droite"),
        "above": ("au-dessus {b[de]}", "en haut"),
        "below": ("en dessous {b[de]}", "en bas"),
    },
)

# ----------------------------------------------------------------------------------------------------- Spanish

_ES_COLOR = {
    "red": ("rojo", "roja", "rojos", "rojas"),
    "orange": ("naranja", "naranja", "naranjas", "naranjas"),
    "yellow": ("amarillo", "amarilla", "amarillos", "amarillas"),
    "green": ("verde", "verde", "verdes", "verdes"),
    "blue": ("azul", "azul", "azules", "azules"),
    "purple": ("morado", "morada", "morados", "moradas"),
    "pink": ("rosa", "rosa", "rosas", "rosas"),
    "black": ("negro", "negra", "negros", "negras"),
}
_ES_NOUN = _table("""
    m círculo círculos
    m cuadrado cuadrados
    m triángulo triángulos
    f estrella estrellas
    m corazón corazones
    f cruz cruces
    f luna lunas
    f flor flores
""")


def _spanish(group: Group) -> Forms:
    gender, singular, plural = _ES_NOUN[group.shape]
    color = _ES_COLOR[group.color][(gender == "f") + 2 * (group.count > 1)]
    if group.count == 1:
        return {"np": f"{'una' if gender == 'f' else 'un'} {singular} {color}"}
    return {"np": f"{('dos', 'tres')[group.count - 2]} {plural} {color}"}


_ES = _Grammar(
    _spanish,
    one=("{a[np]}", "Hay {a[np]}.", "Una imagen con {a[np]}."),
    two=("{a[np]} {rel}", "Hay {a[np]} {rel}.", "Una imagen con {a[np]} {rel}.", "{here} {a[np]}, {there} {b[np]}"),
    places={
        "left": ("a la izquierda de {b[np]}", "a la izquierda"),
        "right": ("a la derecha de {b[np]}", "a la derecha"),
        "above": ("encima de {b[np]}", "arriba"),
        "below": ("debajo de {b[np]}", "abajo"),
    },
)

# ------------------------------------------------------------------------------------------------------- Czech

_CS_STEM = _by_color("červen,oranžov,žlut,zelen,modr,fialov,růžov,čern")
# Gender; singular nominative, genitive, instrumental; plural nominative, genitive, instrumental.
_CS_NOUN = _table("""
    m kruh kruhu kruhem kruhy kruhů kruhy
    m čtverec čtverce čtvercem čtverce čtverců čtverci
    m trojúhelník trojúhelníku trojúhelníkem trojúhelníky trojúhelníků trojúhelníky
    f hvězda hvězdy hvězdou hvězdy hvězd hvězdami
    n srdce srdce srdcem srdce srdcí srdci
    m kříž kříže křížem kříže křížů kříži
    m půlměsíc půlměsíce půlměsícem půlměsíce půlměsíců půlměsíci
    f květina květiny květinou květiny květin květinami
""")
_CS_SINGULAR = {"m": ("ý", "ého", "ým"), "f": ("á", "é", "ou"), "n": ("é", "ého", "ým")}
_CS_PLURAL = {"m": ("é", "ých", "ými"), "f": ("é", "ých", "ými"), "n": ("á", "ých", "ými")}


def _czech(group: Group) -> Forms:
    gender, *nouns = _CS_NOUN[group.shape]
    stem = _CS_STEM[group.color]
    if group.count == 1:
        numbers, endings, nouns = ("", "", ""), _CS_SINGULAR[gender], nouns[:3]
    else:
        two = ("dva " if gender == "m" else "dvě ", "dvou ", "dvěma ")
        numbers = two if group.count == 2 else ("tři ", "tří ", "třemi ")
        endings, nouns = _CS_PLURAL[gender], nouns[3:]
    phrases = [
        number + stem + ending + " " + noun for number, ending, noun in zip(numbers, endings, nouns, strict=True)
    ]
    # The preposition "s" gets a vowel before sibilants and before the clusters of "dvěma" and "třemi".
    with_ = "se" if group.count > 1 or stem[0] in "szšž" else "s"
    return dict(
        zip(("nom", "gen", "ins"), phrases, strict=True),
        be="je" if group.count == 1 else "jsou",
        **{"with": f"{with_} {phrases[2]}"},
    )


_CS = _Grammar(
    _czech,
    one=("{a[nom]}", "Na obrázku {a[be]} {a[nom]}.", "Obrázek {a[with]}."),
    two=(
        "{a[nom]} {rel}",
        "Na obrázku {a[be]} {a[nom]} {rel}.",
        "Obrázek {a[with]} {rel}.",
        "{here} {a[nom]}, {there} {b[nom]}",
    ),
    places={
        "left": ("vlevo od {b[gen]}", "vlevo"),
        "right": ("vpravo od {b[gen]}", "vpravo"),
        "above": ("nad {b[ins]}", "nahoře"),
        "below": ("pod {b[ins]}", "dole"),
    },
)

# ----------------------------------------------------------------------------------------------------- Russian

_RU_STEM = _by_color("красн,оранжев,жёлт,зелён,син,фиолетов,розов,чёрн")
# Gender; singular nominative, genitive (also after 2 and 3), instrumental; plural genitive, instrumental.
_RU_NOUN = _table("""
    m круг круга кругом кругов кругами
    m квадрат квадрата квадратом квадратов квадратами
    m треугольник треугольника треугольником треугольников треугольниками
    f звезда звезды звездой звёзд звёздами
    n сердце сердца сердцем сердец сердцами
    m крест креста крестом крестов крестами
    f луна луны луной лун лунами
    m цветок цветка цветком цветков цветками
""")
_RU_HARD = {"m": ("ый", "ого", "ым"), "f": ("ая", "ой", "ой"), "n": ("ое", "ого", "ым"), "pl": ("ые", "ых", "ыми")}
_RU_SOFT = {"m": ("ий", "его", "им"), "f": ("яя", "ей", "ей"), "n": ("ее", "его", "им"), "pl": ("ие", "их", "ими")}


def _russian(group: Group) -> Forms:
    gender, *nouns = _RU_NOUN[group.shape]
    stem = _RU_STEM[group.color]
    endings = _RU_SOFT if group.color == "blue" else _RU_HARD
    if group.count == 1:
        phrases = [f"{stem}{ending} {noun}" for ending, noun in zip(endings[gender], nouns[:3], strict=True)]
    else:
        nominative, genitive, instrumental = endings["pl"]
        if group.count == 2:
            numbers = ("две" if gender == "f" else "два", "двух", "двумя")
        else:
            numbers = ("три", "трёх", "тремя")
        # After 2 and 3 the noun is genitive singular; the adjective nominative plural (feminine) or genitive plural.
        counted = nominative if gender == "f" else genitive
        phrases = [
            f"{numbers[0]} {stem}{counted} {nouns[1]}",
            f"{numbers[1]} {stem}{genitive} {nouns[3]}",
            f"{numbers[2]} {stem}{instrumental} {nouns[4]}",
        ]
    return dict(zip(("nom", "gen", "ins"), phrases, strict=True))


_RU = _Grammar(
    _russian,
    one=("{a[nom]}", "На картинке {a[nom]}.", "Картинка с {a[ins]}."),
    two=(
        "{a[nom]} {rel}",
        "На картинке {a[nom]} {rel}.",
        "Картинка с {a[ins]} {rel}.",
        "{here} {a[nom]}, {there} {b[nom]}",
    ),
    places={
        "left": ("слева от {b[gen]}", "слева"),
        "right": ("справа от {b[gen]}", "справа"),
        "above": ("над {b[ins]}", "вверху"),
        "below": ("под {b[ins]}", "внизу"),
    },
)

# ----------------------------------------------------------------------------------------------------- Turkish

_TR_COLOR = _by_color("kırmızı,turuncu,sarı,yeşil,mavi,mor,pembe,siyah")
_TR_NOUN = _by_shape("daire,kare,üçgen,yıldız,kalp,haç,hilal,çiçek")
# Vowel harmony decides the suffix; "kalp" and "çiçek" soften their last consonant, "kalp" and "hilal" take a front
# vowel against the rule.
_TR_GENITIVE = _by_shape("dairenin,karenin,üçgenin,yıldızın,kalbin,haçın,hilalin,çiçeğin")


def _turkish(group: Group) -> Forms:
    color = _TR_COLOR[group.color]
    # No plural after a numeral; the article "bir" stands between adjective and noun.
    start = f"{color} bir" if group.count == 1 else f"{('iki', 'üç')[group.count - 2]} {color}"
    return {"nom": f"{start} {_TR_NOUN[group.shape]}", "gen": f"{start} {_TR_GENITIVE[group.shape]}"}


_TR = _Grammar(
    _turkish,
    one=("{a[nom]}", "Resimde {a[nom]} var.", "Bu resimde {a[nom]} görülüyor.", "{a[gen]} resmi"),
    two=(
        "{rel} {a[nom]}",
        "Resimde {rel} {a[nom]} var.",
        "Bu resimde {rel} {a[nom]} görülüyor.",
        "{here} {a[nom]}, {there} {b[nom]}",
    ),
    places={
        "left": ("{b[gen]} solunda", "solda"),
        "right": ("{b[gen]} sağında", "sağda"),
        "above": ("{b[gen]} üstünde", "üstte"),
        "below": ("{b[gen]} altında", "altta"),
    },
)

# -------------------------------------------------------------------------------------------------- Indonesian

_ID_COLOR = _by_color("merah,oranye,kuning,hijau,biru,ungu,merah muda,hitam")
_ID_NOUN = _by_shape("lingkaran,persegi,segitiga,bintang,hati,salib,bulan sabit,bunga")


def _indonesian(group: Group) -> Forms:
    if group.count == 1:
        number = "sekuntum" if group.shape == "flower" else "sebuah"
    else:
        number = ("dua", "tiga")[group.count - 2]
    return {"np": f"{number} {_ID_NOUN[group.shape]} {_ID_COLOR[group.color]}"}


_ID = _Grammar(
    _indonesian,
    one=("{a[np]}", "Ada {a[np]}.", "Gambar {a[np]}."),
    two=("{a[np]} {rel}", "Ada {a[np]} {rel}.", "Gambar {a[np]} {rel}.", "{here} ada {a[np]}, {there} ada {b[np]}"),
    places={
        "left": ("di sebelah kiri {b[np]}", "di kiri"),
        "right": ("di sebelah kanan {b[np]}", "di kanan"),
        "above": ("di atas {b[np]}", "di atas"),
        "below": ("di bawah {b[np]}", "di bawah"),
    },
)

# ----------------------------------------------------------------------------------------------------- Chinese

_ZH_COLOR = _by_color("红色,橙色,黄色,绿色,蓝色,紫色,粉色,黑色")
_ZH_NOUN = _by_shape("圆形,正方形,三角形,星星,爱心,十字,月亮,花")
_ZH_CLASSIFIER = _by_shape("个,个,个,颗,颗,个,个,朵")


def _chinese(group: Group) -> Forms:
    number = "一两三"[group.count - 1]
    return {"np": f"{number}{_ZH_CLASSIFIER[group.shape]}{_ZH_COLOR[group.color]}的{_ZH_NOUN[group.shape]}"}


_ZH = _Grammar(
    _chinese,
    one=("{a[np]}", "图中有{a[np]}。", "画面上是{a[np]}。"),
    two=("{rel}的{a[np]}", "{rel}有{a[np]}。", "图中{rel}是{a[np]}。", "{here}是{a[np]}，{there}是{b[np]}"),
    places={
        "left": ("{b[np]}左边", "左边"),
        "right": ("{b[np]}右边", "右边"),
        "above": ("{b[np]}上方", "上面"),
        "below": ("{b[np]}下方", "下面"),
    },
)

# ---------------------------------------------------------------------------------------------------- Japanese

_JA_COLOR = _by_color("赤い,オレンジ色の,黄色い,緑色の,青い,紫色の,ピンク色の,黒い")
_JA_NOUN = _by_shape("丸,正方形,三角形,星,ハート,十字,三日月,花")


def _japanese(group: Group) -> Forms:
    phrase = _JA_COLOR[group.color] + _JA_NOUN[group.shape]
    number = "一二三"[group.count - 1] + ("輪" if group.shape == "flower" else "つ")
    # One object needs no counter in a noun phrase, but a sentence may count it.
    return {"np": phrase if group.count == 1 else f"{number}の{phrase}", "counted": f"{phrase}が{number}"}


_JA = _Grammar(
    _japanese,
    one=("{a[np]}", "{a[counted]}あります。", "{a[np]}の絵"),
    two=(
        "{rel}にある{a[np]}",
        "{rel}に{a[counted]}あります。",
        "{rel}に{a[np]}が描かれた絵",
        "{here}に{a[np]}、{there}に{b[np]}",
    ),
    places={
        "left": ("{b[np]}の左", "左"),
        "right": ("{b[np]}の右", "右"),
        "above": ("{b[np]}の上", "上"),
        "below": ("{b[np]}の下", "下"),
    },
)

_GRAMMARS: dict[str, _Grammar] = {
    "zh": _ZH,
    "en": _EN,
    "de": _DE,
    "fr": _FR,
    "ja": _JA,
    "cs": _CS,
    "id": _ID,
    "es": _ES,
    "ru": _RU,
    "tr": _TR,
}


def _capitalised(text: str) -> str:
    """A sentence with its first letter large. Only words without a Turkish dotted i start a sentence here."""
    return text[0].upper() + text[1:] if text.endswith(".") else text


def variants(scene: Scene, language: str) -> list[str]:
    """All captions of a scene in a language.

    Args:
        scene: The scene.
        language: One of `LANGUAGES`.

    Returns:
        The distinct captions, in a fixed order: a bare phrase first, then sentences; for two groups first those told
        from the first group, then those told from the second.

    Raises:
        ValueError: If the language is not known.
    """
    if language not in _GRAMMARS:
        raise ValueError(f"no scene captions in language {language!r} (expected one of {', '.join(LANGUAGES)})")
    grammar = _GRAMMARS[language]
    forms = [grammar.forms(group) for group in scene.groups]
    if scene.relation is None:
        return list(dict.fromkeys(_capitalised(frame.format(a=forms[0])) for frame in grammar.one))
    captions: dict[str, None] = {}
    first, second = forms
    for a, b, relation in ((first, second, scene.relation), (second, first, INVERSE[scene.relation])):
        rel, here = grammar.places[relation]
        words = {"a": a, "b": b, "rel": rel.format(b=b), "here": here, "there": grammar.places[INVERSE[relation]][1]}
        captions.update(dict.fromkeys(_capitalised(frame.format(**words)) for frame in grammar.two))
    return list(captions)


def describe(
    scene: Scene, language: str, *, variant: int | None = None, rng: random.Random | np.random.Generator | None = None
) -> str:
    """One caption of a scene in a language.

    Args:
        scene: The scene.
        language: One of `LANGUAGES`.
        variant: Which of `variants(scene, language)`, from 0.
        rng: Picks a variant at random where `variant` is not given; without either it is the first.

    Returns:
        The caption.

    Raises:
        ValueError: If the language or the variant does not exist.
    """
    captions = variants(scene, language)
    if variant is None:
        if rng is None:
            return captions[0]
        draw = rng.integers if isinstance(rng, np.random.Generator) else rng.randrange
        return captions[int(draw(len(captions)))]
    if not 0 <= variant < len(captions):
        raise ValueError(
            f"variant {variant} of scene {scene.key} does not exist in language {language!r} "
            f"(expected 0 to {len(captions) - 1})"
        )
    return captions[variant]
