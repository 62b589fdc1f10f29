# SPDX-License-Identifier: Apache-2.0
"""Absorption of wall materials, by the names that config.Scenes uses.

Random-incidence absorption coefficients per octave band from 125 Hz to 8 kHz, from the tables in
the annex of M. Vorlaender, Auralization (Springer, 2008). The book ends at 4 kHz for some
materials, whose 8 kHz is then that of 4 kHz.
"""

TABLE = {
    # Massive walls and floors.
    "brick": (0.03, 0.03, 0.03, 0.04, 0.05, 0.07, 0.07),
    "rendered_brick": (0.01, 0.02, 0.02, 0.03, 0.03, 0.04, 0.04),
    "rough_concrete": (0.02, 0.03, 0.03, 0.03, 0.04, 0.07, 0.07),
    "smooth_concrete": (0.01, 0.01, 0.02, 0.02, 0.02, 0.05, 0.05),
    "limestone": (0.02, 0.02, 0.03, 0.04, 0.05, 0.05, 0.05),
    "ceramic_tiles": (0.01, 0.01, 0.01, 0.02, 0.02, 0.02, 0.02),
    "marble": (0.01, 0.01, 0.01, 0.02, 0.02, 0.02, 0.02),
    "hard_surface": (0.02, 0.02, 0.03, 0.03, 0.04, 0.05, 0.05),
    # Light walls, wood and glass.
    "plasterboard": (0.15, 0.10, 0.06, 0.04, 0.04, 0.05, 0.05),
    "wood_panel": (0.18, 0.12, 0.10, 0.09, 0.08, 0.07, 0.07),
    "wooden_lining": (0.27, 0.23, 0.22, 0.15, 0.10, 0.07, 0.06),
    "wooden_door": (0.14, 0.10, 0.06, 0.08, 0.10, 0.10, 0.10),
    "window": (0.10, 0.05, 0.04, 0.03, 0.03, 0.03, 0.03),
    "double_glazing": (0.15, 0.05, 0.03, 0.03, 0.02, 0.02, 0.02),
    # Floors and textiles.
    "linoleum": (0.02, 0.03, 0.03, 0.03, 0.03, 0.02, 0.02),
    "thin_carpet": (0.02, 0.04, 0.08, 0.20, 0.35, 0.40, 0.40),
    "carpet": (0.08, 0.08, 0.30, 0.60, 0.75, 0.80, 0.80),
    "curtains": (0.05, 0.06, 0.39, 0.63, 0.70, 0.73, 0.73),
    # Absorbers.
    "acoustic_plaster": (0.17, 0.36, 0.66, 0.65, 0.62, 0.68, 0.68),
    "mineral_wool": (0.15, 0.70, 0.60, 0.60, 0.85, 0.90, 0.90),
    "ceiling_tile": (0.49, 0.53, 0.53, 0.75, 0.92, 0.99, 0.99),
    "plasterboard_ceiling": (0.20, 0.15, 0.10, 0.08, 0.04, 0.02, 0.02),
}
