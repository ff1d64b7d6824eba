"""What the compiled kernels are told, by number: fields of 8 bytes in arrays of whole numbers. Addresses are of this process.

Both sides read this file: the kernels, in which these are constants, and what calls them, which has neither numba nor LLVM.
"""

from __future__ import annotations

# A stage, written once.
HIDDEN, HEADS, KV_HEADS, HEAD_DIM, ROTATED, INNER, LAYERS, ACT, VOCABULARY = range(9)
EPS, SCALE, SOFTCAP, LOGIT_CAP = range(9, 13)
"""Numbers of 32 bits in the lower half; a cap of nought is none."""
NORM = 13
HEAD = 14
"""A matrix: its six fields from here on."""
STAGE_FIELDS = 24

# A layer, LAYER_FIELDS each after those of the stage.
BEFORE_ATTENTION, AFTER_ATTENTION, BEFORE_MLP, AFTER_MLP, HEAD_NORM, WINDOW, TABLE = range(7)
QKV, OUT, GATE_UP, DOWN = 8, 14, 20, 26
LAYER_FIELDS = 32

# A matrix.
KIND, WEIGHT, SCALES, BIAS, ROWS, WIDTH = range(6)
MATRIX_FIELDS = 6
BF16, INT8, INT4 = range(3)
SILU, GELU_TANH = range(2)

# A pass, written each time.
STAGE, COMMON, COUNT, GIVEN, WANTED, WANTED_COUNT, RESULT, PLACES = range(8)
"""GIVEN: bf16 [count, hidden]. WANTED: numbers of rows. RESULT: logits in fp32 or bf16 [wanted, hidden]. PLACES: PLACE_FIELDS a row."""
X, NORMED, HEADS_ROOM, ATTENDED, INNER_ROOM, GATED, ADDED = range(8, 15)
"""Rooms in fp32, a row each for the rows of the pass; INNER_ROOM has two inner widths."""
SHORT = 15
"""What the next matrix takes in whole numbers of 16 bits, as `runtime/native/shorten.py` lays them out."""
SCORES, SCORES_EACH = 16, 17
"""fp32 for each thread, and how many."""
TABLES = 18
"""Cosines and sines, fp32 [positions, rotated], of each kind: two fields each."""
MOST_TABLES = 7
WRONG = 32
"""Not nought after it: a row that goes on to the next stage isn't all numbers."""
PASS_FIELDS = 40

# Where a row stands.
BASE, LAYER_STRIDE, VALUES, ROOM, POSITION = range(5)
"""BASE: bytes of the first layer's keys; LAYER_STRIDE and VALUES (from keys to values) in bytes; ROOM: positions between two heads."""
PLACE_FIELDS = 8

# What threads share: each field has a line of its own.
LINE = 8
"""Fields of a line of the processor's cache."""
PHASE, DONE, INSIDE, OPEN, TAKEN = range(5)
"""TAKEN and the following: one for each thread."""

# A thread. The first is whoever asks for a pass, the others help.
NUMBER, THREADS, RING_OF, DOOR, SLEEPS, STOP, BUFFER, READ, WRITE, GIVE_WAY, OTHERS = range(11)
"""RING_OF: addresses of RING passes. DOOR: the descriptor a helper sleeps at. READ, WRITE, GIVE_WAY: functions of libc. OTHERS: of the
first, addresses of the helpers'."""
THREAD_FIELDS = 16
RING = 4
