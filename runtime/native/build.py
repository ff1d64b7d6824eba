"""Compiles the kernels for this machine's processor: `python -m runtime.native.build FILE`, some seconds, once for each version.

A process of its own, since numba and LLVM are large and nobody needs them afterwards (`runtime/native/image.py`).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from runtime.native.image import Unlinkable, linked
from runtime.native.kernels import written

_NICE = 5


def compiled() -> tuple[bytes, int]:
    """The image, and where it begins to run; `Unlinkable` where these kernels need what this processor hasn't got."""
    # What numba would make fast piece by piece is made fast below, once; without unrolling, which takes more registers than there are.
    os.environ["NUMBA_OPT"] = "0"
    import llvmlite.binding as llvm
    from numba import types

    from runtime.native.stage_pass import run

    given = (types.int64, types.int64)
    run.compile(given)
    made: Any = run.overloads[given]
    name = made.fndesc.llvm_func_name
    module = llvm.parse_assembly(made.library.get_llvm_str())
    for one in (*module.functions, *module.global_variables):
        if not one.is_declaration:
            one.linkage = "external" if one.name == name else "internal"
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3, reloc="pic", codemodel="small"
    )
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.loop_unrolling = False
    builder = llvm.create_pass_builder(machine, options)
    first = llvm.create_new_module_pass_manager()
    first.add_global_dead_code_eliminate_pass()
    first.run(module, builder)
    builder.getModulePassManager().run(module, builder)
    return linked(machine.emit_object(module), name)


def main() -> None:
    target = Path(sys.argv[1])
    os.nice(_NICE)
    try:
        image, entry = compiled()
    except Unlinkable as error:
        sys.exit(f"the kernels can't be linked: they ask for {error}")
    written(target, image, entry)


if __name__ == "__main__":
    main()
