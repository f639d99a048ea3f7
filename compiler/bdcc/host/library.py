# SPDX-License-Identifier: 0BSD
"""A project's shared library on NumPy arrays, loaded through cffi's ABI mode."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cffi
import numpy as np
import numpy.typing as npt

from bdcc.codegen.memory import ALIGNMENT
from bdcc.codegen.targets import ISAS
from bdcc.errors import DataError, MismatchError, OptionError
from bdcc.files import temporary_folder
from bdcc.host.build import build
from bdcc.host.facts import ProjectFacts, read_facts
from bdcc.ir.graph import F32

U8 = npt.NDArray[np.uint8]

E_ISA, E_THREADS = 8, 9
GUARD_BYTES = 64  # behind the arena: nobody may write there
GARBAGE = 0xA5  # what a fresh arena is filled with: as floats tiny, as codes large

# Handles are opaque here: the library says how many bytes they take.
DECLARATIONS = """
typedef struct {{
    const char *layer, *tensor;
    int32_t bits, height, width, channels, pitch;
    size_t offset;
}} {m}_step_t;
int {m}_init(void *, const void *, size_t);
int {m}_init_isa(void *, const void *, size_t, const char *);
int {m}_run(const void *, void *, size_t, const float *, float *);
int {m}_run_u8(const void *, void *, size_t, const uint8_t *, size_t, float *);
int {m}_run_steps(const void *, void *, size_t, const float *, float *, int, int);
int {m}_step_count(void);
const {m}_step_t *{m}_step(int);
const char *{m}_label(int);
const char *{m}_strerror(int);
const char *{m}_info(void);
const char *{m}_isa(const void *);
size_t {m}_arena_bytes(void);
size_t {m}_handle_bytes(void);
int {m}_pool_start(void *, int);
int {m}_pool_stop(void *);
int {m}_run_steps_mt(const void *, void *, void *, size_t, const float *, float *, int, int);
size_t {m}_pool_bytes(void);
size_t {m}_arena_bytes_mt(int);
"""


def aligned(size: int) -> U8:
    """Memory for an arena, full of garbage: uint8 [size]."""
    memory = np.full(size + ALIGNMENT, GARBAGE, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepOutput:
    """What one step left behind. array: (C, H, W), float32 when bits is 0, else uint8 codes."""

    layer: str
    tensor: str
    bits: int
    array: npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pool:
    """Threads that run one picture together (Library.pool), and the arena that they do it in."""

    threads: int
    handle: Any
    arena: U8


class Library:
    """The network, compiled. Threads may share it: each works in an arena of its own.

    Use it as a context manager, or close() it; after that it must not be called.
    """

    def __init__(self, shared_object: Path, facts: ProjectFacts, *, isa: str | None = None) -> None:
        """Loads `shared_object` as it is. isa: an instruction set by name, None: the widest.

        Raises OptionError for one that this CPU has not, MismatchError for weights that do not fit.
        """
        self.facts = facts
        self._ffi = cffi.FFI()
        self._ffi.cdef(DECLARATIONS.format(m=facts.name))
        with temporary_folder() as folder:
            # The loader knows libraries by path first: a new name makes it look at the file, which
            # may have been rebuilt since it was last loaded.
            link = Path(folder, shared_object.name)
            link.symlink_to(shared_object.resolve())
            self._library = self._ffi.dlopen(str(link))
        self._threads = threading.local()
        self._handle = self._initialise(isa)

    @classmethod
    def open(cls, project: Path, *, isa: str | None = None, threads: bool = False) -> Library:
        """Builds the project if need be, and loads its library. threads: the one with `pool`."""
        return cls(build(project, threads=threads), read_facts(project), isa=isa)

    def _call(self, function: str, *arguments: Any) -> Any:
        return getattr(self._library, f"{self.facts.name}_{function}")(*arguments)

    def _text(self, function: str, *arguments: Any) -> str:
        return str(self._ffi.string(self._call(function, *arguments)).decode())

    def _initialise(self, isa: str | None) -> Any:
        handle = self._ffi.new("uint64_t[]", self._call("handle_bytes") // 8 + 1)
        if isa is None:
            status = self._call("init", handle, self._ffi.NULL, 0)
        else:
            status = self._call("init_isa", handle, self._ffi.NULL, 0, isa.encode())
            if status == E_ISA:
                usable = ", ".join(self.isas)
                raise OptionError(
                    f"'{isa}' is not an instruction set of this CPU; it has {usable}", layer="--isa"
                )
        if status:
            raise MismatchError(
                f"the library cannot start: {self._text('strerror', status)}",
                layer=self.facts.name,
            )
        return handle

    def close(self) -> None:
        if self._library is not None:
            self._ffi.dlclose(self._library)
            self._library = None

    def __enter__(self) -> Library:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- what it is -------------------------------------------------------------------------------

    @property
    def isa(self) -> str:
        """The instruction set in use."""
        return self._text("isa", self._handle)

    @property
    def isas(self) -> tuple[str, ...]:
        """The instruction sets that the library has and this CPU can run, narrowest first."""
        handle = self._ffi.new("uint64_t[]", self._call("handle_bytes") // 8 + 1)
        null = self._ffi.NULL
        return tuple(
            isa for isa in ISAS if self._call("init_isa", handle, null, 0, isa.encode()) != E_ISA
        )

    @property
    def info(self) -> str:
        return self._text("info")

    @property
    def arena_bytes(self) -> int:
        return int(self._call("arena_bytes"))

    @property
    def step_count(self) -> int:
        return int(self._call("step_count"))

    @property
    def takes_pixels(self) -> bool:
        """Whether there is a `run_u8`."""
        return hasattr(self._library, f"{self.facts.name}_run_u8")

    def linked_weights(self) -> U8:
        """A copy of the weight blob that the library computes with: uint8 [size]."""
        # The header has the handle's first member, and the emitter the size at byte 16 of a blob.
        start = self._ffi.cast("uint8_t **", self._handle)[0]
        size = int(np.frombuffer(self._ffi.buffer(start + 16, 8), "<u8")[0])
        return np.frombuffer(self._ffi.buffer(start, size), np.uint8).copy()

    def label(self, index: int) -> str:
        """Name of an output, "" without one."""
        return self._text("label", index)

    def step_name(self, index: int) -> str:
        return str(self._ffi.string(self._call("step", index).layer).decode())

    # --- running ----------------------------------------------------------------------------------

    def run(self, x: npt.ArrayLike) -> F32:
        """x: float32 [C, H, W] or [N, C, H, W], preprocessed. Returns float32 [outputs], or with N
        in front, in ONNX order."""
        images, single = self._images(x, self.facts.input, np.float32)
        output = self._run(images)
        return output[0] if single else output

    def run_u8(self, pixels: npt.ArrayLike) -> F32:
        """pixels: uint8 [H, W, C] (R, G, B or gray) or [N, H, W, C], not preprocessed."""
        channels, height, width = self.facts.input
        images, single = self._images(pixels, (height, width, channels), np.uint8)
        output = np.empty((len(images), self.facts.outputs), np.float32)
        arena = self._arena()
        for image, out in zip(images, output, strict=True):
            self._check(
                self._call(
                    "run_u8",
                    *(self._handle, *arena),
                    *(self._pointer("uint8_t[]", image), width * channels),
                    self._pointer("float[]", out),
                )
            )
        return output[0] if single else output

    def run_batch(self, x: npt.ArrayLike, *, threads: int = 1) -> F32:
        """x: float32 [N, C, H, W] -> float32 [N, outputs], on threads that each take a share."""
        images, _ = self._images(x, self.facts.input, np.float32)
        if threads == 1 or len(images) < 2:
            return self._run(images)
        with ThreadPoolExecutor(threads) as pool:
            shares = np.array_split(images, min(threads, len(images)))
            return np.concatenate(list(pool.map(self._run, shares)))

    def run_steps(
        self,
        x: F32,
        output: F32,
        first: int,
        last: int,
        *,
        arena: U8 | None = None,
        pool: Pool | None = None,
    ) -> None:
        """Steps first..last-1 on what the steps before left in the arena: the pool's, with a pool,
        else the one given, or this thread's.

        x: float32 [C, H, W]; output: float32 [outputs], written by the last step.
        """
        if pool is None:
            function, *memory = "run_steps", *self._arena(arena)
        else:
            place = self._pointer("char[]", pool.arena)
            function, *memory = "run_steps_mt", pool.handle, place, pool.arena.size
        pointers = self._pointer("float[]", x), self._pointer("float[]", output)
        self._check(self._call(function, self._handle, *memory, *pointers, first, last))

    @contextmanager
    def pool(self, threads: int) -> Iterator[Pool]:
        """Threads for `run_mt`, the calling one among them; one run at a time.

        Raises OptionError if their number is not 1 to 16 or the system has not so many, or if the
        library was not opened with threads=True.
        """
        if not hasattr(self._library, f"{self.facts.name}_pool_start"):
            raise OptionError("the library was built without threads", layer=self.facts.name)
        handle = self._ffi.new("uint64_t[]", self._call("pool_bytes") // 8 + 1)
        status = self._call("pool_start", handle, threads)
        if status == E_THREADS:
            raise OptionError(f"{threads}: {self._text('strerror', status)}", layer="--threads")
        self._check(status)
        try:
            arena = aligned(self._call("arena_bytes_mt", threads))
            yield Pool(threads=threads, handle=handle, arena=arena)
        finally:
            self._check(self._call("pool_stop", handle))

    def run_mt(self, x: npt.ArrayLike, pool: Pool) -> F32:
        """`run`, each picture by all threads of the pool."""
        images, single = self._images(x, self.facts.input, np.float32)
        output = np.empty((len(images), self.facts.outputs), np.float32)
        for image, out in zip(images, output, strict=True):
            self.run_steps(image, out, 0, self.step_count, pool=pool)
        return output[0] if single else output

    def trace(self, x: npt.ArrayLike) -> tuple[StepOutput, ...]:
        """What every step leaves in memory for one picture x, float32 [C, H, W].

        Works in an arena of its own, full of garbage at first. Raises MismatchError if the library
        writes behind it.
        """
        images, _ = self._images(x, self.facts.input, np.float32)
        arena = self.new_arena()
        output, steps = np.empty(self.facts.outputs, np.float32), []
        for index in range(self.step_count):
            self.run_steps(images[0], output, index, index + 1, arena=arena)
            steps.append(self._step_output(index, arena, output))
        if not (arena[self.arena_bytes :] == GARBAGE).all():
            raise MismatchError("the library wrote behind its arena", layer=self.facts.name)
        return tuple(steps)

    def _step_output(self, index: int, arena: U8, output: F32) -> StepOutput:
        step = self._call("step", index)
        layer, tensor = (str(self._ffi.string(s).decode()) for s in (step.layer, step.tensor))
        shape = (step.height, step.width, step.channels)
        if index == self.step_count - 1:  # in ONNX order already
            array: npt.NDArray[Any] = output.reshape(shape[2], *shape[:2])
        else:
            dtype = np.dtype(np.uint8 if step.bits else np.float32)
            pixel = step.pitch * dtype.itemsize
            strides = (step.width * pixel, pixel, dtype.itemsize)
            values: npt.NDArray[Any] = np.ndarray(shape, dtype, arena.data, step.offset, strides)
            array = values.transpose(2, 0, 1)
        return StepOutput(layer=layer, tensor=tensor, bits=step.bits, array=array.copy())

    def new_arena(self) -> U8:
        """An aligned arena full of garbage, with GUARD_BYTES more behind it."""
        return aligned(self.arena_bytes + GUARD_BYTES)

    def _arena(self, arena: U8 | None = None) -> tuple[Any, int]:
        """Pointer and size of an arena: the given one, or this thread's."""
        if arena is None:
            arena = getattr(self._threads, "arena", None)
            if arena is None:
                arena = self._threads.arena = self.new_arena()
        return self._pointer("char[]", arena), self.arena_bytes

    def _run(self, images: F32) -> F32:
        output = np.empty((len(images), self.facts.outputs), np.float32)
        arena = self._arena()
        for image, out in zip(images, output, strict=True):
            pointers = self._pointer("float[]", image), self._pointer("float[]", out)
            self._check(self._call("run", self._handle, *arena, *pointers))
        return output

    def _images(
        self, x: npt.ArrayLike, shape: Sequence[int], dtype: type[np.generic]
    ) -> tuple[npt.NDArray[Any], bool]:
        """x as a C-contiguous batch, and whether it was a single picture; raises DataError."""
        array = np.asarray(x)
        single = array.ndim == 3
        if array.shape[-3:] != tuple(shape) or array.ndim not in (3, 4):
            raise DataError(
                f"expects {tuple(shape)}, with or without N in front, not {array.shape}"
            )
        if array.dtype != dtype:
            raise DataError(f"expects {np.dtype(dtype)}, not {array.dtype}")
        return np.ascontiguousarray(array[None] if single else array), single

    def _pointer(self, kind: str, array: npt.NDArray[Any]) -> Any:
        """The array's memory, which it keeps alive, as `kind`: "float[]" or the like."""
        return self._ffi.from_buffer(kind, array)

    def _check(self, status: int) -> None:
        if status:  # arguments are checked above, so this is a bug of bdcc
            raise RuntimeError(f"{self.facts.name}: {self._text('strerror', status)}")
