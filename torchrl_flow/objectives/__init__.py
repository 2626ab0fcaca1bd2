"""Loss modules."""

from __future__ import annotations

from torchrl_flow.objectives.aw_flow import AWFlowLoss
from torchrl_flow.objectives.chunk_critic import ChunkCriticObjective, EncoderGrad
from torchrl_flow.objectives.chunk_td3_bc import ChunkTD3BCLoss
from torchrl_flow.objectives.cql import ConservativeQLoss
from torchrl_flow.objectives.flow_anchor import FlowAnchorLoss
from torchrl_flow.objectives.shortcut_flow import ShortCutFlowLoss
from torchrl_flow.objectives.shortcut_objective import AveragedNetwork, ShortCutObjective
from torchrl_flow.objectives.target_update import NetworkSoftUpdate

__all__ = [
    "AWFlowLoss",
    "AveragedNetwork",
    "ChunkCriticObjective",
    "ChunkTD3BCLoss",
    "ConservativeQLoss",
    "EncoderGrad",
    "FlowAnchorLoss",
    "NetworkSoftUpdate",
    "ShortCutFlowLoss",
    "ShortCutObjective",
]
