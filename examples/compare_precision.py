"""What bfloat16 does to a model's answers: recall, MRV and first places beside those of float32.

    python examples/compare_precision.py MODEL --data val.jsonl [--images FOLDER] [--rerank 32]

Every photo and caption is embedded twice, in float32 and under autocast to bfloat16. A first place can only change
where the two best photos are closer in float32 than twice the largest error of a similarity; the script counts the
changes beyond that, of which there can be none unless something other than rounding is at work.
"""

from __future__ import annotations

import argparse

import torch
from transformers import AutoModel, AutoProcessor

from ccrk.data.corpora import read_corpus
from ccrk.data.rows import first_captions
from ccrk.evaluation.features import encode, evaluation_mode
from ccrk.evaluation.retrieval import evaluate_retrieval
from ccrk.evaluation.tiles import best_matches


def compare_first(model, processor, dataset) -> dict[str, float]:
    """Shares and counts of first places that change, of text-to-image search by embeddings."""
    with evaluation_mode(model):
        full, half = (encode(model, processor, dataset, bf16=bf16, progress=True) for bf16 in (False, True))
    scores, first = best_matches(full.text_embeds, full.image_embeds, 2)
    _, other = best_matches(half.text_embeds, half.image_embeds, 1)
    error = 0.0
    for texts, rounded in zip(full.text_embeds.split(1024), half.text_embeds.split(1024), strict=True):
        error = max(error, float((texts @ full.image_embeds.t() - rounded @ half.image_embeds.t()).abs().max()))
    flipped, margin = first[:, 0] != other[:, 0], scores[:, 0] - scores[:, 1]
    return {
        "captions": len(flipped),
        "equal first": float((~flipped).float().mean()),
        "largest error of a similarity": error,
        "flips": int(flipped.sum()),
        "largest margin of a flip": float(margin[flipped].max()) if flipped.any() else 0.0,
        "flips beyond twice the error": int((flipped & (margin > 2 * error)).sum()),
    }


def figures(model, processor, dataset, languages, rerank: int, bf16: bool) -> dict[str, float]:
    """Mean recall over languages, and MRV; re-ranked ones beside them."""
    options = {"mrv_languages": languages, "rerank": rerank, "bf16": bf16}
    report = evaluate_retrieval(model, processor, dataset, progress=True, **options)
    found = {}
    for name, part in (("", report), (" re-ranked", report.get("reranked"))):
        if part is None:
            continue
        for key in next(iter(part["languages"].values())):
            if "@" in key:
                values = [of_language[key] for of_language in part["languages"].values()]
                found[key + name] = 100 * sum(values) / len(values)
        if part["mrv"] is not None:
            found["MRV" + name] = part["mrv"]["mrv"]
    return found


def main(words: list[str] | None = None) -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or Hub id")
    parser.add_argument("--data", required=True, help="captions to ask with")
    parser.add_argument("--images", help="folder of the photos")
    parser.add_argument("--source", nargs="+", help="extra captions to take, such as zh=zh_human")
    parser.add_argument("--languages", nargs="+", help="all by default")
    parser.add_argument("--mrv-languages", nargs="+", help="those that MRV compares")
    parser.add_argument("--rerank", type=int, default=0, help="candidates that the fusion encoder re-scores")
    parser.add_argument("--threads", type=int, help="of the processor")
    args = parser.parse_args(words)
    if args.threads:
        torch.set_num_threads(args.threads)
    given = {"images": args.images, "sources": args.source, "languages": args.languages}
    dataset = first_captions(read_corpus(args.data, **{k: v for k, v in given.items() if v is not None}))
    print(dataset.describe())
    model, processor = AutoModel.from_pretrained(args.model), AutoProcessor.from_pretrained(args.model)
    full, half = (figures(model, processor, dataset, args.mrv_languages, args.rerank, bf16) for bf16 in (False, True))
    print(f"{'':20}{'float32':>10}{'bfloat16':>10}")
    for name, value in full.items():
        print(f"{name:20}{value:10.2f}{half[name]:10.2f}")
    for name, value in compare_first(model, processor, dataset).items():
        print(f"{name}: {value:.6g}")


if __name__ == "__main__":
    main()
