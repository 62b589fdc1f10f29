# SPDX-License-Identifier: Apache-2.0
"""The spatial audio language model in flax, its training-time functions and its decoding.

asa         the whole model: parameters, encode_audio, project, embed, forward
semantic    semantic encoder (Whisper) on one channel
spatial     spatial encoder: dense map, attractors, slots, room; slot features
peaks       DOA peaks of intensity vectors, from which slots start
projector   projectors P0, P1, P2: both streams to the decoder's embeddings
decoder     decoder (Qwen) with LoRA; KV cache; scoring completions of a shared prompt
layers      transformer blocks of the encoders, resampling over time
lm          token log-probabilities, chunked
sample      prefill, decoding loop, top-k and top-p, stop strings
decoding    weights and KV cache as the decoding loop reads them fastest
generation  the compiled functions that inference/qa.py answers with
flops       model FLOPs of a training step
"""
