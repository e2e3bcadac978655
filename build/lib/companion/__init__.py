"""Large Pre-trained Models, Six Ways: six papers as small PyTorch packages, tables and runs.

The shared rooms are `companion.tables` (what the papers report and which run fills which cell),
`companion.records` (what a run leaves behind), `companion.training` (one loop), `companion.datasets`
(where data lives) and `companion.plotting`. Each paper has a package of its own; they never import
each other.
"""

__version__ = "0.1.0"

PAPERS = ("dgsct", "dncl", "newscap", "reactiont5", "gestur", "ytuning")
