"""A batched simulator of slate recommendation, whose users click, drift towards clicked items, and get bored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.data import Binary, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase

from torchrl_flow.envs.counter_rng import counter_normal, counter_uniform, splitmix64
from torchrl_flow.recsys import dynamics as dynamics
from torchrl_flow.recsys.catalogue import ItemCatalogue, make_catalogue
from torchrl_flow.recsys.names import SLATE_ENVS, ClickModel
from torchrl_flow.util.signature import InitSignature
from torchrl_flow.util.task_info import TaskInfo

__all__ = ["SlateEnv"]


class SlateEnv(EnvBase):
    """Batched slate recommendation: the action is a slate of item ids, the reward is the number of clicks.

    Each episode has a new user, with interests in 10 topics. An examined item is clicked with probability
    ``sigmoid(100 (e . u / max norm - 0.28))``. The examination probability of slot r depends on the click model: 0.85^r
    in ``topdown``; the mean of 0.85^r and its reverse in ``mix``; the same in ``divpen``, where clicks are three times
    rarer in slates with at least 4 items of one main topic. Every click moves the user's interests towards the item. A
    topic with at least 5 of the last 10 clicks, none older than 5 steps, bores the user for 5 steps. Greedy relevance
    is therefore far from optimal. Episodes are truncated after ``max_episode_steps``.

    ``action`` holds item ids, duplicates allowed. ``slate`` and ``clicks`` hold the last slate and its clicks. At a
    reset the slate is the most typical item of each topic; its clicks are observed but not rewarded.

    ``reset(seed=s)`` starts sub-environment ``i`` from seed ``s + i``, ``reset(seed=[...])`` from one seed each: users
    and clicks then depend only on this seed and the slates, not on the batch. Sub-environments with False in a
    ``_step`` mask keep their state and get reward 0.

    Args:
        name: one of :data:`SLATE_ENVS`.
        num_envs: number of sub-environments; None makes an env without batch dimension.

    Keyword Args:
        catalogue: items. Defaults to those of :func:`make_catalogue`.
        slate_size: items in a slate.
        max_episode_steps: steps until truncation.
        privileged: also observe ``user``, the interests ``[*B, 20]``, and ``bored``, the boring topics in the next step
            ``[*B, 10]``. The oracle policies read both.
        legacy_click_history: treat clicks at a reset as the paper's code does: they count as clicks but have no time,
            so that other clicks are removed from the history in their place.
        seed: seed, as in ``set_seed``. Defaults to a draw from torch's global generator.
        device: device of the simulation.
        slate_key: key of the last slate.
        clicks_key: key of its clicks.
        user_key: key of the interests.
        bored_key: key of the boring topics.

    Raises:
        ValueError: if the environment is unknown or a number is below 1.

    References:
        Deffayet et al., "Generative Slate Recommendation with Reinforcement Learning", WSDM 2023,
        https://arxiv.org/abs/2301.08632

    Examples:
        >>> env = SlateEnv("diffuse_topdown", 4, seed=0)
        >>> rollout = env.rollout(5)
        >>> rollout["action"].shape, rollout["next", "clicks"].shape
        (torch.Size([4, 5, 10]), torch.Size([4, 5, 10]))
        >>> bool((rollout["next", "clicks"].sum(-1, keepdim=True) == rollout["next", "reward"]).all())
        True
    """

    __signature__ = InitSignature()
    _user: Tensor  # [*B, D], interests
    _timers: Tensor  # [*B, topics], remaining boring steps of each topic at the next step
    _entries: Tensor  # [*B, 10], the click history at the next step
    _kept: Tensor  # [*B, 1]
    _dated: Tensor  # [*B, 1]
    _slate: Tensor  # [*B, L], shown last
    _clicks: Tensor  # [*B, L], of that
    _elapsed: Tensor  # [*B, 1], steps since the last reset
    _embeddings: Tensor  # [N, D]
    _main_topic: Tensor  # [N]
    _first_slate: Tensor  # [topics]
    _examined: Tensor  # [L]
    _stream: Tensor  # [*B], seed of each sub-environment's random numbers
    _episode: Tensor  # [*B], number of episodes drawn from the stream

    _STATE = ("_user", "_timers", "_entries", "_kept", "_dated", "_slate", "_clicks", "_elapsed")

    def __init__(
        self,
        name: str = "diffuse_topdown",
        num_envs: int | None = 1,
        *,
        catalogue: ItemCatalogue | None = None,
        slate_size: int = 10,
        max_episode_steps: int = 100,
        privileged: bool = False,
        legacy_click_history: bool = False,
        seed: int | None = None,
        device: torch.device | str = "cpu",
        slate_key: NestedKey = "slate",
        clicks_key: NestedKey = "clicks",
        user_key: NestedKey = "user",
        bored_key: NestedKey = "bored",
    ) -> None:
        if name not in SLATE_ENVS:
            raise ValueError(f"name must be one of {SLATE_ENVS}, got {name!r}.")
        for label, number in (("num_envs", num_envs), ("slate_size", slate_size), ("episode", max_episode_steps)):
            if number is not None and number < 1:
                raise ValueError(f"{label} must be at least 1, got {number}.")
        batch_size = torch.Size([] if num_envs is None else [num_envs])
        super().__init__(device=torch.device(device), batch_size=batch_size)
        self.name, self.num_envs, self.slate_size = name, num_envs, slate_size
        self.catalogue = make_catalogue(name) if catalogue is None else catalogue
        self.max_episode_steps, self.privileged = max_episode_steps, privileged
        self.legacy_click_history = legacy_click_history
        self.slate_key, self.clicks_key, self.user_key, self.bored_key = slate_key, clicks_key, user_key, bored_key
        self._click_model: ClickModel = name.split("_")[1]  # pyright: ignore[reportAttributeAccessIssue]
        self._make_specs()
        self._make_buffers()
        self.set_seed(seed)

    @property
    def task_info(self) -> dict[str, Any]:
        """JSON-able identity of the task: name, observations, actions, longest episode, and the hash of the items."""
        return TaskInfo(
            task=self.name,
            control_mode="slate",
            obs_mode="slate+clicks",
            max_episode_steps=self.max_episode_steps,
            details={"catalogue": self.catalogue.hash, "legacy_click_history": self.legacy_click_history},
        ).to_dict()

    def _make_specs(self) -> None:
        batch, device = self.batch_size, self.device
        shape, single = torch.Size([*batch, self.slate_size]), torch.Size([*batch, 1])
        ids = Categorical(self.catalogue.num_items, shape=shape, dtype=torch.int64, device=device)
        observation = Composite(shape=batch, device=device)
        observation[self.slate_key] = ids
        observation[self.clicks_key] = Binary(self.slate_size, shape=shape, dtype=torch.bool, device=device)
        if self.privileged:
            topics = self.catalogue.num_topics
            wide = torch.Size([*batch, self.catalogue.dim])
            observation[self.user_key] = Unbounded(wide, device, torch.float32)
            bored = Binary(topics, shape=torch.Size([*batch, topics]), dtype=torch.bool, device=device)
            observation[self.bored_key] = bored
        self.observation_spec = observation
        self.action_spec = ids.clone()
        self.reward_spec = Unbounded(single, device, torch.float32)
        done = Categorical(2, shape=single, dtype=torch.bool, device=device)
        names = ("done", "terminated", "truncated")
        self.done_spec = Composite({name: done.clone() for name in names}, shape=batch, device=device)

    def _make_buffers(self) -> None:
        batch, topics = self.batch_size, self.catalogue.num_topics

        def whole(*shape: int) -> Tensor:
            return torch.zeros((*batch, *shape), dtype=torch.int64, device=self.device)

        # Buffers follow `env.to(device)` and make `state_dict()` a full snapshot of the simulation.
        self.register_buffer("_user", whole(self.catalogue.dim).float())
        self.register_buffer("_timers", whole(topics))
        self.register_buffer("_entries", whole(dynamics.MEMORY))
        for name in ("_kept", "_dated", "_elapsed"):
            self.register_buffer(name, whole(1))
        self.register_buffer("_slate", whole(self.slate_size))
        self.register_buffer("_clicks", whole(self.slate_size).bool())
        self.register_buffer("_stream", whole())
        self.register_buffer("_episode", whole())
        items = self.catalogue
        # The items are large and not part of the state: they move with the env but are left out of its snapshots.
        self.register_buffer("_embeddings", items.embeddings.to(self.device), persistent=False)
        self.register_buffer("_main_topic", items.main_topic.to(self.device), persistent=False)
        self.register_buffer("_first_slate", items.topic_slate.to(self.device), persistent=False)
        examined = dynamics.examination(self._click_model, self.slate_size, self.device)
        self.register_buffer("_examined", examined, persistent=False)

    def _set_seed(self, seed: int | None) -> None:
        if seed is None:
            seed = int(torch.empty((), dtype=torch.int64).random_().item())
        index = torch.arange(self.batch_size.numel(), device=self.device).reshape(self.batch_size)
        self._stream = splitmix64(splitmix64(torch.full_like(index, _int64(seed))) + index)
        self._episode = torch.zeros_like(self._episode)

    def _seeds(self, seed: int | Sequence[int] | Tensor) -> Tensor:
        num = self.batch_size.numel()
        values = seed.tolist() if isinstance(seed, Tensor) else seed
        values = [values + i for i in range(num)] if isinstance(values, int) else [int(s) for s in values]
        if len(values) != num:
            raise ValueError(f"seed must be one int or {num} ints (one for each sub-environment), got {len(values)}.")
        keys = torch.tensor([_int64(s) for s in values], dtype=torch.int64, device=self.device)
        return keys.reshape(self.batch_size)

    def _reset(
        self,
        tensordict: TensorDictBase | None = None,
        *,
        seed: int | Sequence[int] | Tensor | None = None,
        **kwargs: Any,
    ) -> TensorDictBase:
        if kwargs:
            raise ValueError(f"reset() got unknown options {sorted(kwargs)}; it takes seed.")
        mask = None if tensordict is None else tensordict.get("_reset", None)
        mask = torch.ones_like(self._elapsed, dtype=torch.bool) if mask is None else mask
        flat = mask.reshape(self.batch_size)
        if seed is not None:
            self._stream = torch.where(flat, self._seeds(seed), self._stream)
            self._episode = torch.where(flat, 0, self._episode)
        if flat.all():
            self._draw_users()
        elif flat.any():
            self._draw_users_of(flat.nonzero(as_tuple=True))
        self._episode = self._episode + flat
        return self._output()

    def _draw_users_of(self, rows: tuple[Tensor, ...]) -> None:
        """Start an episode in some sub-environments; only their states are computed."""
        before = {**self._snapshot(), "_stream": self._stream, "_episode": self._episode}
        self._assign({name: value[rows] for name, value in before.items()})
        self._draw_users()
        self._assign({name: value.index_put(rows, getattr(self, name)) for name, value in before.items()})

    def _draw_users(self) -> None:
        """Start an episode in all sub-environments: new users, who see the most typical items of all topics."""
        topics = self.catalogue.num_topics
        uniform = counter_uniform(self._stream, self._counter(-1), topics)
        self._user = dynamics.initial_user(uniform, counter_normal(self._stream, self._counter(-2), self.catalogue.dim))
        emptied = ("_timers", "_entries", "_kept", "_dated", "_elapsed")
        self._assign({name: torch.zeros_like(getattr(self, name)) for name in emptied})
        shown = self._first_slate[torch.arange(self.slate_size, device=self.device) % topics]
        self._show(shown.expand_as(self._slate), dated=not self.legacy_click_history, drift=False)
        self._look_ahead()

    def _counter(self, step: int | Tensor) -> Tensor:
        """Return the position of a step of the current episode in the random streams."""
        return (self._episode << 20) + step + 2

    def _show(self, slate: Tensor, *, dated: bool = True, drift: bool = True) -> None:
        """Simulate the users' clicks on a slate, and add them to the history."""
        topics = self.catalogue.num_topics
        self._slate = slate
        uniform = counter_uniform(self._stream, self._counter(self._elapsed.squeeze(-1)), self.slate_size)
        items, slate_topics = self._embeddings[slate], self._main_topic[slate]
        user = dynamics.effective_user(self._user, self._timers > 0)
        score = (items @ user.unsqueeze(-1)).squeeze(-1)
        probability = dynamics.click_probability(
            dynamics.relevance(score, self.catalogue.max_norm),
            slate_topics,
            self._examined,
            penalise=self._click_model == "divpen",
        )
        self._clicks = uniform < probability
        if drift:
            self._user = dynamics.drift_user(self._user, items, self._clicks, topics)
        history = dynamics.ClickHistory(self._entries, self._kept, self._dated)
        history = dynamics.remember_clicks(history, self._clicks, slate_topics, self._elapsed, topics, dated=dated)
        self._assign({"_entries": history.entries, "_kept": history.kept, "_dated": history.dated})

    def _look_ahead(self) -> None:
        """Remove old clicks at the end of a step, and update boredom for the next step."""
        topics = self.catalogue.num_topics
        history = dynamics.ClickHistory(self._entries, self._kept, self._dated)
        history = dynamics.forget_clicks(history, self._elapsed, topics)
        timers = dynamics.tick_boredom(self._timers, dynamics.bored_topics(history, topics))
        self._assign({"_entries": history.entries, "_kept": history.kept, "_dated": history.dated, "_timers": timers})

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        slate = self._checked(tensordict.get(self.action_key))
        mask = tensordict.get("_step", None)
        before = None if mask is None else self._snapshot()
        self._elapsed = self._elapsed + 1
        self._show(slate)
        self._look_ahead()
        reward = self._clicks.sum(-1, keepdim=True)
        if mask is not None and before is not None:
            mask = mask.reshape(*self.batch_size, 1)
            self._restore_where(~mask, before)
            reward = reward * mask
        out = self._output()
        out.set(self.reward_key, reward.to(torch.float32))
        return out

    def _checked(self, slate: Tensor) -> Tensor:
        if slate.shape != self._slate.shape or slate.dtype != torch.int64:
            raise ValueError(
                f"a slate must be int64 item ids of shape {list(self._slate.shape)}, got {slate.dtype} of shape "
                f"{list(slate.shape)}."
            )
        return slate

    def _snapshot(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in self._STATE}

    def _assign(self, state: dict[str, Tensor]) -> None:
        """Set buffers without nn.Module's checks of assignments, which take as long as the computation."""
        self._buffers.update(state)

    def _restore_where(self, mask: Tensor, before: dict[str, Tensor]) -> None:
        """Restore the state of some sub-environments; ``mask`` is ``[*B, 1]``."""
        self._assign({name: torch.where(mask, value, getattr(self, name)) for name, value in before.items()})

    def _output(self) -> TensorDict:
        truncated = self._elapsed >= self.max_episode_steps
        out = TensorDict({}, batch_size=self.batch_size, device=self.device)
        out.set(self.slate_key, self._slate.clone())  # the caller may write into the result
        out.set(self.clicks_key, self._clicks.clone())
        if self.privileged:
            out.set(self.user_key, self._user.clone())
            out.set(self.bored_key, self._timers > 0)
        out.set("terminated", torch.zeros_like(truncated))
        out.set("truncated", truncated)
        out.set("done", truncated.clone())
        return out


def _int64(seed: int) -> int:
    """Return the int64 with the lowest 64 bits of a seed of any size or sign."""
    return (int(seed) + (1 << 63)) % (1 << 64) - (1 << 63)
