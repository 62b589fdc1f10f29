# SPDX-License-Identifier: Apache-2.0
"""Throughput compared with PyTorch libraries (`jaxasa bench speed`, extra `speed`).

decode  greedy generation compared with transformers
sft     supervised fine-tuning of LoRA adapters compared with transformers and peft
grpo    GRPO steps compared with TRL's GRPOTrainer
timing  interleaved timing of two implementations, result rows and table
"""

COMPARISONS = ("decode", "sft", "grpo")  # modules with a function `run`
