"""The command `ccrk`: one file per command, none with logic of its own.

Imported as `ccrk.cli`; it may import every room, and no room imports it. A command is a module with `NAME`, `HELP`,
`add_arguments(parser)` and `run(args) -> int`, and a line in the table of `main.py`.
"""
