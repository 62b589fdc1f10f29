# SPDX-License-Identifier: Apache-2.0
"""The slots of a jaxasa model as features for its projector (slot_features of models/spatial.py).

Shapes: B batch, S slots, T steps of the map, K slot features.
"""

import torch

AZIMUTH_HARMONICS = 4
ROOM_ESTIMATES = 4


def num_slot_features(classes):
    """K of `slot_features`."""
    return 1 + classes + 2 * AZIMUTH_HARMONICS + 4 + ROOM_ESTIMATES


def slot_features(slots, room, step_seconds):
    """Each slot as features [B, S, K] of order 1.

    First the presence probability; then, each times that probability: class probabilities,
    cosines and sines of multiples of the azimuth, sin elevation, log distance, onset and offset
    (s), and the room's estimates [B, 4]. Slots are sorted by onset; those with presence below 0.5
    come last. step_seconds: duration of a step of the map.
    """
    presence = torch.sigmoid(slots.presence.float())
    activity = torch.sigmoid(slots.activity.float())
    is_active = (activity >= 0.5 * activity.amax(-1, keepdim=True)).int()
    onset = is_active.argmax(-1) * step_seconds
    offset = (is_active.shape[-1] - is_active.flip(-1).argmax(-1)) * step_seconds
    v = slots.direction.float()
    x, y, z = (v / torch.sqrt((v**2).sum(-1, keepdim=True) + 1e-8)).unbind(-1)
    harmonics = torch.arange(1, AZIMUTH_HARMONICS + 1, device=v.device)
    azimuth = torch.atan2(y, x)[..., None] * harmonics
    horizontal = torch.hypot(x, y)[..., None]
    parts = [
        torch.ones_like(presence)[..., None],
        torch.softmax(slots.label.float(), -1),
        horizontal * torch.cos(azimuth),
        horizontal * torch.sin(azimuth),
        torch.stack([z, slots.log_distance.float(), onset, offset], -1),
        room.float()[:, None].expand(-1, presence.shape[1], -1),
    ]
    by_slot = presence[..., None] * torch.cat(parts, -1)
    order = torch.where(presence < 0.5, torch.inf, onset).argsort(dim=1, stable=True)
    return by_slot.gather(1, order[..., None].expand_as(by_slot))
