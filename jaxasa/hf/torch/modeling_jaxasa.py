"""A jaxasa model in torch: Whisper's and Qwen's layers of transformers, a spatial encoder between.

    model = AutoModel.from_pretrained(FOLDER, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(FOLDER, trust_remote_code=True)
    inputs = processor(audio, "where is the dog ?")       # audio [N, 4]: W, Y, Z, X, SN3D, 16 kHz
    reply, sources = model.generate(**inputs, return_sources=True)
    processor.read(reply[0])                               # {"answer", "thought", "reply"}
    sources[0]                                             # [{"class", "azimuth", ...}, ...]

Letters: B batch, N samples, A audio tokens, T tokens, D width.
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

SPATIAL_EXPERTS = ("direction", "distance", "reverberation", "count")


class Audio(NamedTuple):
    """semantic and dense [B, A, .] at token rate, Heard."""

    semantic: torch.Tensor
    dense: torch.Tensor
    heard: Heard


class Expert(nn.Module):
    """[B, A, inputs] -> [B, A, E]; `head` gives its auxiliary estimates."""

    def __init__(self, inputs, size, estimates):
        super().__init__()
        self.add_module("in", Dense(inputs, 2 * size))
        self.out = Dense(2 * size, size)
        if estimates:
            self.head = Dense(size, estimates)

    def forward(self, x):
        return self.out(gelu(self.get_submodule("in")(x)))


class Projector(nn.Module):
    """Semantic and spatial streams -> audio tokens [B, A, D]."""

    def __init__(self, p, semantic, spatial, classes, width):
        super().__init__()
        size = p["expert"]
        estimates = {"direction": 3 * classes, "distance": classes, "reverberation": 2, "count": 1}
        self.experts = nn.ModuleDict({"semantic": Expert(semantic, size, classes)})
        for name in SPATIAL_EXPERTS:
            self.experts[name] = Expert(spatial, size, estimates[name])
        self.experts["joint"] = Expert(semantic + spatial, size, 0)
        self.norm = nn.LayerNorm(size * len(self.experts), eps=1e-6)
        self.bottleneck = Dense(size * len(self.experts), p["hidden"])
        self.out = Dense(p["hidden"], width)
        self.null = nn.Parameter(torch.zeros(spatial))

    def forward(self, semantic, dense):
        inputs = dict.fromkeys(SPATIAL_EXPERTS, dense) | {"semantic": semantic}
        inputs["joint"] = torch.cat([semantic, dense], -1)
        x = torch.cat([expert(inputs[name]) for name, expert in self.experts.items()], -1)
        return self.out(gelu(self.bottleneck(self.norm(x))))


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
        self.audio_tower = Semantic(config.audio_config)
        self.spatial_encoder = Spatial(config.audio_config, m["spatial"])
        self.projector = Projector(
            m["projector"],
            config.audio_config.d_model,
            m["spatial"]["width"],
            m["spatial"]["classes"],
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
        """audio [B, N, 4] in [-1, 1] -> both encoders' views at token rate."""
        audio = audio.float()
        mels = log_mel(audio[..., 0], self.config.audio_config.num_mel_bins)
        semantic = self.audio_tower(mels)
        heard = self.spatial_encoder(audio)
        rate = self.config.model["projector"]["token_rate"]
        count = max(1, round(audio.shape[1] / RATE * rate))
        return Audio(
            resample_time(semantic, count),
            resample_time(heard.dense, count),
            heard,
        )

    def project(self, audio, spatial=True):
        """Audio tokens [B, A, D]. Without `spatial` the learnt null stands for the spatial map."""
        dense = audio.dense if spatial else self.projector.null.expand_as(audio.dense)
        return self.projector(audio.semantic, dense)

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
