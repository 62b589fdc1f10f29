# SPDX-License-Identifier: Apache-2.0
"""Configuration of a jaxasa model in transformers."""

from transformers import AutoConfig, PretrainedConfig


def _sub_config(values, default):
    if isinstance(values, PretrainedConfig):
        return values
    values = dict(values or {})
    return AutoConfig.for_model(values.pop("model_type", default), **values)


class JaxasaConfig(PretrainedConfig):
    """config.json.

    text_config: of the decoder (Qwen2 or Qwen3). audio_config: of the semantic encoder (Whisper).
    model: all options of the model as jaxasa writes them, among them those of the spatial encoder
        and the projector.
    classes: names of the sounds that the slots distinguish. seconds: length of the training clips.
    expert_width: hidden width of the projector's MLPs.
    audio_token_id: the token that audio embeddings replace.
    """

    model_type = "jaxasa"
    sub_configs = {"text_config": AutoConfig, "audio_config": AutoConfig}

    def __init__(
        self,
        text_config=None,
        audio_config=None,
        model=None,
        classes=(),
        seconds=10.0,
        expert_width=1,
        audio_token_id=None,
        **kwargs,
    ):
        self.text_config = _sub_config(text_config, "qwen2")
        self.audio_config = _sub_config(audio_config, "whisper")
        self.model = dict(model or {})
        self.classes = list(classes)
        self.seconds = seconds
        self.expert_width = expert_width
        self.audio_token_id = audio_token_id
        kwargs["tie_word_embeddings"] = self.text_config.tie_word_embeddings
        super().__init__(**kwargs)
