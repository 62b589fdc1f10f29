"""What the slots of a jaxasa model say, as numbers for its projector.

Letters: B batch, S slots.
"""

import torch

HARMONICS = 4
ROOM = 4


def statements_width(classes):
    """K of `statements`."""
    return 1 + classes + 2 * HARMONICS + 4 + ROOM


def statements(slots, room, seconds):
    """[B, S, K] in order of onset: of each slot how likely its source is there; times that, its
    class, cosines and sines of multiples of its azimuth, height, log distance, onset and offset
    (s), and the room [B, 4]. seconds: of a frame of the slots' activity.
    """
    there = torch.sigmoid(slots.presence.float())
    active = torch.sigmoid(slots.activity.float())
    heard = (active >= 0.5 * active.amax(-1, keepdim=True)).int()
    onset = heard.argmax(-1) * seconds
    offset = (heard.shape[-1] - heard.flip(-1).argmax(-1)) * seconds
    v = slots.direction.float()
    x, y, z = (v / torch.sqrt((v**2).sum(-1, keepdim=True) + 1e-8)).unbind(-1)
    azimuth = torch.atan2(y, x)[..., None] * torch.arange(1, HARMONICS + 1, device=v.device)
    level = torch.hypot(x, y)[..., None]
    said = [
        torch.ones_like(there)[..., None],
        torch.softmax(slots.label.float(), -1),
        level * torch.cos(azimuth),
        level * torch.sin(azimuth),
        torch.stack([z, slots.log_distance.float(), onset, offset], -1),
        room.float()[:, None].expand(-1, there.shape[1], -1),
    ]
    said = there[..., None] * torch.cat(said, -1)
    order = torch.where(there < 0.5, torch.inf, onset).argsort(dim=1, stable=True)
    return said.gather(1, order[..., None].expand_as(said))
