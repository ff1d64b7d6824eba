from runtime.lean import LeanRunner
from runtime.lean_shape import decoder_of
def make_runner(stage, precision):
    return LeanRunner(stage, decoder_of(stage), precision), "x"
