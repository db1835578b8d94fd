"""A BPF object in the kernel: its programs and maps, through libbpf.so.1 by ctypes.

Nothing needs libbpf but the data path ``bpf``: it is looked for when an object
is opened, and its absence is one clear line.  Needs CAP_BPF and CAP_NET_ADMIN,
or to be root; what is open can be used without CAP_BPF on Linux 5.19 and later.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from pptp_nat.errors import AdapterError

LIBRARY: Final = "libbpf.so.1"
_NEWEST_ERRNO: Final = 4095  # linux/err.h, MAX_ERRNO: libbpf's own begin behind it
_OTHER_ORDER: Final = 4003  # LIBBPF_ERRNO__ENDIAN (bpf/libbpf_legacy.h)
_MENDS: Final = {
    errno.EPERM: "be root, or have CAP_BPF and CAP_NET_ADMIN",
    errno.EACCES: "the verifier of this kernel refuses it: Linux 5.11 or later is needed",
    errno.EINVAL: "this kernel does not know what it uses: Linux 5.11 or later is needed",
}
#: struct __sk_buff (linux/bpf.h): the mark, what is between, where the packet came in; the rest.
_CONTEXT: Final = struct.Struct("=8xI24xI152x")
_PROGRAM: Final = struct.Struct("=4xI56x16s")  # struct bpf_prog_info: its ID and name, and more
_ROOM: Final = 256  # octets by which a packet may grow


class _TestRun(ctypes.Structure):
    """What bpf_prog_test_run_opts takes (libbpf's bpf.h, struct bpf_test_run_opts)."""

    _fields_ = (
        ("size", ctypes.c_size_t),
        ("data_in", ctypes.c_void_p), ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32), ("data_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_void_p), ("ctx_out", ctypes.c_void_p),
        ("ctx_size_in", ctypes.c_uint32), ("ctx_size_out", ctypes.c_uint32),
        ("retval", ctypes.c_uint32), ("repeat", ctypes.c_int),
        ("duration", ctypes.c_uint32), ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32), ("batch_size", ctypes.c_uint32),
    )  # fmt: skip


class Ran(NamedTuple):
    """What a program made of a frame."""

    verdict: int  #: as a signed number: -1 lets the packet go on
    frame: bytes
    mark: int  #: of the packet; an XDP program knows of none
    nanoseconds: int  #: of one run, the mean of all


class _Library:
    """libbpf, with the prototypes of what we call."""

    def __init__(self) -> None:
        try:
            library = ctypes.CDLL(LIBRARY, use_errno=True)
        except OSError as error:
            raise AdapterError(
                f"loading {LIBRARY}", errno.ENOENT, mend="install libbpf (Debian: libbpf1)"
            ) from error
        pointer, number, text = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p
        size, wide, flags = ctypes.c_size_t, ctypes.c_uint32, ctypes.c_uint64
        self.open = _prototype(library.bpf_object__open_mem, pointer, pointer, size, pointer)
        self.load = _prototype(library.bpf_object__load, number, pointer)
        self.close = _prototype(library.bpf_object__close, None, pointer)
        self.find_map = _prototype(library.bpf_object__find_map_by_name, pointer, pointer, text)
        self.find_program = _prototype(
            library.bpf_object__find_program_by_name, pointer, pointer, text
        )
        self.map_fd = _prototype(library.bpf_map__fd, number, pointer)
        self.program_fd = _prototype(library.bpf_program__fd, number, pointer)
        self.set_entries = _prototype(library.bpf_map__set_max_entries, number, pointer, wide)
        self.leave_program = _prototype(
            library.bpf_program__set_autoload, number, pointer, ctypes.c_bool
        )
        self.leave_map = _prototype(library.bpf_map__set_autocreate, number, pointer, ctypes.c_bool)
        self.describe = _prototype(
            library.bpf_obj_get_info_by_fd, number, number, pointer, pointer
        )
        self.open_program = _prototype(library.bpf_prog_get_fd_by_id, number, wide)
        self.set_value = _prototype(
            library.bpf_map__set_initial_value, number, pointer, text, size
        )
        self.update = _prototype(
            library.bpf_map_update_elem, number, number, text, text, flags
        )
        self.lookup = _prototype(
            library.bpf_map_lookup_elem, number, number, text, pointer
        )
        self.delete = _prototype(library.bpf_map_delete_elem, number, number, text)
        self.run = _prototype(library.bpf_prog_test_run_opts, number, number, pointer)
        # It would write to our standard error.  The errno says it as well, in one line.
        _prototype(library.libbpf_set_print, pointer, pointer)(None)


def _prototype(function: Any, result: Any, *arguments: Any) -> Any:  # noqa: ANN401 - ctypes' own
    function.restype, function.argtypes = result, arguments
    return function


def _fail(doing: str, code: int) -> AdapterError:
    if code == _OTHER_ORDER:
        other = "it is for processors of the other order of octets"
        return AdapterError(doing, errno.ENOEXEC, mend=other)
    code = code if 0 < code <= _NEWEST_ERRNO and code in errno.errorcode else errno.EINVAL
    return AdapterError(doing, code, mend=_MENDS.get(code, ""))


class BpfObject:
    """One object file, opened and loaded.

    Args:
        file: what clang made of the source.
        entries: of some of its maps, how many they may hold.
        constants: what the section ``.rodata`` is to hold.
        without: programs and maps that are not needed: the kernel need not know their types.

    Raises:
        AdapterError: libbpf is missing, or the kernel refuses the programs.
    """

    def __init__(
        self, file: Path, entries: dict[str, int], constants: bytes, without: Sequence[str] = ()
    ) -> None:
        self._handle: int | None = None
        self._library = library = _Library()
        try:
            octets = file.read_bytes()
        except OSError as error:
            raise AdapterError(f"reading {file}", error.errno or 0) from error
        handle = library.open(octets, len(octets), None)
        if not handle:
            raise _fail(f"opening {file}", ctypes.get_errno())
        self._handle = handle
        try:
            for name, most in entries.items():
                library.set_entries(self._map(name), most)
            for name in without:
                program = library.find_program(handle, name.encode())
                leave = library.leave_program if program else library.leave_map
                leave(program or self._map(name), False)
            library.set_value(self._map(".rodata"), constants, len(constants))
            refused = library.load(handle) != 0 and _fail(
                "loading BPF programs", ctypes.get_errno()
            )
        except BaseException:
            self.close()
            raise
        if refused:
            self.close()
            raise refused

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of programs and maps; what is attached goes on.  A second time does no harm."""
        handle, self._handle = self._handle, None
        if handle is not None:
            self._library.close(handle)

    def _map(self, name: str) -> int:
        found: int | None = self._library.find_map(self._handle, name.encode())
        assert found, f"the object has a map {name}"
        return found

    def map_fd(self, name: str) -> int:
        """Return the descriptor of a map; it is open until `close`."""
        number: int = self._library.map_fd(self._map(name))
        return number

    def program_fd(self, name: str) -> int:
        """Return the descriptor of a program; it is open until `close`."""
        found = self._library.find_program(self._handle, name.encode())
        assert found, f"the object has a program {name}"
        number: int = self._library.program_fd(found)
        return number

    def program_id(self, name: str) -> int:
        """Return the number that the kernel has given a program.

        Raises:
            AdapterError: it does not tell.
        """
        found = _described(self._library, self.program_fd(name))
        if found is None:
            raise _fail(f"asking for the BPF program {name}", ctypes.get_errno())
        return found[0]

    def update(self, fd: int, key: bytes, value: bytes) -> int:
        """Put *value* into the map *fd*; return an errno, 0 for success."""
        return 0 if self._library.update(fd, key, value, 0) == 0 else ctypes.get_errno()

    def delete(self, fd: int, key: bytes) -> int:
        """Take *key* out of the map *fd*; return an errno, 0 for success."""
        return 0 if self._library.delete(fd, key) == 0 else ctypes.get_errno()

    def lookup(self, fd: int, key: bytes, octets: int) -> bytes | None:
        """Return the value of *key* in the map *fd*, so many *octets*; None: there is none."""
        value = ctypes.create_string_buffer(octets)
        return value.raw if self._library.lookup(fd, key, value) == 0 else None

    def test_run(
        self, program: str, frame: bytes, *, mark: int = 0, came_in_at: int = 0, times: int = 1
    ) -> Ran:
        """Run a program of tc's on an Ethernet frame that nobody sends (BPF_PROG_TEST_RUN).

        Args:
            program: its name.
            frame: from the Ethernet header on.
            mark: of the packet.
            came_in_at: index of the device where it was received; 0: it is our own.
            times: how often, for a mean; the frame is that of the last run.

        Raises:
            AdapterError: the kernel refuses the frame.
        """
        context = _CONTEXT.pack(mark, came_in_at)
        ctx_in = ctypes.create_string_buffer(context, len(context))
        ctx_out = ctypes.create_string_buffer(len(context))
        ran = self._test_run(program, frame, times, _TestRun(
            ctx_in=ctypes.addressof(ctx_in), ctx_out=ctypes.addressof(ctx_out),
            ctx_size_in=len(context), ctx_size_out=len(context),
        ))  # fmt: skip
        return ran._replace(mark=_CONTEXT.unpack(ctx_out.raw)[0])

    def test_run_early(self, program: str, frame: bytes, *, times: int = 1) -> Ran:
        """Run an XDP program on a frame that nobody sends, as from the loopback device.

        Raises:
            AdapterError: the kernel refuses the frame.
        """
        return self._test_run(program, frame, times, _TestRun())

    def _test_run(self, program: str, frame: bytes, times: int, asked: _TestRun) -> Ran:
        room = len(frame) + _ROOM
        data_in = ctypes.create_string_buffer(frame, len(frame))
        data_out = ctypes.create_string_buffer(room)
        asked.size, asked.repeat = ctypes.sizeof(_TestRun), times
        asked.data_in, asked.data_size_in = ctypes.addressof(data_in), len(frame)
        asked.data_out, asked.data_size_out = ctypes.addressof(data_out), room
        if self._library.run(self.program_fd(program), ctypes.addressof(asked)) != 0:
            raise _fail(f"running the BPF program {program}", ctypes.get_errno())
        verdict = struct.unpack("=i", struct.pack("=I", asked.retval))[0]
        return Ran(verdict, data_out.raw[: asked.data_size_out], 0, asked.duration)


def _described(library: _Library, program: int) -> tuple[int, str] | None:
    """Return ID and name of a program by its descriptor; None: the kernel does not tell."""
    info = ctypes.create_string_buffer(_PROGRAM.size)
    octets = ctypes.c_uint32(_PROGRAM.size)
    if library.describe(program, info, ctypes.byref(octets)) != 0:
        return None
    number, name = _PROGRAM.unpack(info.raw)
    return number, name.split(b"\0", 1)[0].decode("ascii", "replace")


def program_name(number: int) -> str:
    """Return the name of a program by its ID; "": it is not told.

    The kernel tells who has CAP_SYS_ADMIN; a name ends behind its 15th character.
    """
    try:
        library = _Library()
    except AdapterError:
        return ""
    program: int = library.open_program(number)
    if program < 0:
        return ""
    try:
        found = _described(library, program)
    finally:
        os.close(program)
    return "" if found is None else found[1]


def kernel_release() -> tuple[int, int]:
    """Return the first two numbers of this kernel's release."""
    found = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return (int(found[1]), int(found[2])) if found else (0, 0)
