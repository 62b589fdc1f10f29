# SPDX-License-Identifier: Apache-2.0
"""Numba compilation options: on-disk cache, vectorised code, strict or fast arithmetic.

>>> import numpy as np
>>> from jaxasa.acoustics import measure  # its backward integration uses `njit_strict`
>>> measure.decay_curve(np.ones(4, np.float32), step=1).round(1)
array([ 0. , -1.2, -3. , -6. ])
"""

import numba

# Off by default: LLVM's superword-level vectoriser, which turns adjacent scalar additions into one
# instruction. An image adds to 24 adjacent sums.
numba.config.SLP_VECTORIZE = 1

njit_strict = numba.njit(cache=True)
# Allows any order of sums, and assumes that no value is NaN or infinite.
njit_fastmath = numba.njit(cache=True, fastmath=True)
