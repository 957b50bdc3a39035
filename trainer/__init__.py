"""Training: the Trainer subclass, its arguments, the collator, gathering across ranks, the gradient cache.

Imported as `ccrk.trainer`; of ours it may import the core, `data`, `evaluation` and `hub_cards`.
"""
