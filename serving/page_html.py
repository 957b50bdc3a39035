"""Pieces of the web page as HTML, styles and scripts. Whatever a gallery or a person wrote is escaped here."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

THUMBNAIL = 384
"""Pixels of a photo in a grid."""

CSS = """
.gradio-container { width: 100% !important; max-width: 1400px !important; margin: 0 auto !important;
  padding: 0 16px !important }
.ccrk-head { display: flex; align-items: baseline; gap: 12px; flex-wrap: wrap; padding: 18px 2px 4px }
.ccrk-head h1 { font-size: 1.45rem; font-weight: 650; margin: 0 }
.ccrk-head span { color: var(--body-text-color-subdued) }
.ccrk-grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 14px }
@media (max-width: 600px) { .ccrk-grid { grid-template-columns: 1fr 1fr } }
.ccrk-card { margin: 0; border: 1px solid var(--border-color-primary); border-radius: 10px; overflow: hidden;
  background: var(--background-fill-primary); display: flex; flex-direction: column; padding: 0; text-align: left;
  cursor: pointer; font: inherit; color: inherit; min-width: 0; transition: box-shadow .12s }
.ccrk-card:hover, .ccrk-card:focus-visible { box-shadow: 0 0 0 2px var(--color-accent); outline: none }
.ccrk-card img { width: 100%; aspect-ratio: 1; object-fit: cover; display: block; margin: 0;
  background: var(--background-fill-secondary) }
.ccrk-card .text { padding: 12px; min-height: 84px; overflow-wrap: anywhere }
.ccrk-card .name { padding: 6px 10px 7px; font-size: .78rem; color: var(--body-text-color-subdued); display: flex;
  justify-content: space-between; gap: 8px }
.ccrk-card .name b { font-weight: 500; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; min-width: 0 }
.ccrk-said { padding: 2px 2px 8px; min-height: 1.6em; color: var(--body-text-color-subdued) }
.ccrk-said.wrong { color: #b91c1c; font-weight: 500 }
.dark .ccrk-said.wrong { color: #fca5a5 }
.ccrk-said img { height: 44px; width: 44px; object-fit: cover; border-radius: 6px; vertical-align: middle;
  margin: 0 10px 0 0; display: inline-block }
.ccrk-columns { display: grid; gap: 14px; grid-auto-columns: minmax(130px, 210px); grid-auto-flow: column;
  overflow-x: auto; padding: 3px 3px 10px }
.ccrk-columns section { display: grid; gap: 10px; align-content: start; min-width: 0 }
.ccrk-columns h3 { margin: 0; font-size: .95rem; font-weight: 600; overflow-wrap: anywhere }
.ccrk-columns h3 small { display: block; font-weight: 400; color: var(--body-text-color-subdued) }
.ccrk-figures { display: flex; gap: 28px; flex-wrap: wrap; padding: 8px 2px 14px }
.ccrk-figures div b { display: block; font-size: 1.35rem; font-weight: 600 }
.ccrk-figures div span { color: var(--body-text-color-subdued); font-size: .85rem }
.ccrk-spread { border-collapse: collapse; border: 0 !important; width: 100%; max-width: 860px; margin-top: 18px;
  font-size: .9rem }
.ccrk-spread caption { text-align: left; padding-bottom: 6px; color: var(--body-text-color-subdued) }
.ccrk-spread th, .ccrk-spread td { padding: 5px 10px; border: 0 !important;
  border-bottom: 1px solid var(--border-color-primary) !important; text-align: right;
  font-variant-numeric: tabular-nums }
.ccrk-spread tr { border: 0 !important }
.ccrk-spread th:first-child, .ccrk-spread td:first-child { text-align: left; overflow-wrap: anywhere }
.ccrk-spread img { height: 34px; width: 34px; object-fit: cover; border-radius: 5px; display: inline-block;
  vertical-align: middle; margin: 0 10px 0 0 }
.ccrk-spread td.far { color: var(--body-text-color-subdued) }
.ccrk-photo { display: grid; place-items: center; gap: 6px; border: 1.5px dashed var(--border-color-primary);
  border-radius: 10px; padding: 14px; cursor: pointer; text-align: center; color: var(--body-text-color-subdued);
  min-height: 74px }
.ccrk-photo:hover, .ccrk-photo:focus-within { border-color: var(--color-accent) }
.ccrk-photo img { max-height: 150px; max-width: 100%; border-radius: 8px; margin: 0 }
.ccrk-photo input { position: absolute; opacity: 0; width: 1px; height: 1px }
.ccrk-photo button { border: 0; background: none; color: var(--color-accent); cursor: pointer; font: inherit }
"""

CHOOSE = """
element.addEventListener('click', event => {
  const card = event.target.closest('[data-id]');
  if (card) trigger('click', {id: card.dataset.id});
});
"""

PHOTO_TEMPLATE = """<label class="ccrk-photo"><input type="file" accept="image/*" aria-label="Photo to search with">
${value ? '<img alt="the photo to search with" src="' + value + '"><button type="button">remove</button>'
  : '<span>Drop a photo here, or choose one</span>'}</label>"""

# The photo is made small here, so that nothing is uploaded that the model could not see, and nothing is kept.
PHOTO_SCRIPT = """
const take = async file => {
  if (!file) return;
  try {
    const bitmap = await createImageBitmap(file, {imageOrientation: 'from-image'});
    const scale = Math.min(1, 640 / Math.max(bitmap.width, bitmap.height));
    const canvas = document.createElement('canvas');
    canvas.width = Math.max(1, Math.round(bitmap.width * scale));
    canvas.height = Math.max(1, Math.round(bitmap.height * scale));
    const context = canvas.getContext('2d');
    context.fillStyle = '#fff';
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.imageSmoothingQuality = 'high';
    context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    let address = '';
    for (const quality of [.92, .8, .6, .4]) {
      address = canvas.toDataURL('image/jpeg', quality);
      if (address.length < 150000) break;
    }
    props.value = address;
  } catch (error) {
    alert('This browser cannot read the file as a photo.');
  }
};
element.addEventListener('change', event => { if (event.target.files) take(event.target.files[0]); });
element.addEventListener('click', event => {
  if (event.target.closest('button')) { event.preventDefault(); props.value = ''; }
});
element.addEventListener('dragover', event => event.preventDefault());
element.addEventListener('drop', event => { event.preventDefault(); take(event.dataTransfer.files[0]); });
"""


def text(value: Any) -> str:
    """A value that is safe in HTML, in attributes, and in the templates that the page is made by."""
    escaped = html.escape(str(value))
    for character in "{}$`":
        escaped = escaped.replace(character, f"&#{ord(character)};")
    return escaped


def head(model: str, items: int, modality: str | None) -> str:
    """The top of the page."""
    kind = "photos" if modality == "image" else "texts"
    return f'<div class="ccrk-head"><h1>Search in any language</h1><span>{items:,} {kind} · {text(model)}</span></div>'


def said(message: str, wrong: bool = False, image: str | None = None) -> str:
    """A line about what is shown."""
    picture = "" if image is None else f'<img alt="" src="{_source(image, 96)}">'
    return f'<div class="ccrk-said{" wrong" if wrong else ""}" role="status">{picture}{text(message)}</div>'


def card(hit: Mapping[str, Any], place: int) -> str:
    """One item found; choosing it asks for more like it."""
    name = text(hit["id"])
    if hit.get("image"):
        inner = f'<img alt="{name}" loading="lazy" src="{_source(hit["image"], THUMBNAIL)}">'
    else:
        inner = f'<span class="text">{text(hit.get("text") or hit["id"])}</span>'
    return (
        f'<button type="button" class="ccrk-card" data-id="{name}" title="More like this: {name}" '
        f'aria-label="Result {place}: {name}. More like this">{inner}'
        f'<span class="name"><b>{name}</b><span>{hit["score"]:.3f}</span></span></button>'
    )


def grid(hits: Sequence[Mapping[str, Any]]) -> str:
    """The items found, best first."""
    return f'<div class="ccrk-grid">{"".join(card(hit, place) for place, hit in enumerate(hits, 1))}</div>'


def comparison(found: Mapping[str, Any], shown: Mapping[str, Mapping[str, Any]]) -> str:
    """Several languages side by side, and where they rank the same items.

    Args:
        found: from `SearchService.compare`.
        shown: id -> an item found, for its photo.
    """
    columns = "".join(
        f"<section><h3>{text(one['language'])}<small>{text(one['query'])}</small></h3>"
        + "".join(card(hit, place) for place, hit in enumerate(one["hits"], 1))
        + "</section>"
        for one in found["languages"]
    )
    figures = (
        f'<div class="ccrk-figures"><div><b>{found["mrv"]:.2f}</b><span>mean rank variation, 0 if all agree</span>'
        f"</div><div><b>{100 * found['agreement']:.0f} %</b><span>of the first {found['k']} in common</span></div>"
        f"<div><b>{len(found['items'])}</b><span>different items in the first {found['k']}</span></div></div>"
    )
    tags = [one["language"] for one in found["languages"]]
    header = "".join(f"<th>{text(tag)}</th>" for tag in tags)
    rows = "".join(_spread_row(item, tags, found["depth"], shown.get(item["id"], {})) for item in found["items"])
    table = (
        '<table class="ccrk-spread"><caption>Place of each item by language, those that differ most first</caption>'
        f"<thead><tr><th>item</th>{header}<th>spread</th></tr></thead><tbody>{rows}</tbody></table>"
    )
    return f'{figures}<div class="ccrk-columns">{columns}</div>{table}'


def _spread_row(item: Mapping[str, Any], tags: Sequence[str], depth: int, hit: Mapping[str, Any]) -> str:
    places = "".join(
        f'<td class="far">&gt; {depth}</td>' if item["ranks"][tag] is None else f"<td>{item['ranks'][tag] + 1}</td>"
        for tag in tags
    )
    picture = f'<img alt="" loading="lazy" src="{_source(hit["image"], 96)}">' if hit.get("image") else ""
    return f"<tr><td>{picture}{text(hit.get('text') or item['id'])}</td>{places}<td>{item['std']:.2f}</td></tr>"


def _source(image: str, size: int) -> str:
    """The address of a photo, relative to the page."""
    return f"{text(image.lstrip('/'))}?size={size}"
