"""`ccrk export`: writes the encoders of a model as ONNX files."""

from __future__ import annotations

import argparse
from pathlib import Path

NAME = "export"
HELP = """Write the encoders of a model as ONNX files: image tower, text tower, fusion encoder with the matching head.

Each takes any number of photos, texts or pairs. The files are run and compared with the model before they are kept,
and their checksums are written beside them."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument("model", metavar="MODEL", help="folder or Hub id of a model")
    parser.add_argument("--to", required=True, metavar="FOLDER", help="to write; an earlier export there is replaced")
    parser.add_argument("--int8", action="store_true", help="linear layers in 8 bits: smaller, and not quite the same")


def run(args: argparse.Namespace) -> int:
    """Exports and says how far the files are from the model."""
    import torch
    from transformers import AutoModel, AutoProcessor

    from ccrk.pipelines.onnx_export import export_encoders

    model = AutoModel.from_pretrained(args.model, dtype=torch.float32)
    manifest = export_encoders(model, AutoProcessor.from_pretrained(args.model), args.to, int8=args.int8)
    size = sum((Path(args.to) / name).stat().st_size for name in manifest["files"]) / 2**20
    print(f"{len(manifest['files'])} files, {size:,.0f} MiB, in {args.to}")
    for name, found in manifest["differences"].items():
        cosine = f", cosine at least {found['cosine']:.6f}" if "cosine" in found else ""
        print(f"  {name}: at most {found['max']:.1e} from the model{cosine}")
    return 0
