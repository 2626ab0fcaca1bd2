"""A policy that samples several action chunks and executes the one with the highest value of a critic."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase, dispatch
from tensordict.utils import NestedKey
from torch import Tensor

from torchrl_flow.functional.ensemble import take_best
from torchrl_flow.modules.actors.exploration import draws_noise
from torchrl_flow.modules.actors.flow import FlowActor
from torchrl_flow.modules.critics.q_ensemble import QEnsemble

__all__ = ["BestOfN"]


class BestOfN(TensorDictModuleBase):
    """Policy that samples N chunks of a flow actor in one batched pass and takes the one with the highest mean value.

    Reads the observations of actor and critic and, if present, the actor's noise ``[*B, N, H, A]`` (for one sample also
    ``[*B, H, A]``). Missing noise is drawn from N(0, I). If :func:`~torchrl_flow.modules.draws_noise` returns False,
    the first sample starts from zero noise, like the actor's, and the others start from fixed noise stored in the
    module, so that the same observation gives the same action. Writes the actor's outputs. With one sample it equals
    the actor, and the critic is not evaluated.

    Actor and critic are shared, not copied: pass a loss's own networks to follow its training, or averaged copies.

    Args:
        actor: flow actor that proposes the chunks.
        critic: critic of the executed part of the chunks.

    Keyword Args:
        num_samples: N.
        num_steps: K, Euler steps of a sample; ``None`` for those of the actor.

    Raises:
        ValueError: if the networks do not fit together or an argument is outside its allowed range.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_flow.modules import FlowActorConfig, QEnsemble, make_flow_actor
        >>> actor = make_flow_actor(FlowActorConfig(action_dim=3, state_dim=5))
        >>> policy = BestOfN(actor, QEnsemble.for_actor(actor), num_samples=4)
        >>> policy(TensorDict(observation=torch.zeros(6, 2, 5), batch_size=[6]))["action"].shape
        torch.Size([6, 8, 3])
    """

    fixed_noise: Tensor

    def __init__(self, actor: FlowActor, critic: QEnsemble, *, num_samples: int = 4, num_steps: int | None = 1) -> None:
        observations = [*actor.in_keys, *(key for key in critic.encoder.in_keys if key not in actor.in_keys)]
        self.in_keys = observations  # pyright: ignore[reportAttributeAccessIssue]
        self.out_keys = list(actor.out_keys)  # pyright: ignore[reportAttributeAccessIssue]
        super().__init__()
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}.")
        if num_steps is not None and num_steps < 1:
            raise ValueError(f"num_steps must be at least 1 or None, got {num_steps}.")
        ours, theirs = (actor.act_horizon, actor.action_dim), (critic.act_horizon, critic.action_dim)
        if ours != theirs:
            raise ValueError(
                f"the actor executes chunks [act_horizon, action_dim] = {list(ours)} but the critic values "
                f"{list(theirs)}; build the critic with QEnsemble.for_actor(actor)."
            )
        self.actor, self.critic = actor, critic
        self.num_samples, self.num_steps = num_samples, num_steps
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(num_samples, *actor.noise_shape, generator=generator)
        noise[0] = 0
        # Not part of the state dict: it does not depend on training, and N may differ when the state dict is loaded.
        self.register_buffer("fixed_noise", noise, persistent=False)

    @property
    def noise_key(self) -> NestedKey:
        """Key of the optional noise, as in the actor."""
        return self.actor.noise_key

    @property
    def noise_shape(self) -> torch.Size:
        """Shape of a row's noise: ``[N, H, A]``, or ``[H, A]`` with one sample."""
        return torch.Size([*([self.num_samples] if self.num_samples > 1 else []), *self.actor.noise_shape])

    def _noise(self, tensordict: TensorDictBase, batch: torch.Size, reference: Tensor) -> Tensor:
        shape = (*batch, self.num_samples, *self.actor.noise_shape)
        noise = tensordict.get(self.actor.noise_key, None)
        if noise is not None:
            one = (*batch, *self.actor.noise_shape)
            if tuple(noise.shape) != shape and (self.num_samples > 1 or tuple(noise.shape) != one):
                raise ValueError(
                    f"{self.actor.noise_key!r} must have shape [*B, num_samples, H, A] = {list(shape)}, got "
                    f"{list(noise.shape)}."
                )
            return noise.to(reference.dtype)
        if not draws_noise():
            return self.fixed_noise.to(reference).expand(shape)
        return torch.randn(shape, device=reference.device, dtype=reference.dtype)

    def best_chunk(
        self, tensordict: TensorDictBase, features: Tensor, noise: Tensor, *, num_steps: int | None = None
    ) -> Tensor:
        """Return the best chunk ``[B, H, A]`` of the chunks sampled from noise ``[B, N, H, A]``.

        Args:
            tensordict: batch with the observations of the critic.
            features: the actor's encoded observations ``[B, C]``.
            noise: N starting points for each row.
            num_steps: sampling steps K. Defaults to those of the actor.
        """
        actor, critic = self.actor, self.critic
        chunks = actor.sample(features, noise, num_steps=num_steps)
        if self.num_samples == 1:
            return chunks[:, 0]
        if critic.encoder is not actor.encoder:
            features = critic.encoder(*critic.encoder.preprocess(tensordict))
        scores = critic.q_values(features, chunks[..., actor.executed_slice, :]).mean(0).squeeze(-1)
        return take_best(scores, chunks)

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase, *, num_steps: int | None = None) -> TensorDictBase:
        """Write the best chunk and its executed slice.

        Args:
            tensordict: batch of any shape ``[*B]``, see the class.
            num_steps: sampling steps K of this call. Defaults to those of the policy.

        Raises:
            ValueError: if a shape does not fit.
        """
        actor = self.actor
        batch = actor.encoder.batch_shape(tensordict)
        features = actor.features(tensordict)
        noise = self._noise(tensordict, batch, features).reshape(-1, self.num_samples, *actor.noise_shape)
        num_steps = self.num_steps if num_steps is None else num_steps
        chunk = self.best_chunk(tensordict, features, noise, num_steps=num_steps).reshape(*batch, *actor.noise_shape)
        tensordict.set(actor.chunk_key, chunk)
        return tensordict.set(actor.action_key, chunk[..., actor.executed_slice, :])
