"""The HTTP service, its web page, and the app of a Hub Space.

Imported as `ccrk.serving`; of ours it may import the core, `pipelines` and `metrics`.
"""
