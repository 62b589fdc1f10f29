# SPDX-License-Identifier: Apache-2.0
"""Weights and models in Hugging Face's formats, in and out.

export      a checkpoint to a folder that transformers loads
adapter     its LoRA adapters to a folder that peft loads
stablehlo   its functions for jax alone
card        the model card of an export
remote      configs, tokenizer files and remote code of an export
torch/      that remote code: the model in torch
load        an export or a checkpoint to parameters
pretrained  Whisper, Qwen2, Qwen2.5, Qwen3, Qwen2-Audio to sharded parameters
keymap      tables of parameter paths and tensor names
weights     reads a folder of safetensors
folder      writes safetensors and JSON
"""
