"""Sparse binary compression (Sattler et al., "Sparse Binary Compression", IJCNN 2019), which FedOpt (Asad et al.,
"FedOpt: Towards Communication Efficiency and Privacy Preservation in Federated Learning", Applied Sciences 2020)
builds on: only the stronger sign travels, with one mean.

    P, N = the k largest and the k smallest values, k = ceil(density * d);   m+ = mean of P,  m- = mean of -N
    Q(v)_i = m+  if m+ >= m- and i in P;   -m-  if m- > m+ and i in N;   else 0

Biased: it needs error_feedback. A kept value costs its position alone, less than 1.1 bytes at the default density of
0.01, one bit less than stc. The codec keeps no state.
"""

from typing import Literal

import numpy as np

from medfl.update.base import Payload, Update
from medfl.update.codecs.indices import Indices, pack_indices, unpack_indices
from medfl.update.codecs.selection import Key, largest, negative, positive
from medfl.update.codecs.sparse import SparseCodec, SparseConfig, in_vector, mean_of, shared_mean, travelling
from medfl.update.vector import FloatVector


class SparseBinaryConfig(SparseConfig):
    kind: Literal["sparse_binary"] = "sparse_binary"


class SparseBinary(SparseCodec):
    Config = SparseBinaryConfig
    config: SparseBinaryConfig

    def encode(self, update: Update, rng: np.random.Generator) -> Payload:
        values = travelling(update)
        above, higher = self._side(values, positive)
        below, lower = self._side(values, negative)
        if higher is None or lower is None:
            chosen, mean = (above, higher) if higher is None else (below, lower)
        else:
            chosen, mean = (above, higher) if higher >= lower else (below, -lower)
        indices = in_vector(update, chosen)
        return Payload("sparse_binary", update.size, (pack_indices(indices),), {"k": indices.size, "mean": mean})

    def _side(self, values: FloatVector, key: Key) -> tuple[Indices, float | None]:
        """The strongest values of one sign, at most k, and their mean magnitude (None: not finite)."""
        chosen = largest(values, self.count(values.size), key)
        bits = values[chosen].view(np.uint32)
        key(bits, bits)
        return chosen[bits > 0], shared_mean(bits[bits > 0].view(np.float32))

    def decode(self, payload: Payload, size: int) -> Update:
        count, mean = self.announced(payload, size, 1), mean_of(payload)
        return Update(np.full(count, mean), size, unpack_indices(payload.buffers[0], count, size))
