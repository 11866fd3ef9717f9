"""Offloading, onto the CPU as the device that computes: the hooks are the real ones, the transfers are not."""

import pytest
import torch
from combined_feature import check_feature
from families import transformers

CPU = torch.device("cpu")


@pytest.mark.cell("Offloading", "group offload by block")
def test_group_offload_by_block(family):
    def offload(pipe):
        for transformer in transformers(pipe):
            transformer.enable_group_offload(CPU, offload_type="block_level", num_blocks_per_group=1)

    check_feature(family, offload)


@pytest.mark.cell("Offloading", "group offload by leaf")
def test_group_offload_by_leaf(family):
    def offload(pipe):
        for transformer in transformers(pipe):
            transformer.enable_group_offload(CPU, offload_type="leaf_level")

    check_feature(family, offload)


@pytest.mark.cell("Offloading", "enable_model_cpu_offload")
def test_model_offload(family):
    check_feature(family, lambda pipe: pipe.enable_model_cpu_offload(device="cpu"))


@pytest.mark.cell("Offloading", "sequential offload of the transformer")
def test_sequential_offload(family):
    accelerate = pytest.importorskip("accelerate")

    def offload(pipe):
        for transformer in transformers(pipe):
            accelerate.cpu_offload(transformer, CPU)

    check_feature(family, offload)
