"""Adapters: the same numbers as PEFT's from the same files, and everything that wrapping must not change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from trueline.models.adapter_files import save_adapter
from trueline.models.adapters import (
    Adaptable,
    active_adapters,
    adapters_of,
    attach,
    merge,
    outputs,
    set_adapter,
    unmerge,
    without_adapters,
    wrappers,
)
from trueline.models.decoder import Decoder, ScalarModel
from trueline.models.files import load_model, load_scalar_model, save_model
from trueline.models.lora import LoRAConfig, LoRALinear

Tiny = Callable[..., Decoder]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA"))]
IDS = torch.randint(61, (24,), generator=torch.Generator().manual_seed(5))


def shake(model: nn.Module, seed: int = 0) -> None:
    """Differences that are far from 0, and a head that is not its base's."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if ".lora_" in name or ".copies." in name:
            parameter.data = torch.randn(parameter.shape, generator=generator).to(parameter) * 0.3


@torch.no_grad()
def logits(model: Decoder) -> Tensor:
    return model.eval().logits(IDS)


def scalar_of(decoder: Decoder, folder: Path) -> ScalarModel:
    save_model(decoder, folder)
    return load_scalar_model(folder, pad_token_id=0)


# ---- PEFT

CONFIGS: dict[str, dict[str, Any]] = {
    "all": {"target_modules": "all-linear", "r": 4, "lora_alpha": 8},
    "names": {"target_modules": ["q_proj", "v_proj"], "r": 2, "lora_alpha": 3, "lora_dropout": 0.5},
    "regex": {"target_modules": r".*\.1\..*(up|down)_proj", "r": 4, "lora_alpha": 8, "use_rslora": True},
    "patterns": {"target_modules": "all-linear", "r": 4, "lora_alpha": 8, "use_rslora": True,
                 "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.up_proj": 3}, "alpha_pattern": {"self_attn.*": 5}},
}  # fmt: skip


def peft_model(base: Path, head: str) -> Any:
    transformers = pytest.importorskip("transformers")
    kind = {"tokens": "AutoModelForCausalLM", "scalar": "AutoModelForSequenceClassification"}[head]
    more = {"num_labels": 1} if head == "scalar" else {}
    return getattr(transformers, kind).from_pretrained(base, **more).eval()


@torch.no_grad()
def peft_outputs(model: Any, head: str) -> Tensor:
    if head == "tokens":
        return model(IDS[None]).logits[0]
    return torch.cat([model(IDS[None, : n + 1]).logits[0] for n in range(len(IDS))])


def ours_outputs(model: Adaptable) -> Tensor:
    return outputs(model.eval(), IDS)


@pytest.mark.parametrize(("name", "head"), [*((name, "tokens") for name in CONFIGS), ("all", "scalar"), ("names", "scalar")])
def test_peft_reads_ours_and_we_read_peft_s(name: str, head: str, tiny: Tiny, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    base, theirs, ours = tmp_path / "base", tmp_path / "theirs", tmp_path / "ours"
    decoder = tiny(num_attention_heads=4, pad_token_id=0)
    save_model(decoder if head == "tokens" else scalar_of(decoder, tmp_path / "lm"), base)
    task = {"tokens": "CAUSAL_LM", "scalar": "SEQ_CLS"}[head]
    given = peft.get_peft_model(peft_model(base, head), peft.LoraConfig(task_type=task, **CONFIGS[name])).eval()
    for key, parameter in given.named_parameters():
        if "lora_" in key or "score.modules_to_save" in key:
            nn.init.normal_(parameter, std=0.15)
    expected = peft_outputs(given, head)
    given.save_pretrained(theirs)
    loaded = load_model(theirs) if head == "tokens" else load_scalar_model(theirs)
    plain = load_model(base) if head == "tokens" else load_scalar_model(base)
    assert float((ours_outputs(plain) - expected).abs().max()) > 0.1
    assert float((ours_outputs(loaded) - expected).abs().max()) <= 1e-5

    save_adapter(loaded, ours)
    assert load_file(ours / "adapter_model.safetensors").keys() == load_file(theirs / "adapter_model.safetensors").keys()
    again = peft.PeftModel.from_pretrained(peft_model(base, head), ours).eval()
    assert float((peft_outputs(again, head) - expected).abs().max()) <= 1e-5
    merged = merge(loaded, IDS)
    assert float((outputs(loaded, IDS) - peft_outputs(again.merge_and_unload(), head)).abs().max()) <= 1e-5
    assert merged.logits <= 1e-5


# ---- what a layer computes


@pytest.mark.parametrize("drop", [False, True])
def test_gradients_are_exact(drop: bool) -> None:
    from trueline.models.lora import _Adapted

    torch.manual_seed(0)
    shapes = ((5, 7), (3, 7), (3,), (2, 7), (3, 2))
    x, weight, bias, a, b = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
    dropped = torch.randn(5, 7, dtype=torch.float64, requires_grad=True) if drop else None
    assert torch.autograd.gradcheck(lambda *given: _Adapted.apply(*given, 0.7), (x, dropped, weight, bias, a, b))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mode", ["float32", "bfloat16", "autocast"])
def test_as_the_formula_in_every_precision(mode: str, device: str) -> None:
    torch.manual_seed(1)
    base = nn.Linear(16, 12, device=device, dtype=torch.bfloat16 if mode == "bfloat16" else torch.float32)
    layer = LoRALinear(base.requires_grad_(False))
    layer.add("default", LoRAConfig(r=3), 3, 2.0, torch.Generator().manual_seed(0))
    layer.active = ("default",)
    a, b = layer.lora_A["default"], layer.lora_B["default"]
    assert a.dtype == b.dtype == torch.float32 and not b.any()
    b.data.normal_()
    x = torch.randn(2, 9, 16, device=device, dtype=base.weight.dtype, requires_grad=True)
    with torch.autocast(device, torch.bfloat16, enabled=mode == "autocast"):
        out = layer(x)
    out.float().square().sum().backward()
    whole = base.weight.double() + 2 * b.double() @ a.double()
    expected = x.detach().double() @ whole.T + base.bias.double()
    slope = 2 * expected
    wanted = {
        "out": expected,
        "x": slope @ whole,
        "a": 2 * torch.einsum("...o,or,...i->ri", slope, b.double(), x.detach().double()),
        "b": 2 * torch.einsum("...o,...i,ri->or", slope, x.detach().double(), a.double()),
    }
    for name, found in {"out": out, "x": x.grad, "a": a.grad, "b": b.grad}.items():
        error = (found.detach().double() - wanted[name].detach()).abs().max() / wanted[name].abs().max()
        assert float(error.detach()) < (1e-6 if mode == "float32" else 2e-2), name
    assert base.weight.grad is None and out.dtype == (torch.float32 if mode == "float32" else torch.bfloat16)


def test_dropout_only_while_training(tiny: Tiny) -> None:
    model = tiny()
    attach(model, LoRAConfig(lora_dropout=0.5))
    shake(model)
    assert torch.equal(logits(model), logits(model))
    model.train()
    torch.manual_seed(0)
    first, second = model.logits(IDS), model.logits(IDS)
    torch.manual_seed(0)
    assert not torch.equal(first, second) and torch.equal(first, model.logits(IDS))


# ---- adapters on a model


def test_a_new_adapter_is_no_difference_and_all_that_is_trained(tiny: Tiny) -> None:
    model = tiny()
    before = logits(model)
    names = attach(model, LoRAConfig(r=4))
    assert len(names) == 14 and "model.layers.1.mlp.down_proj" in names
    assert float((logits(model) - before).abs().max()) <= 1e-5
    model.train().logits(IDS).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (".lora_" in name), name
        assert (parameter.grad is not None) == (".lora_" in name), name
    bound = 32**-0.5
    a = model.get_parameter("layers.0.self_attn.q_proj.lora_A.default")
    assert float(a.abs().max()) <= bound and abs(float(a.std()) - bound / 3**0.5) < 0.02


def test_the_base_is_the_very_same_modules(tiny: Tiny) -> None:
    model, plain = tiny(), tiny()
    modules = {name: model.get_submodule(name) for name in ("layers.0.self_attn.q_proj", "layers.1.mlp.up_proj")}
    attach(model, LoRAConfig(r=4))
    shake(model)
    adapted = logits(model)
    with pytest.raises(KeyError), without_adapters(model):
        assert all(model.get_submodule(name) is module for name, module in modules.items())
        assert torch.equal(logits(model), logits(plain))  # to the last bit
        assert {p.data_ptr() for p in model.parameters()} == {m.data_ptr() for m in plain_pointers(model)}
        raise KeyError
    assert torch.equal(logits(model), adapted) and len(wrappers(model)) == 14


def plain_pointers(model: nn.Module) -> list[Tensor]:
    return list(model.state_dict().values())


def test_merge_and_unmerge(tiny: Tiny) -> None:
    model, plain = tiny(), tiny()
    attach(model, LoRAConfig(r=4))
    shake(model)
    adapted = logits(model)
    merged = merge(model, IDS)
    assert not wrappers(model) and merged.logits == float((logits(model) - adapted).abs().max()) <= 1e-4 * merged.scale
    assert 0 < merged.rounding < 1e-6 < 0.1 < merged.weights
    assert unmerge(model, merged, IDS) == 0.0
    assert torch.equal(logits(model), adapted)
    with without_adapters(model):
        assert torch.equal(logits(model), logits(plain))


def test_merging_into_bfloat16_says_what_is_lost(tiny: Tiny) -> None:
    model = tiny().to(torch.bfloat16)
    attach(model, LoRAConfig(r=4))
    shake(model)
    assert model.get_parameter("layers.0.mlp.up_proj.lora_A.default").dtype == torch.float32
    merged = merge(model, IDS)
    assert merged.rounding > 1e-4 and merged.logits > 1e-3


class OnlyOnTheCPU(TorchFunctionMode):
    """A device without float64 (mps), as far as one can tell without it: doubles are made of what was moved to the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.moved: list[Tensor] = []
        self.doubles = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        words = [str(word) for word in args[1:]]
        if func is Tensor.cpu or (func is Tensor.to and "cpu" in words):
            self.moved.append(out)
        elif func is Tensor.double or (func is Tensor.to and "torch.float64" in words):
            self.doubles += 1
            assert any(args[0] is tensor for tensor in self.moved), "float64 where the layer is"
        return out


def test_a_merge_makes_no_doubles_on_the_device(tiny: Tiny) -> None:
    model = tiny()
    attach(model, LoRAConfig(r=4))
    shake(model)
    with OnlyOnTheCPU() as seen:
        merged = merge(model, IDS)
    assert merged.weights > 0.1 and seen.doubles >= 4 * 14


def test_several_adapters_on_one_base(tiny: Tiny) -> None:
    model, plain = tiny(), tiny()
    attach(model, LoRAConfig(r=4), "first", seed=1)
    attach(model, LoRAConfig(r=2, target_modules=("q_proj",)), "second", seed=2)
    shake(model)
    assert adapters_of(model).keys() == {"first", "second"} and active_adapters(model) == ("second",)
    found = {}
    for names in ((), ("first",), ("second",), ("first", "second")):
        set_adapter(model, *names)
        found[names] = logits(model)
        kept = merge(model, IDS)
        assert kept.logits <= 1e-4 * kept.scale
        unmerge(model, kept, IDS)
        assert torch.equal(logits(model), found[names])
        trained = {name.rsplit(".", 1)[1] for name, p in model.named_parameters() if p.requires_grad}
        assert trained == set(names)
    assert float((found[()] - logits(plain)).abs().max()) <= 1e-5
    assert all(float((found[one] - found[other]).abs().max()) > 0.01 for one in found for other in found if one != other)
    with pytest.raises(ValueError, match="no adapter third: it has first, second"):
        set_adapter(model, "third")


def test_the_output_head_can_have_one(tiny: Tiny, tmp_path: Path) -> None:
    model = tiny(tie_word_embeddings=False)
    before = logits(model)
    assert attach(model, LoRAConfig(target_modules=("lm_head",), r=2)) == ("lm_head",)
    shake(model)
    model.train().logits(IDS).sum().backward()
    assert model.get_parameter("lm_head.lora_A.default").grad is not None
    changed = logits(model)
    assert float((changed - before).abs().max()) > 0.1
    assert merge(model, IDS).logits <= 1e-5


def test_a_reward_model_keeps_its_score_with_the_adapter(tiny: Tiny, tmp_path: Path) -> None:
    model = scalar_of(tiny(pad_token_id=0), tmp_path / "lm")
    before = outputs(model, IDS)
    attach(model, LoRAConfig(r=2, modules_to_save=("score",)))
    assert float((outputs(model, IDS) - before).abs().max()) <= 1e-5
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert "score.copies.default.weight" in trained and len(trained) == 2 * 14 + 1
    shake(model)
    expected = outputs(model, IDS)
    save_adapter(model, tmp_path / "adapter", base=str(tmp_path / "lm"))
    assert "base_model.model.score.weight" in load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    again = load_scalar_model(tmp_path / "adapter")
    assert torch.equal(outputs(again, IDS), expected)
    with without_adapters(model):
        assert torch.equal(outputs(model, IDS), before)
    with pytest.raises(ValueError, match="load_scalar_model"):
        load_model(tmp_path / "adapter")


def test_mistakes_in_python_are_answered_in_one_sentence(tiny: Tiny) -> None:
    model = tiny()
    with pytest.raises(ValueError, match="names q_prj, and the model has no such linear layer: use all-linear, or some of"):
        attach(model, LoRAConfig(target_modules=("q_prj", "v_proj")))
    with pytest.raises(ValueError, match="names embed_tokens, and the model has no such linear layer"):
        attach(model, LoRAConfig(target_modules=("embed_tokens",)))
    with pytest.raises(ValueError, match="a language model has no score"):
        attach(model, LoRAConfig(modules_to_save=("score",)))
    with pytest.raises(ValueError, match=r"cannot be called 'a\.b'"):
        attach(model, LoRAConfig(), "a.b")
    assert not wrappers(model)
    attach(model, LoRAConfig())
    with pytest.raises(ValueError, match="has an adapter 'default' already"):
        attach(model, LoRAConfig())
    with pytest.raises(ValueError, match="lora_dropout is 1"):
        LoRAConfig(lora_dropout=1)
