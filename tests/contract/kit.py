"""What every loss of the library must fulfil, as a class of tests to inherit from."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Mapping

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.utils import unravel_key
from torchrl.objectives import LossModule, SoftUpdate


def as_double(batch: TensorDictBase) -> TensorDictBase:
    """The batch with all numbers in double precision."""
    moved = batch.apply(lambda value: value.double() if value.is_floating_point() else value)
    assert moved is not None
    return moved


class MoveContract:
    """What a loss must do when it is moved, copied and saved; a part of :class:`LossContract`."""

    #: whether the loss can be pickled; TorchRL's losses that call their critics by vmap cannot
    pickles: bool = True

    def make_loss(self, **kwargs) -> LossModule:
        raise NotImplementedError

    def make_batch(self) -> TensorDict:
        raise NotImplementedError

    def test_to_moves_everything(self):
        loss, batch = self.make_loss().to(torch.float64), as_double(self.make_batch())
        tensors = {**dict(torch.nn.Module.named_parameters(loss)), **dict(loss.named_buffers())}
        left = [name for name, value in tensors.items() if value.is_floating_point() and value.dtype != torch.float64]
        assert not left, f"not moved: {left}"
        # A network in the instance's dictionary is seen by no method of nn.Module; TorchRL keeps there, beside their
        # parameters, the networks that it calls with these.
        stray = [name for name, value in vars(loss).items() if isinstance(value, torch.nn.Module)]
        assert all(f"{name}_params" in loss._modules for name in stray), f"held past nn.Module: {stray}"
        outputs = {}
        for name, module in (("moved", loss), ("copied", copy.deepcopy(loss))):
            torch.manual_seed(0)
            out = module(batch.clone())
            outputs[name] = {key: value for key, value in out.items() if key.startswith("loss")}
            assert all(value.dtype == torch.float64 for value in outputs[name].values()), outputs[name]
            torch.stack([value.sum() for value in outputs[name].values()]).sum().backward()
            gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
            assert gradients
            assert all(gradient.dtype == torch.float64 for gradient in gradients)
        torch.testing.assert_close(outputs["copied"], outputs["moved"], rtol=0, atol=0)

    def test_a_copy_is_apart(self):
        loss = self.make_loss()
        copied = copy.deepcopy(loss)
        theirs = {value.data_ptr() for value in copied.state_dict().values() if value.numel()}
        assert theirs.isdisjoint(value.data_ptr() for value in loss.state_dict().values() if value.numel())

    def test_a_moved_loss_goes_on_from_its_state_dict(self):
        source, target = (self.make_loss().to(torch.float64) for _ in range(2))
        batch = as_double(self.make_batch())
        # All of it, held networks too.
        for parameter in {*torch.nn.Module.parameters(source)}:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
        target.load_state_dict(copy.deepcopy(source.state_dict()))
        values = []
        for loss in (source, target):
            torch.manual_seed(0)
            values.append({key: value for key, value in loss(batch.clone()).items() if key.startswith("loss")})
        torch.testing.assert_close(values[1], values[0], rtol=0, atol=0)

    def test_a_state_dict_after_use_goes_into_a_fresh_loss(self):
        used, fresh = self.make_loss(), self.make_loss()
        used(self.make_batch())["loss_" + self.first_loss()].sum().backward()
        assert list(used.state_dict()) == list(fresh.state_dict())
        fresh.load_state_dict(copy.deepcopy(used.state_dict()))
        used.load_state_dict(copy.deepcopy(self.make_loss().state_dict()))

    def test_pickling(self):
        loss = self.make_loss()
        loss(self.make_batch())
        if not self.pickles:
            with pytest.raises((AttributeError, pickle.PicklingError), match="_vmap_func"):
                pickle.dumps(loss)
            return
        values = []
        for module in (loss, pickle.loads(pickle.dumps(loss))):
            torch.manual_seed(0)
            values.append({key: value for key, value in module(self.make_batch()).items() if key.startswith("loss")})
        torch.testing.assert_close(values[1], values[0], rtol=0, atol=0)

    def test_out_keys_can_be_selected(self):
        loss = self.make_loss()
        key = "loss_" + self.first_loss()
        loss.select_out_keys(key)
        assert loss.out_keys == [key]
        assert list(loss(self.make_batch()).keys()) == [key]

    def first_loss(self) -> str:
        return next(key for key in self.make_loss().out_keys if key.startswith("loss_")).removeprefix("loss_")


class LossContract(MoveContract):
    """Inherit, give :meth:`make_loss` and :meth:`make_batch`, and state where gradients may go."""

    #: per loss key, the prefixes of the parameters that it must reach; all others must stay untouched
    gradients: Mapping[str, tuple[str, ...]]
    #: keys that the loss can do without
    optional_keys: tuple[str, ...] = ()
    #: losses whose mean is weighted by the rows' importance weights; all where None
    weighted: tuple[str, ...] | None = None

    def run(self, loss: LossModule, batch: TensorDictBase, seed: int = 0) -> TensorDictBase:
        torch.manual_seed(seed)
        return loss(batch.clone())

    def losses(self, out: TensorDictBase) -> dict[str, torch.Tensor]:
        return {key: value for key, value in out.items() if key.startswith("loss")}

    def fields(self, loss: LossModule) -> list[dataclasses.Field]:
        return list(dataclasses.fields(type(loss)._AcceptedKeys))

    # Keys

    def test_out_keys_are_what_forward_writes(self):
        loss = self.make_loss()
        out = self.run(loss, self.make_batch())
        assert set(out.keys()) == set(loss.out_keys)
        assert set(self.losses(out)) == set(self.gradients)

    def test_in_keys_suffice(self):
        loss, batch = self.make_loss(), self.make_batch()
        out = self.run(loss, batch.select(*loss.in_keys))
        assert all(value.isfinite() for value in self.losses(out).values())

    def test_each_in_key_is_needed(self):
        loss, batch = self.make_loss(), self.make_batch()
        for key in loss.in_keys:
            with pytest.raises((KeyError, ValueError)):
                self.run(loss, batch.exclude(key))

    def test_unknown_key_is_refused(self):
        with pytest.raises((ValueError, KeyError)):
            self.make_loss().set_keys(no_such_key="x")

    @pytest.mark.parametrize("nested", [False, True])
    def test_renamed_keys_give_the_same_loss(self, nested):
        loss, batch = self.make_loss(), self.make_batch()
        reference = self.losses(self.run(loss, batch))
        for field in self.fields(loss):
            new = ("some", field.name) if nested else f"renamed_{field.name}"
            if batch.get(field.default, None) is not None:
                batch.rename_key_(field.default, new)
            elif batch.get(("next", field.default), None) is not None:  # TorchRL's names of what lies under "next"
                batch.rename_key_(("next", field.default), unravel_key(("next", new)))
            else:
                continue
            loss.set_keys(**{field.name: new})
        for key, value in self.losses(self.run(loss, batch)).items():
            torch.testing.assert_close(value, reference[key], rtol=0, atol=0)

    def test_keyword_call_equals_tensordict_call(self):
        loss, batch = self.make_loss(), self.make_batch().exclude(*self.optional_keys)
        reference = self.run(loss, batch)
        arguments = {"_".join((key,) if isinstance(key, str) else key): batch[key] for key in loss.in_keys}
        torch.manual_seed(0)
        out = loss(**arguments)
        out = out if isinstance(out, tuple) else (out,)
        for key, value in zip(loss.out_keys, out):
            torch.testing.assert_close(value, reference[key], rtol=0, atol=0, equal_nan=True)

    # Gradients

    @pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
    def test_gradient_reaches_only_its_own_network(self, reduction):
        loss = self.make_loss(reduction=reduction)
        # Zero-initialised layers block gradients at the start: move off that point.
        for parameter in loss.parameters():
            parameter.data.add_(0.01 * torch.randn_like(parameter))
        for key, prefixes in self.gradients.items():
            loss.zero_grad(set_to_none=True)
            self.run(loss, self.make_batch())[key].sum().backward()
            reached = {
                name
                for name, parameter in loss.named_parameters()
                if parameter.grad is not None and parameter.grad.abs().sum() > 0
            }
            assert reached, f"{key} gives no gradient"
            stray = [name for name in reached if not name.startswith(prefixes)]
            assert not stray, f"{key} reaches {stray}"
            for prefix in prefixes:
                missed = {n for n, _ in loss.named_parameters() if n.startswith(prefix)} - reached
                assert not missed, f"{key} does not reach {missed}"

    def test_target_parameters_never_require_gradients(self):
        loss = self.make_loss()
        names = [name for name, _ in loss.named_buffers() if name.startswith("target_")]
        assert names, "no target parameters"
        assert not any(buffer.requires_grad for _, buffer in loss.named_buffers())

    # Reductions, weights, state

    def test_reductions_agree(self):
        values = {}
        for reduction in ("mean", "sum", "none"):
            torch.manual_seed(3)
            values[reduction] = self.losses(self.run(self.make_loss(reduction=reduction), self.make_batch()))
        for key in self.gradients:
            rows = values["none"][key]
            assert rows.shape[: self.make_batch().ndim] == self.make_batch().shape
            torch.testing.assert_close(values["mean"][key], rows.mean())
            torch.testing.assert_close(values["sum"][key], rows.sum())

    def test_importance_weights_give_the_weighted_mean(self):
        keys = tuple(self.gradients) if self.weighted is None else self.weighted
        weight = torch.rand(self.make_batch().shape, generator=torch.Generator().manual_seed(4)) + 0.1
        values = {}
        for reduction, batch in (("none", self.make_batch()), ("mean", self.make_batch())):
            if reduction == "mean":
                batch["priority_weight"] = weight
            torch.manual_seed(3)
            values[reduction] = self.losses(self.run(self.make_loss(reduction=reduction), batch))
        for key in keys:
            torch.testing.assert_close(values["mean"][key], (values["none"][key] * weight).sum() / weight.sum())

    def test_a_row_without_a_batch_dimension_equals_a_batch_of_one(self):
        loss, batch = self.make_loss(), self.make_batch()
        alone, one = self.losses(self.run(loss, batch[0])), self.losses(self.run(loss, batch[:1]))
        for key, value in one.items():
            torch.testing.assert_close(alone[key], value)

    def test_unknown_reduction_is_refused(self):
        with pytest.raises((ValueError, NotImplementedError), match=r"reduction|average"):
            self.make_loss(reduction="average")

    def test_reset_parameters(self):
        loss = self.make_loss()
        for parameter in loss.parameters():
            parameter.data.fill_(7.0)
        loss.reset_parameters_recursive()
        assert not any(bool((parameter == 7.0).all()) for parameter in loss.parameters())

    def test_state_dict_round_trip(self):
        source, copied = self.make_loss(), self.make_loss()
        for parameter in source.parameters():
            parameter.data.add_(torch.randn_like(parameter))
        copied.load_state_dict(copy.deepcopy(source.state_dict()))
        batch = self.make_batch()
        for key, value in self.losses(self.run(source, batch)).items():
            torch.testing.assert_close(self.run(copied, batch)[key], value, rtol=0, atol=0)

    def test_batch_of_two_dimensions_equals_flat_one(self):
        loss, batch = self.make_loss(), self.make_batch()
        assert batch.ndim == 1
        flat = self.losses(self.run(loss, batch))
        for key, value in self.losses(self.run(loss, batch.reshape(2, -1))).items():
            torch.testing.assert_close(value, flat[key])

    # Compilation

    @pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
    def test_compiled_equals_eager_over_three_updates(self, backend):
        torch._dynamo.reset()
        runs = {}
        for compiled in (False, True):
            torch.manual_seed(1)
            loss = self.make_loss()
            updater = SoftUpdate(loss, tau=0.1)
            optimizer = torch.optim.SGD(loss.parameters(), 1e-2)

            keys = list(self.gradients)

            def total(data, loss=loss, keys=keys):
                out = loss(data)
                return torch.stack([out[key] for key in keys]).sum()

            step = torch.compile(total, backend=backend, fullgraph=True) if compiled else total
            values = []
            with torch._inductor.config.patch(fallback_random=True):
                for seed in range(3):
                    torch.manual_seed(seed)
                    value = step(self.make_batch())
                    value.backward()
                    optimizer.step()
                    optimizer.zero_grad()
                    updater.step()
                    values.append(value.detach())
            runs[compiled] = torch.stack(values), [p.detach().clone() for p in loss.parameters()]
        torch.testing.assert_close(runs[True][0], runs[False][0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(runs[True][1], runs[False][1], rtol=1e-4, atol=1e-5)
