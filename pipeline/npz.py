"""Arrays as an .npz file and back: the same bytes for the same arrays, and no more memory than a limit for any file."""

from __future__ import annotations

import io
import math
import struct
import zipfile
import zlib
from collections.abc import Mapping

import numpy as np

MAX_ARRAYS = 64

LEVEL = 3  # of deflate: 6 takes three times as long for sums, and leaves 4 % less

_DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OverflowError, NotImplementedError, RuntimeError,
           KeyError, IndexError, TypeError, SyntaxError, RecursionError, OSError)  # fmt: skip
"""What zipfile and NumPy say of bytes that are no such file."""


def write_arrays(arrays: Mapping[str, np.ndarray]) -> bytes:
    """An .npz file, as `numpy.load` reads it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, values in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, np.ascontiguousarray(values), version=(1, 0), allow_pickle=False)
            # By its own name alone a member would be dated, and so another file each time.
            info = zipfile.ZipInfo(f"{name}.npy")
            info.compress_type = zipfile.ZIP_DEFLATED
            file.writestr(info, member.getvalue(), compresslevel=LEVEL)
    return buffer.getvalue()


def read_arrays(data: bytes, limit: int) -> dict[str, np.ndarray]:
    """The arrays of an .npz file from anybody, read-only.

    Args:
        data: the file.
        limit: the most bytes that all arrays may take.

    Raises:
        ValueError: it is no such file, is damaged, or unpacks to more; nothing is unpacked before that is known.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            members = file.infolist()
            size = sum(member.file_size for member in members)
            if len(members) > MAX_ARRAYS or size > limit:
                raise ValueError(f"it unpacks to {size} bytes in {len(members)} arrays, and {limit} may be unpacked")
            return {member.filename.removesuffix(".npy"): _parse(file.read(member)) for member in members}
    except _DAMAGE as error:
        raise ValueError(f"it is no .npz file, or a damaged one: {type(error).__name__}: {error}") from error


def _parse(data: bytes) -> np.ndarray:
    stream = io.BytesIO(data)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("an array is of another version than 1.0")
    shape, in_columns, dtype = np.lib.format.read_array_header_1_0(stream)
    # NumPy's own reader makes room for what the header says before it looks whether that is there.
    if dtype.hasobject or in_columns or min(shape, default=0) < 0:
        raise ValueError(f"an array is of objects, or not in C order: {dtype}")
    if math.prod(shape) * dtype.itemsize != len(data) - stream.tell():
        raise ValueError(f"an array of shape {shape} and {dtype} has {len(data) - stream.tell()} bytes")
    return np.frombuffer(data, dtype, offset=stream.tell()).reshape(shape)
