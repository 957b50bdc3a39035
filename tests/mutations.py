"""Break the code on purpose and see whether the tests notice: `python tests/mutations.py [WORD ...] [--list]`.

Each row of `MUTATIONS` is one mistake that somebody could make, small enough that the code still runs, and the tests
that have to fail with it. The mistakes are made in a copy of the checkout, one after the other; the checkout itself is
never written to. First the tests are run on the copy as it is, since a test that fails anyway notices nothing.

With words only rows whose title holds one of them are tried. Ends with 1 if a mistake is not noticed, if its text is
not found exactly once, or if the tests cannot run.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
CORE = "modeling_ccrk"
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", ".*_cache", "__pycache__", "*.egg-info", "build", "dist", "_build")

HEAVY = ("torch", "transformers.modeling_utils", "transformers.pipelines", "timm", "datasets", "scipy.stats")
FAILED = 1  # pytest: tests ran and some failed; anything else but 0 means that they did not run


class Mutation(NamedTuple):
    """A mistake, and who has to notice it."""

    title: str
    file: str
    old: str
    new: str
    tests: str  # as words of a pytest command line


LOSSES = "tests/modeling/test_losses_ccrk.py"
SAMPLING = "tests/modeling/test_sampling_ccrk.py"
MODEL = "tests/modeling/test_modeling_ccrk.py"
STEP = "tests/modeling/test_objectives_ccrk.py"
RECALL = "tests/metrics/test_recall.py"
MRV = "tests/metrics/test_rank_variation.py"
SEARCH = "tests/pipelines/test_ccr_retrieval.py"
CACHE = "tests/evaluation/test_cache.py -k names"
INDEX = "tests/contract/test_indexes.py -k"

MUTATIONS = [
    # --- losses
    Mutation(
        "sign of the text-to-image term",
        f"{CORE}/losses_ccrk.py",
        "return (image_terms.sum() + text_terms.sum()) / 2",
        "return (image_terms.sum() - text_terms.sum()) / 2",
        LOSSES,
    ),
    Mutation(
        "sign of a share's terms",
        f"{CORE}/losses_ccrk.py",
        "return (weights.to(logits.dtype) * (log_sums - logits)).sum()",
        "return (weights.to(logits.dtype) * (log_sums + logits)).sum()",
        LOSSES,
    ),
    Mutation(
        "the authors' second division by K left out",
        f"{CORE}/losses_ccrk.py",
        "beta = pair_weights / ((divisor or own) * shared *",
        "beta = pair_weights / ((divisor or 1) * shared *",
        LOSSES,
    ),
    Mutation(
        "masked tokens counted as all tokens",
        f"{CORE}/losses_ccrk.py",
        "total = int((labels != -100).sum()) if total is None else total",
        "total = len(labels) if total is None else total",
        LOSSES,
    ),
    Mutation(
        "columns of a share from the first text on",
        f"{CORE}/losses_ccrk.py",
        "log_sums, logits = columns[pairs.text[of_texts] - layout.texts[0]], logits[own[1]]",
        "log_sums, logits = columns[pairs.text[of_texts] - layout.images[0]], logits[own[1]]",
        LOSSES,
    ),
    Mutation(
        "the bound of a tile left out of the log-sum-exp",
        f"{CORE}/tiles_ccrk.py",
        "return row_sums.log_().add_(bound), column_sums.log_().add_(bound)",
        "return row_sums.log_().add_(bound), column_sums.log_()",
        "tests/modeling/test_tiles_ccrk.py",
    ),
    # --- pairs
    Mutation(
        "class of a match",
        f"{CORE}/sampling_ccrk.py",
        "labels[: len(self.image)] = 1",
        "labels[len(self.image) :] = 1",
        SAMPLING,
    ),
    Mutation(
        "images of equal id as negatives",
        f"{CORE}/sampling_ccrk.py",
        "weights = _row_weights(logits, ids[rows][:, None] != text_ids[None], hardness)",
        "weights = _row_weights(logits, rows[:, None] != layout.image_index[None], hardness)",
        SAMPLING,
    ),
    Mutation(
        "largest score of the last piece alone",
        f"{CORE}/sampling_ccrk.py",
        "top = torch.maximum(top, score.max().float())",
        "top = score.max().float()",
        SAMPLING,
    ),
    # --- several processes
    Mutation(
        "image_index of a process not moved behind the others'",
        f"{CORE}/objectives_ccrk.py",
        "index = exchange.gather(image_index + first_image, of_texts)",
        "index = exchange.gather(image_index, of_texts)",
        STEP,
    ),
    Mutation(
        "texts of an image share their draws",
        f"{CORE}/objectives_ccrk.py",
        "mix(keys[index], _ordinals(index, total_images))",
        "mix(keys[index], 0)",
        STEP,
    ),
    Mutation(
        "gradient of gathered rows cut by an equal share",
        "trainer/exchange.py",
        "ctx.start = sum(counts[: exchange.rank])",
        "ctx.start = exchange.rank * len(rows)",
        "tests/trainer/test_exchange.py",
    ),
    # --- the model
    Mutation(
        "axes of the logits",
        f"{CORE}/modeling_ccrk.py",
        "output.logits_per_image, output.logits_per_text = similarities, similarities.t()",
        "output.logits_per_image, output.logits_per_text = similarities.t(), similarities",
        f"{MODEL} -k 'features or tuples or one_to_one'",
    ),
    Mutation(
        "text embeddings not normalised",
        f"{CORE}/modeling_ccrk.py",
        "embeds = nn.functional.normalize(self.text_projection(summary, draws), dim=-1)",
        "embeds = self.text_projection(summary, draws)",
        f"{MODEL} -k features",
    ),
    Mutation(
        "temperature as a factor",
        f"{CORE}/modeling_ccrk.py",
        "similarities = image.pooler_output @ text.pooler_output.t() / self.temperature",
        "similarities = image.pooler_output @ text.pooler_output.t() * self.temperature",
        f"{MODEL} -k 'features or tuples or shared_image'",
    ),
    Mutation(
        "attention mask of the fusion encoder dropped",
        f"{CORE}/text_layers_ccrk.py",
        "        mask = self._mask(hidden_states, attention_mask)\n        packing = CCRkPacking.of(attention_mask)\n"
        "        if packing is not None:\n            hidden_states = packing.pack(hidden_states)\n        cut =",
        "        mask = None\n        packing = CCRkPacking.of(attention_mask)\n"
        "        if packing is not None:\n            hidden_states = packing.pack(hidden_states)\n        cut =",
        "tests/modeling/test_text_layers_ccrk.py",
    ),
    Mutation(
        "positions without their offset",
        f"{CORE}/text_layers_ccrk.py",
        "positions = torch.arange(length, device=input_ids.device) + self.position_offset",
        "positions = torch.arange(length, device=input_ids.device)",
        "tests/modeling/test_text_layers_ccrk.py",
    ),
    Mutation(
        "masked-language labels shifted by one",
        f"{CORE}/masking_ccrk.py",
        "input_ids.masked_fill(~chosen, IGNORED_LABEL)",
        "input_ids.roll(1, 1).masked_fill(~chosen, IGNORED_LABEL)",
        "tests/modeling/test_masking_ccrk.py",
    ),
    # --- training
    Mutation(
        "scale of the gradient cache",
        "trainer/gradient_cache.py",
        "(loss * (weight * scale)).backward()",
        "(loss * weight).backward()",
        "tests/trainer/test_gradient_cache.py -k scale",
    ),
    Mutation(
        "texts of the next piece's first image taken along",
        "trainer/gradient_cache.py",
        "(self.image_index < images.stop)",
        "(self.image_index <= images.stop)",
        "tests/trainer/test_gradient_cache.py -k any_size",
    ),
    Mutation(
        "rows shuffled that were to come as they stand",
        "trainer/trainer_ccrk.py",
        'shuffle=args.train_sampling_strategy == "random",',
        "shuffle=True,",
        "tests/trainer/test_trainer_ccrk.py -k order",
    ),
    Mutation(
        "a resumed run leaves a batch out",
        "data/sharding.py",
        "for number in range(start, self.batches_per_epoch):",
        "for number in range(start + (start > 0), self.batches_per_epoch):",
        "tests/data/test_sharding.py",
    ),
    Mutation(
        "a resumed stream reads a batch twice",
        "data/sharding.py",
        "own = number - self.start_batch\n",
        "own = number - max(0, self.start_batch - 1)\n",
        "tests/data/test_sharding.py",
    ),
    Mutation(
        "weight of a caption's source forgotten",
        "trainer/collator_ccrk.py",
        'return self.source_weights.get(caption.get("source"), 1.0) * (1.0 if own is None else float(own))',
        "return 1.0 if own is None else float(own)",
        "tests/trainer/test_collator_ccrk.py -k weight",
    ),
    # --- figures
    Mutation(
        "recall at k takes rank k",
        "metrics/ccr_recall/recall.py",
        "(ranks < k).mean()",
        "(ranks <= k).mean()",
        RECALL,
    ),
    Mutation(
        "items of equal score stand behind the right one",
        "metrics/ccr_recall/recall.py",
        "reached += _count(scores[:, seen:] >= best[:, None])",
        "reached += _count(scores[:, seen:] > best[:, None])",
        RECALL,
    ),
    Mutation(
        "tie policies of MRV exchanged",
        "metrics/mrv/rank_variation.py",
        'level = {"pessimistic": 1.0, "optimistic": 0.0, "mean": 0.5}',
        'level = {"pessimistic": 0.0, "optimistic": 1.0, "mean": 0.5}',
        MRV,
    ),
    Mutation(
        "MRV with the deviation of a sample",
        "metrics/mrv/rank_variation.py",
        "variance = (deviation**2).sum(1) / enough",
        "variance = (deviation**2).sum(1) / (enough - 1)",
        MRV,
    ),
    Mutation(
        "middle of the places below the list, off by a half",
        "metrics/mrv/rank_variation.py",
        "place = (top_k + candidates - 1) / 2",
        "place = (top_k + candidates) / 2",
        MRV,
    ),
    Mutation(
        "difference of two models turned round",
        "metrics/significance.py",
        "apart = second - first",
        "apart = first - second",
        "tests/metrics/test_significance.py",
    ),
    Mutation(
        "candidates that no list names left out of the correlation",
        "metrics/consistency.py",
        "product += (candidates - len(union)) * tail_a * tail_b",
        "product += 0 * tail_a * tail_b",
        "tests/metrics/test_consistency.py",
    ),
    Mutation(
        "captions of every language counted from the first",
        "evaluation/candidates.py",
        "BestOf(images, items.numpy() + texts.start, similarity)",
        "BestOf(images, items.numpy(), similarity)",
        "tests/evaluation/test_stages.py -k slow_way",
    ),
    Mutation(
        "kept features of other languages taken for these",
        "evaluation/fingerprints.py",
        'json.dumps([str(row.get("image_id")), texts, languages])',
        'json.dumps([str(row.get("image_id")), texts])',
        CACHE,
    ),
    Mutation(
        "kept features of another processor taken for this one's",
        "evaluation/fingerprints.py",
        "json.dumps([processor.to_dict(), CAUSES], sort_keys=True, default=str)",
        "json.dumps([CAUSES], sort_keys=True, default=str)",
        CACHE,
    ),
    Mutation(
        "equal scores of a TREC run left equal",
        "evaluation/trec.py",
        "while place < len(result) and result[place] >= result[place - 1]:",
        "while place < len(result) and result[place] > result[place - 1]:",
        "tests/evaluation/test_trec.py",
    ),
    # --- search
    Mutation(
        "re-ranked worst first",
        "pipelines/ccr_retrieval.py",
        "key=lambda item: (item.match is None, -item.score)",
        "key=lambda item: (item.match is None, item.score)",
        SEARCH,
    ),
    Mutation(
        "probability of no match",
        "pipelines/ccr_retrieval.py",
        "asked, logits.tolist(), logits.softmax(-1)[:, 1].tolist(), strict=True",
        "asked, logits.tolist(), logits.softmax(-1)[:, 0].tolist(), strict=True",
        SEARCH,
    ),
    Mutation(
        "image states kept under their place in a batch",
        "pipelines/ccr_retrieval.py",
        'names = self.gallery.state_keys(ids) if hasattr(self.gallery, "state_keys") else ids',
        'names = self.gallery.state_keys(ids) if hasattr(self.gallery, "state_keys") else range(len(ids))',
        SEARCH,
    ),
    Mutation(
        "weights of photo and text exchanged",
        "pipelines/ccr_retrieval.py",
        "vectors = normalize((1 - weights) * photos + weights * texts, dim=-1)",
        "vectors = normalize(weights * photos + (1 - weights) * texts, dim=-1)",
        SEARCH,
    ),
    Mutation(
        "a range without its end, in memory",
        "pipelines/index.py",
        "(self.high is None or value <= self.high)",
        "(self.high is None or value < self.high)",
        f"{INDEX} 'filters_by_hand and memory'",
    ),
    Mutation(
        "a range without its end, in LanceDB",
        "pipelines/lance_index.py",
        'f"{name} <= {_literal(condition.high)}"',
        'f"{name} < {_literal(condition.high)}"',
        f"{INDEX} 'filters_mean and lance'",
    ),
    Mutation(
        "a quote in a filter not doubled",
        "pipelines/lance_index.py",
        'value.replace("\'", "\'\'")',
        'value.replace("\'", "\'")',
        f"{INDEX} '(filters_mean or nasty) and lance'",
    ),
    Mutation(
        "metadata of the last row not moved into the gap",
        "pipelines/memory_index.py",
        "column[row] = column[last]",
        "column[row] = column[row]",
        f"{INDEX} 'added_replaced and memory'",
    ),
    Mutation(
        "ends of a range in words exchanged",
        "pipelines/where_words.py",
        '(("min", low), ("max", high))',
        '(("max", low), ("min", high))',
        "tests/pipelines/test_where_words.py",
    ),
    # --- safety
    Mutation(
        "any token opens",
        "serving/guards.py",
        "return self._token is not None and hmac.compare_digest(given.encode",
        "return self._token is not None and bool(given.encode) or hmac.compare_digest(given.encode",
        "tests/serving/test_api.py -k 'token or login'",
    ),
]


def copy_checkout(folder: Path) -> tuple[Path, Path]:
    """A copy of the checkout, and a folder from which its code is imported as `ccrk`."""
    copy, site = folder / "checkout", folder / "site"
    shutil.copytree(ROOT, copy, ignore=LEFT_OUT, symlinks=True)
    # rooms are subpackages of the core: links stand for what setup.py does to an installed package
    for room in copy.glob("*/__init__.py"):
        if room.parent.name != CORE:
            (copy / CORE / room.parent.name).symlink_to(room.parent, target_is_directory=True)
    site.mkdir()
    (site / "ccrk").symlink_to(copy / CORE, target_is_directory=True)
    return copy, site


def preload() -> None:
    """Import what takes seconds, once, so that each run only imports the code that it tests."""
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    for name in HEAVY:
        importlib.import_module(name)


def run_tests(copy: Path, site: Path, *words: str) -> tuple[int, str]:
    """Run tests of the copy on the copy's code, in a fork of this process; returns the exit code and the output."""
    with tempfile.TemporaryFile() as log:
        child = os.fork()
        if not child:
            code = 70
            try:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
                os.chdir(copy)
                # without compiled files: their time stamps are too coarse for a file that changes twice in a second
                os.environ.update(PYTHONPATH=str(site), PYTHONDONTWRITEBYTECODE="1")
                sys.dont_write_bytecode = True
                sys.path.insert(0, str(site))
                code = pytest.main(["-q", "-x", "--no-header", "-p", "no:cacheprovider", *words])
            finally:
                sys.stdout.flush()
                os._exit(int(code))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        log.seek(0)
        return code, log.read().decode(errors="replace").strip()


def words_of(tests: str) -> list[str]:
    """Words of a command line in which `-k` may be followed by an expression in quotation marks."""
    files, flag, chosen = tests.partition(" -k ")
    return [*files.split(), "-k", chosen.strip("'")] if flag else files.split()


def try_out(mutation: Mutation, copy: Path, site: Path) -> str:
    """Make a mistake, run its tests, take it back; returns what came of it."""
    file = copy / mutation.file
    right = file.read_text(encoding="utf-8")
    found = right.count(mutation.old)
    if found != 1:
        return f"BROKEN: its text occurs {found} times"
    file.write_text(right.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        code, output = run_tests(copy, site, *words_of(mutation.tests))
    finally:
        file.write_text(right, encoding="utf-8")
    if code == FAILED:
        return "caught"
    return "SURVIVED" if code == 0 else f"BROKEN: pytest ended with {code}: {output[-300:]}"


def check_copy(mutations: list[Mutation], copy: Path, site: Path) -> str | None:
    """What is wrong with the tests before anything was broken; None if nothing is."""
    for tests in dict.fromkeys(mutation.tests for mutation in mutations):
        code, output = run_tests(copy, site, *words_of(tests))
        if code:
            return f"{tests} ends with {code} without any mistake:\n{output[-3000:]}"
    place = subprocess.run(
        [sys.executable, "-P", "-c", "import ccrk.trainer; print(ccrk.__file__)"],
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    ).stdout.strip()
    return None if place.startswith(str(site)) else f"ccrk was imported from '{place}' and not from the copy"


def main() -> int:
    """Try all mistakes, print what came of each, return 1 if one was not noticed."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("words", nargs="*", help="try rows whose title holds one of these alone")
    parser.add_argument("--list", action="store_true", help="print the titles and their tests, try nothing")
    args = parser.parse_args()
    chosen = [one for one in MUTATIONS if not args.words or any(word in one.title for word in args.words)]
    if args.list:
        print(*(f"{one.title}: {one.file}, {one.tests}" for one in chosen), sep="\n")
        return 0
    start = time.perf_counter()
    os.environ.setdefault("CCRK_SHARED", str(ROOT.parent / "shared"))
    preload()
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        copy, site = copy_checkout(Path(folder).resolve())
        wrong = check_copy(chosen, copy, site)
        if wrong is not None:
            print(wrong, file=sys.stderr)
            return 1
        for mutation in chosen:
            outcome = try_out(mutation, copy, site)
            bad += outcome != "caught"
            print(f"{outcome:<10} {mutation.title} ({mutation.file})", flush=True)
    print(f"{len(chosen) - bad} of {len(chosen)} caught in {time.perf_counter() - start:.0f} s")
    return int(bad > 0 or not chosen)


if __name__ == "__main__":
    sys.exit(main())
