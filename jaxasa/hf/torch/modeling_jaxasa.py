"""A jaxasa model in torch: Whisper's and Qwen's layers of transformers, a spatial encoder between.

    model = AutoModel.from_pretrained(FOLDER, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(FOLDER, trust_remote_code=True)
    inputs = processor(audio, "where is the dog ?")       # audio [N, 4]: W, Y, Z, X, SN3D, 16 kHz
    reply, sources = model.generate(**inputs, return_sources=True)
    processor.read(reply[0])                               # {"answer", "thought", "reply"}
    sources[0]                                             # [{"class", "azimuth", ...}, ...]

Letters: B batch, N samples, S slots, A tokens of the map, T tokens, D width.
"""

import math
from typing import NamedTuple

import torch
from torch import nn
from transformers import AutoModel, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from .configuration_jaxasa import JaxasaConfig
from .encoders_jaxasa import Dense, Heard, Semantic, Spatial, gelu
from .features_jaxasa import RATE, log_mel, resample_time
from .statements_jaxasa import statements, statements_width

EXPERTS = ("semantic", "direction", "distance", "reverberation", "count", "joint")


def map_tokens(samples, token_rate):
    """How many places behind the slots' a clip of `samples` takes; half a place counts."""
    each = round(RATE / token_rate)
    return max(1, (samples + each // 2) // each)


class Audio(NamedTuple):
    """semantic and dense [B, A, .] at token rate, what the slots say [B, S, K], Heard."""

    semantic: torch.Tensor
    dense: torch.Tensor
    said: torch.Tensor
    heard: Heard


class Expert(nn.Module):
    """An MLP [B, A, inputs] -> [B, A, outputs] where `inputs`, and the head of a part's auxiliary
    estimates, which training needs and answers do not, where `estimates`."""

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
    """Semantic and spatial streams and what S slots say -> audio tokens [B, S + A, D].

    The slots have an MLP of their own, the map's tokens are made of parts of E numbers each: p2
    has an MLP for each part, p1 one for each stream, p0 one for all.
    """

    def __init__(self, p, hidden, semantic, spatial, said, classes, width):
        super().__init__()
        size, both = p["expert_width"], semantic + spatial
        self.kind, self.hears_slots = p.get("kind", "p2"), p.get("slot_tokens", True)
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
        self.slots = Expert(said, p["hidden_width"], width, 0, 0)
        self.null = nn.Parameter(torch.zeros(spatial))

    def forward(self, semantic, dense, said):
        both, e = torch.cat([semantic, dense], -1), self.experts
        if self.kind == "p0":
            x = e["trunk"](both)
        elif self.kind == "p1":
            first, last = e["semantic"](semantic).chunk(2, -1)
            x = torch.cat([first, e["spatial"](dense), last], -1)
        else:
            inputs = dict.fromkeys(EXPERTS, dense) | {"semantic": semantic, "joint": both}
            x = torch.cat([e[name](inputs[name]) for name in EXPERTS if name in e], -1)
        tokens = self.out(gelu(self.bottleneck(self.norm(x))))
        said = said if self.hears_slots else torch.zeros_like(said)
        return torch.cat([self.slots(said), tokens], 1)


class JaxasaForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """Answers questions about first-order ambisonics; see the top of this file."""

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
        self.audio_tower = Semantic(config.audio_config, m["semantic"].get("pool", 1))
        self.spatial_encoder = Spatial(config.audio_config, m["spatial"])
        self.projector = Projector(
            m["projector"],
            config.expert_width,
            config.audio_config.d_model,
            m["spatial"]["width"],
            statements_width(m["spatial"]["num_classes"]),
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

    def listen(self, audio):
        """audio [B, N, C] in [-1, 1] -> both encoders' views at token rate."""
        audio = audio.float()
        # W of FOA, the mean of two ears.
        one = audio[..., 0] if audio.shape[2] == 4 else audio.mean(-1)
        mels = log_mel(one, self.config.audio_config.num_mel_bins)
        semantic = self.audio_tower(mels)
        heard = self.spatial_encoder(audio)
        rate = self.config.model["projector"]["token_rate"]
        count = map_tokens(audio.shape[1], rate)
        return Audio(
            resample_time(semantic, count),
            resample_time(heard.dense, count),
            statements(heard.slots, heard.room, self.spatial_encoder.seconds),
            heard,
        )

    def project(self, audio, spatial=True):
        """Audio tokens [B, S + A, D].

        Without `spatial` the learnt null stands for the spatial map, and the slots say nothing.
        """
        if spatial:
            return self.projector(audio.semantic, audio.dense, audio.said)
        null = self.projector.null.expand_as(audio.dense)
        return self.projector(audio.semantic, null, torch.zeros_like(audio.said))

    def embed(self, input_ids, audio=None, spatial=True):
        """input_ids [B, T] -> [B, T, D], projected audio at the places of the audio token."""
        x = self.model.embed_tokens(input_ids)
        if audio is None:
            return x
        tokens = self.project(audio, spatial)
        here = input_ids == self.config.audio_token_id
        places = here.sum(1)
        if not bool(((places == tokens.shape[1]) | (places == 0)).all()):
            raise ValueError(
                f"{places.tolist()} places for audio in the prompts, "
                f"expected {tokens.shape[1]}, as the processor makes them"
            )
        index = (here.cumsum(1) - 1).clamp(0, tokens.shape[1] - 1)
        placed = tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[2]))
        return torch.where(here[..., None], placed.to(x.dtype), x)

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
        """Logits [B, T, V] of prompts about audio [B, N, 4]."""
        if inputs_embeds is None:
            heard = None if audio is None else self.listen(audio)
            inputs_embeds = self.embed(input_ids, heard)
        whole = attention_mask is not None and attention_mask.shape == inputs_embeds.shape[:2]
        if position_ids is None and whole:
            # Positions count the valid tokens, so that padding on the left changes nothing.
            position_ids = (attention_mask.long().cumsum(1) - 1).clamp(min=0)
        outputs = self.model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.config.text_config.vocab_size)
        rest = {name: value for name, value in outputs.items() if name != "last_hidden_state"}
        return CausalLMOutputWithPast(loss=loss, logits=logits, **rest)

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
        """Ids of the replies [B, C], without the prompts; greedy unless asked otherwise.

        return_sources: (ids, sources) instead, see `sources`.
        """
        heard = None if audio is None else self.listen(audio)
        if return_sources and heard is None:
            raise ValueError("return_sources is True without audio, expected audio [B, N, 4]")
        x = self.embed(input_ids, heard)
        ids = super().generate(inputs_embeds=x, attention_mask=attention_mask, **kwargs)
        return (ids, self._sources(heard, threshold)) if return_sources else ids

    @torch.no_grad()
    def sources(self, audio, threshold=0.5):
        """What the slots hold for audio [B, N, 4]: a list for each clip, likeliest first.

        Each source has class, azimuth and elevation (degrees), distance (m), presence
        (probability). Azimuth is counter-clockwise, front 0, left +90.
        """
        return self._sources(self.listen(audio), threshold)

    def _sources(self, heard, threshold):
        slots = heard.heard.slots
        presence = torch.sigmoid(slots.presence.float())
        labels = slots.label[..., : len(self.config.classes)].argmax(-1)
        found = []
        for b in range(len(presence)):
            order = presence[b].argsort(descending=True).tolist()
            found.append([])
            for s in order:
                if presence[b, s] < threshold:
                    continue
                x, y, z = slots.direction[b, s].tolist()
                found[b].append(
                    {
                        "class": self.config.classes[labels[b, s]],
                        "azimuth": round(math.degrees(math.atan2(y, x)), 1),
                        "elevation": round(math.degrees(math.atan2(z, math.hypot(x, y))), 1),
                        "distance": round(math.exp(slots.log_distance[b, s].item()), 2),
                        "presence": round(presence[b, s].item(), 3),
                    }
                )
        return found
