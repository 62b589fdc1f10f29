"""Configuration of a jaxasa model in transformers."""

from transformers import AutoConfig, PretrainedConfig


def _part(values, default):
    if isinstance(values, PretrainedConfig):
        return values
    values = dict(values or {})
    return AutoConfig.for_model(values.pop("model_type", default), **values)


class JaxasaConfig(PretrainedConfig):
    """What config.json says.

    text_config: of the decoder (Qwen2 or Qwen3); audio_config: of the semantic encoder (Whisper).
    model: all options of the model as jaxasa writes them, the spatial encoder's and the
        projector's among them.
    classes: names of the sounds that slots tell apart; seconds: of the clips it was trained on.
    audio_token_id: the token whose places take the audio.
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
        audio_token_id=None,
        **kwargs,
    ):
        self.text_config = _part(text_config, "qwen2")
        self.audio_config = _part(audio_config, "whisper")
        self.model = dict(model or {})
        self.classes = list(classes)
        self.seconds = seconds
        self.audio_token_id = audio_token_id
        kwargs["tie_word_embeddings"] = self.text_config.tie_word_embeddings
        super().__init__(**kwargs)
