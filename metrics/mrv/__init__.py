"""Mean rank variance: do the languages of a query agree on where its answer ranks?

A folder that `evaluate.load("metrics/mrv")` takes as it is; the arithmetic lies beside the module and needs numpy
alone.
"""
