"""The host of a served model: a CPU whose memory and bandwidth decide, for what does not lie on a GPU.

Weights and caches on the host are read at the host's memory bandwidth. What a user does not state is that
of a desktop: two channels of DDR4-3200 (2 x 3200 MT/s x 8 bytes = 51.2 GB/s), and 8 cores at 3.5 GHz of 32
FLOPs of fp32 a cycle (two AVX2 units of 8 lanes that multiply and add: Intel 64 and IA-32 Architectures
Optimization Reference Manual, VFMADD). Each is printed as assumed. Shares of both that kernels reach are
those of the calibration default-cpu, unless a CPU's own calibration is named.
Checked by: unit/test_serving_host.py.
"""

from __future__ import annotations

from typing import Final

from memcalc.errors import ConfigError
from memcalc.inputs.hardware import Gpu

BYTES_PER_S: Final = 2 * 3200e6 * 8
FLOPS_PER_S: Final = 8 * 3.5e9 * 32
_MOST: Final = 1e14


def host_of(memory_bytes: int | None, bytes_per_s: float | None) -> tuple[Gpu, list[str]]:
    """A CPU as a device, and what was assumed of it. memory_bytes None: unknown, everything fits.

    Raises ConfigError for a bandwidth that no host has.
    """
    said = []
    if bytes_per_s is None:
        bytes_per_s = BYTES_PER_S
        said.append(
            f"host memory of {BYTES_PER_S / 1e9:g} GB/s: two channels of DDR4-3200, assumed"
        )
    elif not 1e8 <= bytes_per_s <= _MOST:
        raise ConfigError(
            f"host_bandwidth: got {bytes_per_s / 1e9:g} GB/s; rule: 0.1 to {_MOST / 1e9:g} GB/s"
        )
    said.append(f"host of {FLOPS_PER_S / 1e12:.1f} TFLOP/s: 8 cores at 3.5 GHz with AVX2, assumed")
    if memory_bytes is None:
        said.append("host memory not stated: taken to be large enough; --host-memory says how much")
    cpu = Gpu(
        name="CPU", slug="cpu", vendor="cpu", architecture="cpu", marketed_gb=0.0,
        total_bytes=memory_bytes or 0, total_bytes_source="label",
        memory_bandwidth_bytes_per_s=bytes_per_s,
        peak_flops_per_s=dict.fromkeys(("fp32", "tf32", "bf16", "fp16"), FLOPS_PER_S),
    )  # fmt: skip
    return cpu, said
