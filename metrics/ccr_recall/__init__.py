"""Recall of cross-lingual cross-modal retrieval, in both directions and per language.

A folder that `evaluate.load("metrics/ccr_recall")` takes as it is; the arithmetic lies beside the module and needs
numpy alone.
"""
