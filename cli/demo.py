"""`ccrk demo`: trains a small model on drawn scenes and searches them in ten languages; downloads nothing."""

from __future__ import annotations

import argparse

NAME = "demo"
HELP = """Train a small CCRk from scratch and search with it, in about ten minutes of processor time.

Scenes of coloured shapes are drawn, described in ten languages, and learned. Then scenes whose colour-shape pairs were
never together in training are searched: recall and rank variation by language are printed, and a page shows what one
query finds in each language."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `ccrk demo`."""
    parser.add_argument(
        "--out", default="demo_output", help="folder for the model and the page (default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, help="training steps; fewer are faster and worse")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default: 0)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Runs the demonstration."""
    import torch

    from ccrk.trainer.demo import DemoPlan, run_demo

    torch.set_num_threads(args.threads)
    plan = DemoPlan(seed=args.seed)
    if args.steps is not None:
        plan.steps = args.steps
    run_demo(plan, args.out)
    return 0
