"""NVIDIA cards that a plan can be made for where they are not: what XLA must know of a card to compile for it.

Sources: NVIDIA's data sheets and white papers of the architectures, for each card; the table of compute capabilities in
the CUDA programming guide, for what all cards of one have in common.
"""

import os
from typing import NamedTuple

GIB = 2**30


class Card(NamedTuple):
    """One kind of card.

    Attributes:
      title: the maker's name for it.
      capability: its compute capability, which says what its cores can do.
      cores: streaming multiprocessors.
      memory: bytes.
      bandwidth: bytes a second between memory and cores.
      cache: bytes of the second-level cache.
      clock: GHz at most.
      speed: FLOP/s at most of dense products in bfloat16, summed in float32; in float32 where it has no bfloat16.
    """

    title: str
    capability: tuple[int, int]
    cores: int
    memory: int
    bandwidth: int
    cache: int
    clock: float
    speed: float

    @property
    def usable(self) -> int:
        """Bytes of its memory that JAX takes: three quarters, or the share that the environment says."""
        return int(self.memory * float(os.environ.get('XLA_PYTHON_CLIENT_MEM_FRACTION', 0.75)))


CARDS = {
    't4': Card('NVIDIA T4', (7, 5), 40, 15 * GIB, 320 * 10**9, 4 * 2**20, 1.59, 8.1e12),
    'rtx3090': Card('NVIDIA GeForce RTX 3090', (8, 6), 82, 24 * GIB, 936 * 10**9, 6 * 2**20, 1.695, 71e12),
    'rtx4090': Card('NVIDIA GeForce RTX 4090', (8, 9), 128, 24 * GIB, 1008 * 10**9, 72 * 2**20, 2.52, 165e12),
    'rtx5090': Card('NVIDIA GeForce RTX 5090', (12, 0), 170, 32 * GIB, 1792 * 10**9, 96 * 2**20, 2.41, 209e12),
    'l4': Card('NVIDIA L4', (8, 9), 58, 22 * GIB, 300 * 10**9, 48 * 2**20, 2.04, 121e12),
    'l40s': Card('NVIDIA L40S', (8, 9), 142, 45 * GIB, 864 * 10**9, 96 * 2**20, 2.52, 362e12),
    'a100-40gb': Card('NVIDIA A100 40GB', (8, 0), 108, 40 * 10**9, 1555 * 10**9, 40 * 2**20, 1.41, 312e12),
    'a100-80gb': Card('NVIDIA A100 80GB', (8, 0), 108, 80 * 10**9, 2039 * 10**9, 40 * 2**20, 1.41, 312e12),
    'h100': Card('NVIDIA H100 80GB', (9, 0), 132, 80 * 10**9, 3352 * 10**9, 50 * 2**20, 1.98, 989e12),
    'h200': Card('NVIDIA H200', (9, 0), 132, 141 * 10**9, 4800 * 10**9, 50 * 2**20, 1.98, 989e12),
}

# Compute capability -> bytes of shared memory of a core, threads of a core at most, f32 units of a core.
_CORES = {
    (7, 5): (64 * 2**10, 1024, 64),
    (8, 0): (164 * 2**10, 2048, 64),
    (8, 6): (100 * 2**10, 1536, 128),
    (8, 9): (100 * 2**10, 1536, 128),
    (9, 0): (228 * 2**10, 2048, 128),
    (12, 0): (100 * 2**10, 1536, 128),
}
_RESERVED = 2**10  # bytes of shared memory that each block gives to the system; all of it on the oldest cards


def target_config(card: Card) -> str:
    """Returns the card in the text form of XLA's GpuTargetConfigProto (stream_executor/device_description.proto)."""
    shared, threads, units = _CORES[card.capability]
    most_shared = shared if card.capability < (8, 0) else shared - _RESERVED
    major, minor = card.capability
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: {48 * 2**10}
  shared_memory_per_block_optin: {most_shared}
  shared_memory_per_core: {shared}
  threads_per_core_limit: {threads}
  core_count: {card.cores}
  fpus_per_core: {units}
  block_dim_limit_x: {2**31 - 1}
  block_dim_limit_y: {2**16 - 1}
  block_dim_limit_z: {2**16 - 1}
  memory_bandwidth: {card.bandwidth}
  l2_cache_size: {card.cache}
  clock_rate_ghz: {card.clock}
  device_memory_size: {card.memory}
  registers_per_core_limit: {2**16}
  registers_per_block_limit: {2**16}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{card.title}"
"""
