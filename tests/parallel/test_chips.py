# SPDX-License-Identifier: Apache-2.0
import pytest

from jaxasa.parallel import chips


@pytest.mark.parametrize(
    "kind, expected",
    [
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("cpu", None),
    ],
)
def test_peak_flops_by_device_kind(kind, expected):
    assert chips.peak_flops(kind) == expected
