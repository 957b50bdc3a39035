"""Pages about the Hub as a reader would follow them: blocks and commands, in their order, against a Hub."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
DOCS = Path(__file__).parents[2] / "docs"
# page -> blocks that it has at least, and what is on the Hub afterwards
PAGES = {
    "hub.md": (10, {"model": ("ccrk", "my-run", "adapter", "published"), "space": ("mrv", "my-space")}),
    "elsewhere.md": (2, {"dataset": ("my-captions",)}),
}
BLOCK = re.compile(r"<!-- run with a hub -->\n```(python|console)\n(.*?)\n```", re.DOTALL)


@pytest.mark.parametrize("page", PAGES)
def test_blocks_and_commands_run(hub, client, tiny, tmp_path, page):
    processor = tiny.build_processor()
    tiny.build_model(len(processor.tokenizer)).save_pretrained(tmp_path / "my-model")
    processor.save_pretrained(tmp_path / "my-model")
    (tmp_path / "photos").mkdir()
    lines = []
    for number, photo in enumerate(tiny.build_photos(8)):
        photo.save(tmp_path / "photos" / f"{number}.png")
        captions = {"en": ["a dog in the snow"], "de": f"Hund {number}"}
        lines.append(json.dumps({"image": f"photos/{number}.png", "id": str(number), "captions": captions}))
    for name in ("train", "val"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    code, count = ["from ccrk.cli.main import main as ccrk_main"], 0
    text = (DOCS / page).read_text(encoding="utf-8")
    for kind, body in BLOCK.findall(text):
        count += 1
        if kind == "python":
            code.append(body)
        else:
            for line in body.splitlines():
                words = shlex.split(line.removeprefix("$ "))
                assert words[0] == "ccrk"
                code.append(f"assert ccrk_main({words[1:]!r}) == 0")
    least, published = PAGES[page]
    assert count == text.count("<!-- run with a hub -->") >= least
    (tmp_path / "home").mkdir()
    client("\n".join(code), hub.environment(tmp_path / "home"), package=True, cwd=tmp_path)
    for kind, names in published.items():
        for name in names:
            assert hub.store.repository(kind, f"org/{name}") is not None, name
