"""The picture of the README: one drawn scene, asked for in several languages, and what a model of `ccrk demo` finds.

    ccrk demo
    python examples/readme_picture.py demo_output docs/images/search.png

Needs Playwright with a Chromium, and fonts for the languages. `--browser` names a Chromium that is there already.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from transformers import AutoModel, AutoProcessor

from ccrk import CCRkRetrievalPipeline
from ccrk.data.scene_captions import describe
from ccrk.data.scenes import draw_scene
from ccrk.evaluation.search_page import write_search_page
from ccrk.trainer.demo import DemoPlan, galleries

LANGUAGES = {"en": "English", "zh": "中文", "tr": "Türkçe"}
SHOWN = 192  # side of a scene in the picture; the model sees the same drawing at the 64 px that it was trained on


def found_in_each(folder: str, top_k: int) -> list[dict]:
    """Rows of `write_search_page` for the first scene of two groups in the demo's gallery without twins.

    Args:
        folder: of a model of `ccrk demo`.
        top_k: results for each language.
    """
    rows = galleries(DemoPlan())[0]
    wanted = next(place for place, scene in enumerate(rows.scenes) if len(scene.groups) == 2)
    search = CCRkRetrievalPipeline(
        model=AutoModel.from_pretrained(folder),
        processor=AutoProcessor.from_pretrained(folder),
        gallery=[rows[place]["image"] for place in range(len(rows))],
    )
    print(f"{len(rows)} scenes in the gallery")
    shown = []
    for tag, name in LANGUAGES.items():
        text = describe(rows.scenes[wanted], tag, variant=0)
        cells = []
        for result in search(text, top_k=top_k):
            place = int(result["id"])
            seed = rows._random(place, "drawing").randrange(2**31)
            cells.append(
                {
                    "image": draw_scene(rows.scenes[place], size=SHOWN, seed=seed),
                    "caption": describe(rows.scenes[place], "en", variant=0),
                    "score": result["score"],
                    "correct": place == wanted,
                }
            )
        shown.append({"language": tag, "language_name": name, "text": text, "results": cells})
    return shown


def photograph(page: Path, target: Path, width: int, browser: str | None) -> None:
    """A picture of the first card of a page, as a PNG of at most 256 colours."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser)
        tab = chromium.new_page(viewport={"width": width, "height": 900}, device_scale_factor=1.6)
        tab.goto(page.as_uri())
        tab.locator(".card").first.screenshot(path=target)
        chromium.close()
    Image.open(target).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(target, optimize=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Makes the picture; `argv` are the words after the script's name."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder of ccrk demo")
    parser.add_argument("picture", type=Path, help="PNG to write")
    parser.add_argument("--top-k", type=int, default=4, help="results for each language (default: 4)")
    parser.add_argument("--width", type=int, default=920, help="of the page in pixels (default: 920)")
    parser.add_argument("--browser", help="path of a Chromium (default: Playwright's own)")
    args = parser.parse_args(argv)

    rows = found_in_each(args.model, args.top_k)
    args.picture.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        page = write_search_page(
            Path(folder) / "page.html", title="", intro="", queries=[{"heading": rows[0]["text"], "rows": rows}]
        )
        photograph(page, args.picture, args.width, args.browser)
    print(f"{args.picture}: {args.picture.stat().st_size / 1024:.0f} kB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
