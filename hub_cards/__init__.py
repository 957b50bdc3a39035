"""Templates of model and dataset cards, and what fills them in.

Imported as `ccrk.hub_cards`; of ours it may import `metrics`.
"""
