"""Stages by kernels compiled for the processor of this machine.

Two halves that share `fields.py` alone. What runs: `runner.py` (a `ModelRunner`) over `stored.py` (matrices), `crew.py` (threads) and
`kernels.py` (the mapped image). What is compiled, by `build.py` in a process of its own: `stage_pass.py` reads a pass from top to bottom,
over `products.py`, `whole_products.py`, `shorten.py`, `rows.py` and `team.py`, all in Python that numba compiles, and `machine.py`, what
numba lacks; `image.py` makes the result something to map.
"""
