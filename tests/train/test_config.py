"""Options, the schedule and the optimizer's groups and state."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import math
from collections.abc import Callable

import pytest
import torch

from trueline.models.attention import Layout
from trueline.models.decoder import Decoder, labels_of
from trueline.objectives import discover
from trueline.records import Row
from trueline.train import config as module
from trueline.train.config import EvalConfig, OptimConfig, SaveConfig, TrainConfig, flatten, identity, override, settle
from trueline.train.optim import adamw, learning_rate, load_optimizer_tensors, optimizer_tensors, warmup_of


def test_options_are_few_documented_and_unique() -> None:
    configs = (TrainConfig, OptimConfig, SaveConfig, EvalConfig)
    names = [item.name for cls in configs for item in dataclasses.fields(cls)]
    assert len(names) == len(set(names))
    tree = ast.parse(inspect.getsource(module))
    for cls in configs:
        assert len(dataclasses.fields(cls)) <= 15
        (node,) = (item for item in tree.body if isinstance(item, ast.ClassDef) and item.name == cls.__name__)
        for item, after in zip(node.body, node.body[1:], strict=False):
            if isinstance(item, ast.AnnAssign):
                assert isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant), (
                    f"{ast.unparse(item)} has no docstring"
                )


def test_override_reaches_nested_fields_and_names_the_nearest() -> None:
    config = override(TrainConfig(), learning_rate=3e-4, save_steps=7, max_steps=5, eval_share=0.1)
    assert (config.optim.learning_rate, config.save.save_steps, config.max_steps, config.evals.eval_share) == (
        3e-4,
        7,
        5,
        0.1,
    )
    assert config.optim.weight_decay == TrainConfig().optim.weight_decay
    with pytest.raises(ValueError, match="did you mean 'learning_rate'"):
        override(TrainConfig(), learning_rat=1)


def test_defaults_of_every_method_are_options() -> None:
    methods = discover()
    assert {"pretrain", "sft", "reward", "dpo"} <= set(methods)
    for method in methods.values():
        settle(method(), None, None, {})
        assert 1 <= len(dataclasses.fields(method)) + 1 <= 7 and method.citation and labels_of(method().head) >= 0


@pytest.mark.parametrize(
    "wrong", [{"logging_steps": 0}, {"lr_scheduler_type": "cosin"}, {"warmup_ratio": 2.0}, {"num_train_epochs": 0.0}]
)
def test_nonsense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        override(TrainConfig(), **wrong)


def test_identity_leaves_placement_out() -> None:
    a = override(
        TrainConfig(), per_device_train_batch_size=8, gradient_accumulation_steps=1, max_steps=10, save_steps=3
    )
    b = override(
        TrainConfig(), per_device_train_batch_size=2, gradient_accumulation_steps=4, max_steps=20, device="cuda"
    )
    assert identity(a) == identity(b)
    assert identity(a) != identity(override(a, per_device_train_batch_size=4))
    assert identity(a) != identity(override(a, learning_rate=1.0))
    assert "save" not in flatten(a) and flatten(a)["save_steps"] == 3


def test_steps_of_epochs() -> None:
    assert override(TrainConfig(), num_train_epochs=1.5, per_device_train_batch_size=4).total_steps(10) == 4  # 15 rows
    assert override(TrainConfig(), max_steps=7).total_steps(10) == 7


def test_the_best_metric_knows_its_direction() -> None:
    assert not EvalConfig().maximize
    assert EvalConfig(metric_for_best_model="eval_rewards/accuracies").maximize
    assert EvalConfig(greater_is_better=True).maximize


def test_schedules_by_hand() -> None:
    def rates(**options: object) -> list[float]:
        config = OptimConfig(learning_rate=1.0, **options)  # type: ignore[arg-type]
        return [learning_rate(config, step, warmup_of(config, 10), 10) for step in range(10)]

    linear = rates(lr_scheduler_type="linear", warmup_steps=2)
    assert linear == pytest.approx([1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])
    cosine = rates(min_lr_ratio=0.1)
    assert (
        cosine[0] == 1
        and cosine[5] == pytest.approx(0.55)
        and cosine[9] == pytest.approx(0.1 + 0.45 * (1 + math.cos(0.9 * math.pi)))
    )
    assert rates(lr_scheduler_type="constant", warmup_ratio=0.15) == pytest.approx([1 / 3, 2 / 3] + [1] * 8)


def test_decay_on_matrices_only_and_state_by_name(
    decoder: Callable[..., Decoder], text_rows: Callable[..., list[Row]]
) -> None:
    model = decoder()
    optimizer = adamw(model, OptimConfig(weight_decay=0.5))
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert (id(parameter) in decayed) == ("norm" not in name), name

    def step(model: Decoder, optimizer: torch.optim.Optimizer, seed: int) -> None:
        optimizer.zero_grad()
        model(Layout.packed([row.ids[0] for row in text_rows(2, seed)])).square().sum().backward()
        optimizer.step()

    step(model, optimizer, 1)
    twin = decoder()
    twin.load_state_dict(model.state_dict())
    other = adamw(twin, OptimConfig(weight_decay=0.5))
    load_optimizer_tensors(
        twin, other, {name: value.clone() for name, value in optimizer_tensors(model, optimizer).items()}
    )
    step(model, optimizer, 2)
    step(twin, other, 2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
