# SPDX-License-Identifier: Apache-2.0
"""Devices, meshes and processes.

mesh.py         the device mesh (data, fsdp, tensor)
sharding.py     shardings of parameters, optimizer state and batches
distributed.py  several processes as one run: start, and ending together
chips.py        TPU topologies, and specifications of chips
"""
