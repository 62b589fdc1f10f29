# SPDX-License-Identifier: Apache-2.0
"""Capacity planning: memory, FLOPs and expected time of a training step on TPU pods, ahead of time.

planner         `jaxasa plan`: compiles a step for a topology; verdict, advice, table
aot             ahead-of-time lowering of the step of each stage, from shapes alone
hlo             parser of compiled HLO text: trip counts, FLOPs, bytes accessed, collectives
replica_groups  parser of the replica groups of collectives
roofline        step time from matmul, HBM and ICI rates
"""
