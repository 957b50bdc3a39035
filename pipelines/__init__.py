"""The published retrieval pipeline, the galleries it searches, and their index back ends.

Imported as `ccrk.pipelines`; of ours it may import the core. The pipeline itself is one self-contained file, since
the Hub gets a copy of it as remote code.
"""
