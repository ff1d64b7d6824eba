"""Shuts the worker in, since it runs what strangers published: templates, tokenizers, weights.

    no_new_privs   nothing gained by exec
    Landlock       reads Python's own folders, libraries, /proc/self, the CPU's description; writes one scratch folder
    seccomp        no sockets but Unix ones, none connected, bound or listening, so that one that is given leads where it led; no exec,
                   fork, ptrace, kill, io_uring (it would go round the filter), keyrings, mounts
    limits         data memory from the budget (never address space: torch reserves much more than it uses), files, no core dump

Entered once, after torch and transformers are imported. Each part is asked of the kernel by itself (ctypes, no library): where
one is missing the rest still holds, and the report says so for `doctor`. Landlock holds the calling thread and what it
starts, so this comes before torch has threads; seccomp is laid over all threads. Rejected: bubblewrap or containers
(a program more to install, no rights to start it in many places), RLIMIT_AS (kills torch at import).
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import struct
import sys
from collections.abc import Sequence
from pathlib import Path

from protocol import limits

_NO_NEW_PRIVS = 38
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_EXECUTE, _READ = 1 << 0, 1 << 2 | 1 << 3
_WRITE = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8
_ALL = (1 << 13) - 1
_FILE_ONLY = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 14
_REFER, _TRUNCATE = 1 << 13, 1 << 14
_SLACK = 512 * limits.MIB
_NOFILE = 4_096
_NVIDIA = ("nvidia*",)
"""Device files, in /dev."""

_DENIED = {
    "x86_64": (
        59, 322, 101, 310, 311, 57, 58, 62, 200, 129, 321, 165, 166, 155, 161, 175, 313, 176, 246,
        298, 323, 248, 249, 250, 425, 308, 272, 304, 434, 438, 424, 42, 49, 50, 43, 288,
    ),
    "aarch64": (
        221, 281, 117, 270, 271, 129, 130, 138, 280, 40, 39, 41, 51, 105, 273, 106, 104,
        241, 282, 217, 218, 219, 425, 268, 97, 265, 434, 438, 424, 203, 200, 201, 202, 242,
    ),
}  # fmt: skip
"""execve execveat ptrace process_vm_readv process_vm_writev [fork vfork] kill tkill rt_sigqueueinfo bpf mount umount2 pivot_root
chroot init_module finit_module delete_module kexec_load perf_event_open userfaultfd add_key request_key keyctl io_uring_setup
setns unshare open_by_handle_at pidfd_open pidfd_getfd pidfd_send_signal connect bind listen accept accept4"""

_STARTS = {"x86_64": (59, 322, 57, 58, 62), "aarch64": (221, 281, 129)}
"""Of these execve execveat [fork vfork] kill: what a process needs that starts others."""

_COMPILERS = tuple(map(Path, ("/usr", "/bin", "/etc/alternatives", "/etc/ld.so.cache", "/proc")))

_ARCH = {"x86_64": (0xC000003E, 41, 56, 317), "aarch64": (0xC00000B7, 198, 220, 277)}
"""audit architecture, numbers of socket, clone, seccomp"""

_SENDS = {"x86_64": {44: 3, 46: 2, 307: 3}, "aarch64": {206: 3, 211: 2, 269: 3}}
"""sendto sendmsg sendmmsg: which argument their flags are."""
_FAST_OPEN = 0x20000000
"""MSG_FASTOPEN: connects a socket that has lost its peer, to anywhere."""

_CLONE3, _CLONE_THREAD, _X32 = 435, 0x10000, 0x40000000
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000


def enter(scratch: str, memory: int, readable: Sequence[Path] = (), device: str = "cpu") -> dict[str, str]:
    """Shuts this process in for good. Says per feature "on", or why not. `readable` may be read besides.

    `device`: as torch names it. A driver of NVIDIA's maps much more than it uses and talks to its device files: there is no bound on data
    memory then, and those files are open. Untried, for want of one.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    done = {"limits": _limit(memory, data=not device.startswith("cuda"))}
    if sys.platform != "linux":
        return done | {"no_new_privs": "needs Linux", "landlock": "needs Linux", "seccomp": "needs Linux"}
    done["no_new_privs"] = _attempt(_no_new_privs)
    devices = _NVIDIA if device.startswith("cuda") else ()
    done["landlock"] = _attempt(lambda: _landlock(Path(scratch), readable, [path for name in devices for path in Path("/dev").glob(name)]))
    done["seccomp"] = _attempt(_seccomp)
    return done


def enter_compiler(folder: Path) -> dict[str, str]:
    """The same for a process that compiles (runtime/compiling.py): it may start others, which inherit all of this, run what lies under
    Python's prefixes and the system's folders, and write into `folder` alone. No network, as above."""
    if sys.platform != "linux":
        return {"no_new_privs": "needs Linux", "landlock": "needs Linux", "seccomp": "needs Linux"}
    done = {"no_new_privs": _attempt(_no_new_privs)}
    done["landlock"] = _attempt(lambda: _landlock(folder, [path for path in _COMPILERS if path.exists()], (), run=_EXECUTE))
    done["seccomp"] = _attempt(lambda: _seccomp(starts=True))
    return done


def report() -> dict[str, str]:
    """What this kernel offers, without entering: "available", or why not. For `doctor`."""
    if sys.platform != "linux":
        return {"landlock": "needs Linux", "seccomp": "needs Linux", "limits": "available"}
    abi = _abi()
    known = platform.machine() in _ARCH
    actions = Path("/proc/sys/kernel/seccomp/actions_avail")
    seccomp = "available" if known and actions.exists() else f"not for {platform.machine()}" if not known else "not in this kernel"
    return {"landlock": f"available, version {abi}" if abi > 0 else "not in this kernel", "seccomp": seccomp, "limits": "available"}


def _attempt(step: object) -> str:
    try:
        return str(step()) if callable(step) else "unknown"
    except OSError as error:
        return f"off: {error.strerror}"


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _syscall(number: int, *arguments: object) -> int:
    """The call's result; `OSError` with the kernel's reason."""
    libc = _libc()
    libc.syscall.restype = ctypes.c_long
    words = [ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments]
    result = int(libc.syscall(ctypes.c_long(number), *words))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _no_new_privs() -> str:
    if _libc().prctl(_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return "on"


def _limit(memory: int, data: bool = True) -> str:
    """Private writable mappings count, the groups' too, and a cast needs both copies for a moment: hence twice the budget."""
    if data:
        _lower(resource.RLIMIT_DATA, _data_bytes() + 2 * memory + _SLACK)
    _lower(resource.RLIMIT_NOFILE, _NOFILE)
    return "on" if data else "on, but for data memory: this device's driver needs more than it uses"


def _lower(kind: int, wanted: int) -> None:
    hard = resource.getrlimit(kind)[1]
    bound = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(kind, (bound, bound))


def _data_bytes() -> int:
    try:
        with open("/proc/self/status") as status:
            return next((int(line.split()[1]) * 1024 for line in status if line.startswith("VmData:")), 0)
    except OSError:
        return 2 * limits.GIB


def _abi() -> int:
    try:
        return _syscall(_LANDLOCK_CREATE, None, 0, 1)
    except OSError:
        return 0


def _landlock(scratch: Path, readable: Sequence[Path], devices: Sequence[Path] = (), run: int = 0) -> str:
    """`run`: the right to start what may be read, or what is written here."""
    abi = _abi()
    if abi < 1:
        raise OSError(errno.ENOSYS, "this kernel has no Landlock")
    handled = _ALL | (_REFER if abi >= 2 else 0) | (_TRUNCATE if abi >= 3 else 0)
    network, scope = (3 if abi >= 4 else 0), (3 if abi >= 6 else 0)
    attributes = struct.pack("=QQQ", handled, network, scope)[: 24 if abi >= 6 else 16 if abi >= 4 else 8]
    ruleset = _syscall(_LANDLOCK_CREATE, ctypes.c_char_p(attributes), len(attributes), 0)
    try:
        for path in [*_readable(), *readable]:
            _allow(ruleset, path, (_READ | run) & handled)
        _allow(ruleset, scratch, (_READ | _WRITE | _TRUNCATE | run) & handled)
        for path in [Path("/dev/null"), *devices]:
            _allow(ruleset, path, (_READ | _WRITE) & handled)
        _syscall(_LANDLOCK_RESTRICT, ruleset, 0)
    finally:
        os.close(ruleset)
    return "on"


def _readable() -> list[Path]:
    """Python's prefixes, the packages of this program alone (a checkout beside them may hold data), libraries, the CPU."""
    import protocol

    top = Path(__file__).resolve().parent
    own = [top, Path(str(protocol.__file__)).resolve().parent]
    packages = [Path(entry) for entry in sys.path if entry.endswith(("site-packages", "dist-packages"))]
    system = [
        Path(name)
        for name in ("/proc/self", "/proc/cpuinfo", "/sys/devices/system/cpu", "/usr/lib", "/usr/lib64", "/lib", "/lib64", "/dev/urandom")
    ]
    return [path for path in [Path(sys.prefix), Path(sys.base_prefix), *packages, *own, *system] if path.exists()]


def _allow(ruleset: int, path: Path, access: int) -> None:
    folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not path.is_dir():
            access &= _FILE_ONLY
        rule = struct.pack("=Qi", access, folder)
        _syscall(_LANDLOCK_ADD, ruleset, 1, ctypes.c_char_p(rule), 0)
    finally:
        os.close(folder)


def _seccomp(starts: bool = False) -> str:
    machine = platform.machine()
    if machine not in _ARCH:
        raise OSError(errno.ENOSYS, f"the filter isn't written for {machine}")
    program = _program(machine, starts)
    body = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(body))
    _syscall(_ARCH[machine][3], 1, 1, ctypes.c_char_p(header))
    return "on"


def _program(machine: str, starts: bool = False) -> bytes:
    """The filter as BPF: an instruction is (code, jump if true, jump if false, constant). `starts`: other processes may be started."""
    audit, socket, clone, _number = _ARCH[machine]
    refuse = (_RETURN, 0, 0, _ERRNO | errno.EPERM)
    allow = (_RETURN, 0, 0, _ALLOW)
    code = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, audit), refuse, (_LOAD, 0, 0, 0)]
    if machine == "x86_64":
        code += [(_AT_LEAST, 0, 1, _X32), refuse]
    for number in sorted(set(_DENIED[machine]) - set(_STARTS[machine] if starts else ())):
        code += [(_EQUAL, 0, 1, number), refuse]
    code += [(_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]
    code += [(_EQUAL, 0, 4, socket), (_LOAD, 0, 0, 16), (_EQUAL, 0, 1, 1), allow, refuse]
    for number, flags in _SENDS[machine].items():
        code += [(_EQUAL, 0, 4, number), (_LOAD, 0, 0, 16 + 8 * flags), (_ANY_BIT, 0, 1, _FAST_OPEN), refuse, allow]
    if not starts:
        code += [(_EQUAL, 0, 4, clone), (_LOAD, 0, 0, 16), (_ANY_BIT, 0, 1, _CLONE_THREAD), allow, refuse]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in [*code, allow])
