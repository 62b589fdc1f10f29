# SPDX-License-Identifier: Apache-2.0
"""A jaxasa model in torch: Whisper's and Qwen's layers of transformers, and a spatial encoder.

    model = AutoModel.from_pretrained(FOLDER, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(FOLDER, trust_remote_code=True)
    inputs = processor(audio, "where is the dog ?")       # audio [N, 4]: W, Y, Z, X, SN3D, 16 kHz
    reply, sources = model.generate(**inputs, return_sources=True)
    processor.parse_reply(reply[0])                        # {"answer", "thought", "reply"}
    sources[0]                                             # [{"class", "azimuth", ...}, ...]

Shapes: B batch, N samples, C channels, S slots, A tokens of the dense map, T tokens, D width of the
decoder, Ds, Dd widths of the two streams, K slot features, E expert width, L reply length.
"""

import math
from typing import NamedTuple

import torch
from torch import nn
from transformers import AutoModel, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from .configuration_jaxasa import JaxasaConfig
from .encoders_jaxasa import Dense, SemanticEncoder, SpatialEncoder, SpatialOutput, gelu
from .features_jaxasa import SAMPLE_RATE, log_mel, resample_time
from .slot_features_jaxasa import num_slot_features, slot_features

EXPERTS = ("semantic", "direction", "distance", "reverberation", "count", "joint")


def num_map_tokens(samples, token_rate):
    """Tokens of the dense map of a clip of so many samples, rounded, at least 1."""
    each = round(SAMPLE_RATE / token_rate)
    return max(1, (samples + each // 2) // each)


class EncodedAudio(NamedTuple):
    """What both encoders make of clips: semantic [B, A, Ds] and dense [B, A, Dd] at the token
    rate, slot_features [B, S, K], and all that the spatial encoder estimates."""

    semantic: torch.Tensor
    dense: torch.Tensor
    slot_features: torch.Tensor
    spatial: SpatialOutput


class Expert(nn.Module):
    """An MLP [B, A, inputs] -> [B, A, outputs], if `inputs`; and if `estimates`, the auxiliary head
    of a part of width `size`, whose weights training needs and answers do not."""

    def __init__(self, inputs, hidden, outputs, size, estimates):
        super().__init__()
        if inputs:
            self.add_module("in", Dense(inputs, hidden))
            self.out = Dense(hidden, outputs)
        if estimates:
            self.head = Dense(size, estimates)

    def forward(self, x):
        return self.out(gelu(self.get_submodule("in")(x)))


class Projector(nn.Module):
    """Both streams and the slot features to audio embeddings [B, S + A, D].

    A token of the map is made of six parts of E numbers: kind p2 has an MLP for each part ("dense
    hybrid"), p1 one for each stream ("dual tower"), p0 one for all. The slots have an MLP of their
    own.
    """

    def __init__(self, p, hidden, semantic, spatial, slots, classes, width):
        """p: config.model["projector"]. hidden: of the parts' MLPs. semantic, spatial, slots:
        widths of the inputs."""
        super().__init__()
        size, both = p["expert_width"], semantic + spatial
        self.kind, self.slot_tokens = p.get("kind", "p2"), p.get("slot_tokens", True)
        parts = [name for name in EXPERTS if name not in p.get("drop_experts", ())]
        if self.kind == "p0":
            mlps = {"trunk": (both, len(parts))}
        elif self.kind == "p1":
            mlps = {"semantic": (semantic, 2), "spatial": (spatial, len(parts) - 2)}
        else:
            inputs = {"semantic": semantic, "joint": both}
            mlps = {name: (inputs.get(name, spatial), 1) for name in parts}
        heads = {"direction": 3 * classes, "distance": classes, "reverberation": 2, "count": 1}
        heads = {"semantic": classes, **heads, "joint": 0}
        self.experts = nn.ModuleDict()
        for name in dict.fromkeys((*mlps, *parts)):
            inputs, count = mlps.get(name, (0, 0))
            estimates = heads[name] if name in parts else 0
            if inputs or estimates:
                self.experts[name] = Expert(inputs, hidden, count * size, size, estimates)
        self.norm = nn.LayerNorm(size * len(parts), eps=1e-6)
        self.bottleneck = Dense(size * len(parts), p["hidden_width"])
        self.out = Dense(p["hidden_width"], width)
        self.slots = Expert(slots, p["hidden_width"], width, 0, 0)
        self.null_embedding = nn.Parameter(torch.zeros(spatial))

    def forward(self, semantic, dense, slot_features):
        both, e = torch.cat([semantic, dense], -1), self.experts
        if self.kind == "p0":
            x = e["trunk"](both)
        elif self.kind == "p1":
            content, joint = e["semantic"](semantic).chunk(2, -1)
            x = torch.cat([content, e["spatial"](dense), joint], -1)
        else:
            inputs = dict.fromkeys(EXPERTS, dense) | {"semantic": semantic, "joint": both}
            x = torch.cat([e[name](inputs[name]) for name in EXPERTS if name in e], -1)
        map_tokens = self.out(gelu(self.bottleneck(self.norm(x))))
        if not self.slot_tokens:
            slot_features = torch.zeros_like(slot_features)
        return torch.cat([self.slots(slot_features), map_tokens], 1)


class JaxasaForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """Answers questions about spatial audio; see the top of this file."""

    config_class = JaxasaConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _no_split_modules = ["WhisperEncoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer"]
    _supports_sdpa = True
    _supports_flash_attn = False  # the encoders' heads may be of any width

    def __init__(self, config):
        super().__init__(config)
        m, text = config.model, config.text_config
        self.audio_tower = SemanticEncoder(config.audio_config, m["semantic"].get("pool", 1))
        self.spatial_encoder = SpatialEncoder(config.audio_config, m["spatial"])
        self.projector = Projector(
            m["projector"],
            config.expert_width,
            config.audio_config.d_model,
            m["spatial"]["width"],
            num_slot_features(m["spatial"]["num_classes"]),
            m["spatial"]["num_classes"],
            text.hidden_size,
        )
        self.model = AutoModel.from_config(text)
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.model.embed_tokens

    def set_input_embeddings(self, value):
        self.model.embed_tokens = value

    def get_output_embeddings(self):
        return self.lm_head

    def encode_audio(self, audio):
        """Runs both encoders on audio [B, N, C] in [-1, 1]."""
        audio = audio.float()
        # W of FOA, the mean of two ears.
        mono = audio[..., 0] if audio.shape[2] == 4 else audio.mean(-1)
        mels = log_mel(mono, self.config.audio_config.num_mel_bins)
        semantic = self.audio_tower(mels)
        spatial = self.spatial_encoder(audio)
        count = num_map_tokens(audio.shape[1], self.config.model["projector"]["token_rate"])
        return EncodedAudio(
            resample_time(semantic, count),
            resample_time(spatial.dense, count),
            slot_features(spatial.slots, spatial.room, self.spatial_encoder.step_seconds),
            spatial,
        )

    def project(self, audio, drop_spatial=False):
        """Audio embeddings [B, S + A, D].

        drop_spatial: a learnt null embedding replaces the dense map, and zeros the slot features.
        """
        dense, slots = audio.dense, audio.slot_features
        if drop_spatial:
            dense = self.projector.null_embedding.expand_as(dense)
            slots = torch.zeros_like(slots)
        return self.projector(audio.semantic, dense, slots)

    def embed(self, input_ids, audio=None, drop_spatial=False):
        """Input embeddings [B, T, D] of input_ids [B, T], with audio embeddings at audio tokens.

        audio: EncodedAudio, or None. Raises ValueError if a prompt has another number of them.
        """
        x = self.model.embed_tokens(input_ids)
        if audio is None:
            return x
        audio_embeds = self.project(audio, drop_spatial)
        is_audio = input_ids == self.config.audio_token_id
        counts = is_audio.sum(1)
        if not bool(((counts == audio_embeds.shape[1]) | (counts == 0)).all()):
            raise ValueError(
                f"the prompts have {counts.tolist()} audio tokens, "
                f"expected {audio_embeds.shape[1]}, as the processor makes them"
            )
        index = (is_audio.cumsum(1) - 1).clamp(0, audio_embeds.shape[1] - 1)
        placed = audio_embeds.gather(1, index[..., None].expand(-1, -1, audio_embeds.shape[2]))
        return torch.where(is_audio[..., None], placed.to(x.dtype), x)

    def forward(
        self,
        input_ids=None,
        audio=None,
        attention_mask=None,
        position_ids=None,
        inputs_embeds=None,
        labels=None,
        logits_to_keep=0,
        **kwargs,
    ):
        """Logits [B, T, V] of prompts about audio [B, N, C]."""
        if inputs_embeds is None:
            encoded = None if audio is None else self.encode_audio(audio)
            inputs_embeds = self.embed(input_ids, encoded)
        is_whole = attention_mask is not None and attention_mask.shape == inputs_embeds.shape[:2]
        if position_ids is None and is_whole:
            # Positions count the tokens without padding, so padding on the left changes nothing.
            position_ids = (attention_mask.long().cumsum(1) - 1).clamp(min=0)
        outputs = self.model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        if isinstance(logits_to_keep, int):
            logits_to_keep = slice(-logits_to_keep, None)
        logits = self.lm_head(hidden[:, logits_to_keep])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.config.text_config.vocab_size)
        others = {name: value for name, value in outputs.items() if name != "last_hidden_state"}
        return CausalLMOutputWithPast(loss=loss, logits=logits, **others)

    @torch.no_grad()
    def generate(
        self,
        input_ids=None,
        audio=None,
        attention_mask=None,
        return_sources=False,
        threshold=0.5,
        **kwargs,
    ):
        """Ids [B, L] of the replies, without the prompts.

        return_sources: returns (ids, sources), see `sources`. kwargs: of transformers' generate,
        which is greedy by default.
        """
        encoded = None if audio is None else self.encode_audio(audio)
        if return_sources and encoded is None:
            raise ValueError("return_sources is True without audio, expected audio [B, N, C]")
        x = self.embed(input_ids, encoded)
        ids = super().generate(inputs_embeds=x, attention_mask=attention_mask, **kwargs)
        return (ids, self._sources(encoded.spatial.slots, threshold)) if return_sources else ids

    @torch.no_grad()
    def sources(self, audio, threshold=0.5):
        """Sources that the slots detect in audio [B, N, C]: a list for each clip, likeliest first.

        Each has class, azimuth and elevation (degrees), distance (m) and presence (probability, at
        least `threshold`). Azimuth is counter-clockwise, front 0, left +90.
        """
        return self._sources(self.encode_audio(audio).spatial.slots, threshold)

    def _sources(self, slots, threshold):
        presence = torch.sigmoid(slots.presence.float())
        labels = slots.label[..., : len(self.config.classes)].argmax(-1)
        clips = []
        for b in range(len(presence)):
            clips.append([])
            for s in presence[b].argsort(descending=True).tolist():
                if presence[b, s] < threshold:
                    continue
                x, y, z = slots.direction[b, s].tolist()
                source = {
                    "class": self.config.classes[labels[b, s]],
                    "azimuth": round(math.degrees(math.atan2(y, x)), 1),
                    "elevation": round(math.degrees(math.atan2(z, math.hypot(x, y))), 1),
                    "distance": round(math.exp(slots.log_distance[b, s].item()), 2),
                    "presence": round(presence[b, s].item(), 3),
                }
                clips[-1].append(source)
        return clips
