"""Try the package that is installed, as whoever installed it would: `python tests/check_installed.py CHECKOUT`.

Run by `test_packaging.py` with the Python of a new environment and from an empty folder, once for the wheel and once
for the source archive. From CHECKOUT only the tests' tiny model is taken.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path


def commands() -> int:
    """The command itself, and the help of every one of its commands; returns how many there are."""
    from ccrk.cli.main import COMMANDS, main

    program = Path(sys.executable).with_name("ccrk")
    told = subprocess.run([program, "--help"], capture_output=True, text=True, check=True).stdout
    for name in COMMANDS:
        assert name in told, f"ccrk --help does not name {name}"
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
            main([name, "--help"])
        assert shown.getvalue().startswith(f"usage: ccrk {name}"), shown.getvalue()[:200]
    return len(COMMANDS)


def search(checkout: Path) -> None:
    """A gallery of photos is searched by a text, with a tiny random model that was saved and loaded."""
    from transformers import pipeline

    spec = importlib.util.spec_from_file_location("tiny", checkout / "tests" / "pipelines" / "tiny.py")
    tiny = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny)
    processor = tiny.build_processor()
    tiny.build_model(len(processor.tokenizer)).save_pretrained("model")
    processor.save_pretrained("model")
    photos = Path("photos")
    photos.mkdir()
    for number, photo in enumerate(tiny.build_photos(3)):
        photo.save(photos / f"{number}.png")
    hits = pipeline("ccr-retrieval", model="model", gallery=str(photos))("ein Hund im Schnee", top_k=2)
    assert len(hits) == 2 and hits[0]["score"] >= hits[1]["score"], hits


def metrics(package: Path) -> None:
    """Both metrics, from the folders that were installed."""
    import evaluate

    mrv = evaluate.load(str(package / "metrics" / "mrv"))
    assert mrv.compute(predictions=[{"en": 0, "de": 0}, {"en": 3, "de": 3}])["mrv"] == 0
    assert evaluate.load(str(package / "metrics" / "ccr_recall")).description


def main() -> int:
    """Try everything; an assertion or another error ends it."""
    import ccrk

    checkout, package = Path(sys.argv[1]), Path(ccrk.__file__).parent
    assert package.is_relative_to(sys.prefix), f"ccrk was found at {package}, outside of {sys.prefix}"
    assert ccrk.__version__ == version("ccrk")
    assert (package / "py.typed").exists()
    assert list(package.glob("trainer/recipes/*.yaml"))
    for name in ("tests", "docs", "benchmarks", "examples", "shared"):
        assert importlib.util.find_spec(name) is None or not (package.parent / name).exists(), f"{name} was installed"
    count = commands()
    search(checkout)
    metrics(package)
    print(f"ccrk {ccrk.__version__}: {count} commands, a search, two metrics")
    return 0


if __name__ == "__main__":
    sys.exit(main())
