"""What the machine's devices are good at, and how they are to be shared."""

from __future__ import annotations

import contextlib

import tensorflow as tf


def prepare_devices() -> None:
    """Lets GPU memory grow with need: TensorFlow takes all of it otherwise, and other processes nothing."""
    for device in tf.config.list_physical_devices("GPU"):
        with contextlib.suppress(RuntimeError):  # the device is in use already, as its user has set it up
            tf.config.experimental.set_memory_growth(device, True)


def gaining_precision() -> str:
    """The precision that costs little accuracy and gains much time on this machine's GPU; float32 where it has none.

    bfloat16 from NVIDIA's compute capability 8.0 on, which has units for it; float16 from 7.0 on.
    """
    for device in tf.config.list_physical_devices("GPU"):
        capability = tf.config.experimental.get_device_details(device).get("compute_capability", (0, 0))
        if capability >= (7, 0):
            return "bfloat16" if capability >= (8, 0) else "float16"
    return "float32"
