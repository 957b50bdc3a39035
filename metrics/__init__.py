"""What is measured: recall and rank variance, consistency, significance, the report and its plots.

Imported as `ccrk.metrics`; it imports nothing of ours. `mrv/` and `ccr_recall/` are `evaluate` modules, each with its
card and with the arithmetic in a file beside it that needs numpy alone.
"""

from ccrk.metrics.mrv.rank_variation import mean_rank_variance

__all__ = ["mean_rank_variance"]
