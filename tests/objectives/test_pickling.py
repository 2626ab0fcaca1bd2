"""Losses that are sent to another process, where nothing of this one exists, give the same values there."""

from __future__ import annotations

import os

import pytest
import torch

from tests.objectives import (
    test_aw_flow,
    test_chunk_critic_loss,
    test_flow_anchor,
    test_reinflow_ppo,
    test_shortcut_flow,
)

CASES = {
    "ShortCutFlowLoss": test_shortcut_flow.TestContract,
    "AWFlowLoss": test_aw_flow.TestContract,
    "ChunkCriticLoss": test_chunk_critic_loss.TestContract,
    "FlowAnchorLoss": test_flow_anchor.TestContract,
    "ReinFlowPPOLoss": test_reinflow_ppo.TestContract,
}


def values(loss, batch):
    """The loss terms and the sums of their gradients, by name, and the number of the process."""
    torch.manual_seed(0)
    out = loss(batch)
    terms = {key: value for key, value in out.items() if key.startswith("loss")}
    torch.stack([term.sum() for term in terms.values()]).sum().backward()
    gradients = {name: p.grad.sum().item() for name, p in loss.named_parameters() if p.grad is not None}
    return {key: term.tolist() for key, term in terms.items()}, gradients, os.getpid()


@pytest.fixture(scope="module")
def process():
    with torch.multiprocessing.get_context("spawn").Pool(1) as pool:
        yield pool


@pytest.mark.parametrize("name", CASES)
def test_a_loss_in_a_spawned_process(name, process):
    case = CASES[name]()
    loss, batch = case.make_loss(), case.make_batch()
    assert type(loss).__name__ == name
    loss(batch.clone())  # a loss that was used
    sent = process.apply_async(values, (loss, batch.clone())).get(timeout=300)
    terms, gradients, number = values(loss, batch)
    assert sent[:2] == (terms, gradients)
    assert terms
    assert gradients
    assert sent[2] != number == os.getpid()
