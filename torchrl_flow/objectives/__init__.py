"""Loss modules, and the terms from which they are built."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchrl_flow._lazy import lazy_exports

if TYPE_CHECKING:
    from torchrl_flow.objectives.aw_flow import AWFlowLoss, EncoderGrad
    from torchrl_flow.objectives.chunk_critic_loss import ChunkCriticLoss
    from torchrl_flow.objectives.chunk_estimator import make_chunk_advantage, make_chunk_estimator
    from torchrl_flow.objectives.chunk_td3_bc import ChunkTD3BCLoss
    from torchrl_flow.objectives.chunk_td_term import ChunkTDTerm
    from torchrl_flow.objectives.cql import ConservativeQLoss
    from torchrl_flow.objectives.direct_losses import DirectIQLLoss, DirectTD3BCLoss
    from torchrl_flow.objectives.distilled_sac import DistillationMode, DistilledSACLoss
    from torchrl_flow.objectives.flow_anchor import FlowAnchorLoss
    from torchrl_flow.objectives.flow_loss import AveragedNetwork, FlowLossModule
    from torchrl_flow.objectives.held_networks import HeldNetworks
    from torchrl_flow.objectives.latent_aw_mle import LatentAWMLELoss, LatentScorerFn
    from torchrl_flow.objectives.latent_sac import LatentSACLoss
    from torchrl_flow.objectives.latent_scorer import ActionScorer, LatentScorer
    from torchrl_flow.objectives.q_gradient_term import Anchor, Extraction, QGradientTerm
    from torchrl_flow.objectives.reinflow_ppo import ReinFlowPPOLoss
    from torchrl_flow.objectives.shortcut_flow import ShortCutFlowLoss
    from torchrl_flow.objectives.shortcut_term import ShortCutTerm
    from torchrl_flow.objectives.smdp_loss import SMDPLossModule
    from torchrl_flow.objectives.target_update import DirectSoftUpdate, NetworkSoftUpdate
    from torchrl_flow.objectives.weight_term import AdvantageSource, AdvantageWeightTerm, Baseline

__all__ = [
    "AWFlowLoss",
    "ActionScorer",
    "AdvantageSource",
    "AdvantageWeightTerm",
    "Anchor",
    "AveragedNetwork",
    "Baseline",
    "ChunkCriticLoss",
    "ChunkTD3BCLoss",
    "ChunkTDTerm",
    "ConservativeQLoss",
    "DirectIQLLoss",
    "DirectSoftUpdate",
    "DirectTD3BCLoss",
    "DistillationMode",
    "DistilledSACLoss",
    "EncoderGrad",
    "Extraction",
    "FlowAnchorLoss",
    "FlowLossModule",
    "HeldNetworks",
    "LatentAWMLELoss",
    "LatentSACLoss",
    "LatentScorer",
    "LatentScorerFn",
    "NetworkSoftUpdate",
    "QGradientTerm",
    "ReinFlowPPOLoss",
    "SMDPLossModule",
    "ShortCutFlowLoss",
    "ShortCutTerm",
    "make_chunk_advantage",
    "make_chunk_estimator",
]

__getattr__, __dir__ = lazy_exports(__name__)
