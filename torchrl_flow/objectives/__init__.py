"""Loss modules."""

from __future__ import annotations

from torchrl_flow.objectives.aw_flow import AWFlowLoss
from torchrl_flow.objectives.chunk_critic import ChunkCriticObjective, EncoderGrad
from torchrl_flow.objectives.chunk_critic_loss import ChunkCriticLoss
from torchrl_flow.objectives.chunk_td3_bc import ChunkTD3BCLoss
from torchrl_flow.objectives.cql import ConservativeQLoss
from torchrl_flow.objectives.flow_anchor import FlowAnchorLoss
from torchrl_flow.objectives.held_networks import HeldNetworks
from torchrl_flow.objectives.latent_aw_mle import LatentAWMLELoss
from torchrl_flow.objectives.latent_sac import DistillationMode, DistilledSACLoss, LatentSACLoss
from torchrl_flow.objectives.reinflow_ppo import ReinFlowPPOLoss
from torchrl_flow.objectives.shortcut_flow import ShortCutFlowLoss
from torchrl_flow.objectives.shortcut_objective import AveragedNetwork, ShortCutObjective
from torchrl_flow.objectives.target_update import NetworkSoftUpdate

__all__ = [
    "AWFlowLoss",
    "AveragedNetwork",
    "ChunkCriticLoss",
    "ChunkCriticObjective",
    "ChunkTD3BCLoss",
    "ConservativeQLoss",
    "DistillationMode",
    "DistilledSACLoss",
    "EncoderGrad",
    "FlowAnchorLoss",
    "HeldNetworks",
    "LatentAWMLELoss",
    "LatentSACLoss",
    "NetworkSoftUpdate",
    "ReinFlowPPOLoss",
    "ShortCutFlowLoss",
    "ShortCutObjective",
]
