"""Cards of models, data sets and metrics, made of what was measured, and what puts a folder on the Hub.

Imported as `ccrk.hub_cards`; of ours it may import `metrics`.
"""
