"""DN-CL: symbolic regression that survives noise (Liu et al. 2024, arXiv 2406.14844).

Rooms: `expressions` (prefix formulas and their tensor evaluator), `generator` (skeletons), `data` (noise
view, training batches, benchmarks), `model` (set encoder, skeleton decoder, losses), `search` (constrained
beam search, constants, selection), `metrics`, `cost`.

The paper's body could not be read by us; this is a re-implementation in its spirit. Every choice that is not
the paper's is marked in the docstrings and on the book's page.
"""
