# SPDX-License-Identifier: Apache-2.0
"""How numba compiles loops.

Once, kept on disk for the next process, and with vector instructions.

    >>> import numpy as np
    >>> from jaxasa.acoustics import measure  # whose sums from the end on are `exact`
    >>> measure.decay_curve(np.ones(4, np.float32), step=1).round(1)
    array([ 0. , -1.2, -3. , -6. ])
"""

import numba

# Numba leaves out this pass of LLVM's unless asked. It puts sums that stand beside each other
# into one instruction: an image adds to 24 of them.
numba.config.SLP_VECTORIZE = 1

njit_strict = numba.njit(cache=True)
njit_fastmath = numba.njit(
    cache=True, fastmath=True
)  # sums in any order; nothing is NaN or infinite
