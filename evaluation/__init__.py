"""The two-stage protocol, benchmarks by name, and the cache of features on disk.

Imported as `ccrk.evaluation`; of ours it may import the core, `metrics` and `data`.
"""
