"""A map as bytes and back: low resolution, raw and signed, with a scale; what the `maps` column stores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MAP_DTYPES = {"float16": "<f2", "uint8": "u1"}
"""Names of the option, and what they are stored as."""


@dataclass(frozen=True)
class EncodedMap:
    """value = data * scale, in C order."""

    height: int
    width: int
    dtype: str  # "<f2" with data in [-1, 1], or "u1" in [0, 255]
    scale: float  # float32
    data: bytes


def encode_map(values: np.ndarray, dtype: str = "float16") -> EncodedMap:
    """Stores a map with a scale of its own, so that its strongest value uses the whole range.

    Args:
        values: (h, w) float32, finite.
        dtype: "float16" keeps the sign, within 2.5e-4 of the largest magnitude; "uint8" keeps the positive part, within
            2e-3 of the maximum, in half the bytes.

    Raises:
        ValueError: a value is not finite, or the dtype is unknown.
    """
    if dtype not in MAP_DTYPES:
        raise ValueError(f"a map is stored as one of {', '.join(MAP_DTYPES)}, not {dtype!r}")
    if not np.isfinite(values).all():
        raise ValueError("a map holds a value that is not finite")
    wide = np.asarray(values, np.float64)
    if dtype == "uint8":
        wide = np.maximum(wide, 0)
    steps = 255 if dtype == "uint8" else 1
    # Rounded up, as float32 stores it: rounding down would push the strongest value beyond the range.
    scale = float(_float32_at_least(np.abs(wide).max(initial=0) / steps))
    data = wide / scale if scale > 0 else np.zeros_like(wide)
    stored = (np.rint(data) if dtype == "uint8" else data).astype(MAP_DTYPES[dtype])
    height, width = values.shape
    return EncodedMap(height, width, MAP_DTYPES[dtype], scale, stored.tobytes())


def decode_map(encoded: EncodedMap) -> np.ndarray:
    """The map: (h, w) float32."""
    data = np.frombuffer(encoded.data, encoded.dtype).reshape(encoded.height, encoded.width)
    return (data.astype(np.float64) * encoded.scale).astype(np.float32)


def _float32_at_least(value: float) -> np.float32:
    rounded = np.float32(value)
    return rounded if float(rounded) >= value else np.nextafter(rounded, np.float32(np.inf))
