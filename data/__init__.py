"""Reading every caption corpus into one schema, with checks and counts of what was skipped.

Imported as `ccrk.data`; it imports nothing of ours. `corpora` is the front door, `rows` has the schema, `sharding`
says which rows each process reads. A row is an `image`, its `image_id` and its `captions`, a list of
`{"language", "text"}` with optional `source` and `weight`.
"""
