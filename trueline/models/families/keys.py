"""config.json -> fields of DecoderConfig, and back: what all families share, by the tables that each of them gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trueline.models.families.family import Family, Raw

if TYPE_CHECKING:
    from trueline.models.config import DecoderConfig

SIZES = "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"
BASE_KEYS = {
    **{name: name for name in SIZES},
    "num_key_value_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "hidden_act": "hidden_act",
    "max_position_embeddings": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
    "tie_word_embeddings": "tie_word_embeddings",
    "initializer_range": "initializer_range",
}
MAY_BE_ZERO = "norm_eps", "initializer_range", "mscale", "mscale_all_dim"
"""Numbers that need not be above 0; no number may be below."""
LEAST, MOST = 1e-30, 1e30
"""What float32 holds with room for a product or two."""
ACTIVATIONS = "silu", "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "relu"
KINDS = "full_attention", "sliding_attention"
NUMBERS = (
    "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings", "attention_factor", "beta_fast",
    "beta_slow", "mscale", "mscale_all_dim",
)  # fmt: skip
ROPE_NEEDS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "longrope": ("short_factor", "original_max_position_embeddings"),
}


def read_config(family: Family, raw: Raw, where: str, types: Mapping[str, str]) -> dict[str, Any]:
    """Field values for DecoderConfig, whose annotations are `types`. Errors name the key and the file."""
    for key, only in {"quantization_config": None, **family.only}.items():
        if raw.get(key) not in (None, only):
            raise ValueError(f"{where}: {key} = {raw[key]!r} cannot be computed; only {only!r} can.")
    keys = {name: key for name, key in {**BASE_KEYS, **family.keys}.items() if key}
    nullable = {name for name, kind in types.items() if "None" in kind}  # there null is a value: no cap, no window
    given = {name: raw[key] for name, key in keys.items() if key in raw and (raw[key] is not None or name in nullable)}
    missing = [keys[name] for name in SIZES if name not in {**family.defaults, **given}]
    if missing:
        raise ValueError(f"{where}: {', '.join(missing)} missing; is it the config.json of a language model?")
    for name, value in given.items():
        if value is not None:
            _check(keys[name], value, types[name], where, zero=name in MAY_BE_ZERO)
    fields = {**family.defaults, **given, **_rope(family, raw, where)}
    heads = fields["num_attention_heads"]
    fields.setdefault("num_key_value_heads", heads)
    fields.setdefault("head_dim", fields["hidden_size"] // heads)
    try:
        fields |= family.read(raw)
    except (
        TypeError,
        ValueError,
        AttributeError,
        ZeroDivisionError,
    ) as error:  # a value of another type than it must be
        raise ValueError(f"{where}: a key of {family.model_type} cannot be read: {error}.") from error
    fields |= {"model_type": family.model_type, **family.fixed, **_ids(raw, where)}
    return _checked(fields, where)


def write_config(family: Family, config: DecoderConfig, head: str, dtype: str) -> dict[str, Any]:
    """The config.json of a language model ("tokens") or a one-label classifier ("scalar")."""
    eos = config.eos_token_id
    raw: dict[str, Any] = {"architectures": [family.architecture(head)], "model_type": family.model_type}
    raw |= {key: getattr(config, name) for name, key in {**BASE_KEYS, **family.keys}.items() if key}
    raw |= {"attention_dropout": 0.0, "use_cache": True}
    if not config.learned_positions:
        raw |= _write_rope(family, config)
    raw |= {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(eos) if isinstance(eos, tuple) else eos,
        "pad_token_id": config.pad_token_id,
        "dtype": dtype,
        "torch_dtype": dtype,
    }
    raw |= family.write(config)
    if head == "scalar":
        raw |= {"num_labels": 1, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    return raw


def _check(key: str, value: object, kind: str, where: str, *, zero: bool = False) -> None:
    """The value against the field's annotation. Whole numbers are sizes and at least 1; others are divided by, or scale: they
    are above 0, or at least 0 where `zero` says so."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    fits = {
        "bool": isinstance(value, bool),
        "str": isinstance(value, str),
        "int": number and isinstance(value, int) and value >= 1,
        "float": number and (LEAST <= value <= MOST or (zero and value == 0)),  # type: ignore[operator]
    }
    positive = f"a number {'of at least' if zero else 'above'} 0, at most {MOST:g}"
    wants = {"bool": "true or false", "str": "a text", "int": "a whole number of at least 1", "float": positive}
    kind = kind.partition(" ")[0]
    if not fits[kind]:
        raise ValueError(f"{where}: {key} = {value!r} should be {wants[kind]}.")


def _checked(fields: dict[str, Any], where: str) -> dict[str, Any]:
    """What only the fields together can get wrong; one kind of layer is written as no kinds."""
    heads, kv_heads, layers = (fields[n] for n in ("num_attention_heads", "num_key_value_heads", "num_hidden_layers"))
    if heads % kv_heads:
        raise ValueError(
            f"{where}: num_attention_heads = {heads} is not a multiple of num_key_value_heads = {kv_heads}."
        )
    if fields["head_dim"] < 1:
        raise ValueError(f"{where}: hidden_size = {fields['hidden_size']} is too small for {heads} heads.")
    if fields.get("hidden_act", "silu") not in ACTIVATIONS:
        raise ValueError(
            f"{where}: hidden_act = {fields['hidden_act']!r} cannot be computed; these can: {', '.join(ACTIVATIONS)}."
        )
    rotated = int(fields["head_dim"] * fields.get("partial_rotary_factor", 1.0))
    short = fields.get("rope_scaling", {}).get("short_factor")
    numbers = (
        isinstance(short, list) and len(short) * 2 == rotated and all(type(x) in (int, float) and x > 0 for x in short)
    )
    if rotated % 2 or rotated < 2 or rotated > fields["head_dim"]:
        said = f"head_dim = {fields['head_dim']}, partial_rotary_factor = {fields.get('partial_rotary_factor', 1.0):g}"
        raise ValueError(f"{where}: {said}: {rotated} numbers of a head cannot be rotated in pairs.")
    if short is not None and not numbers:
        raise ValueError(f"{where}: short_factor should be {rotated // 2} numbers above 0.")
    types, window = tuple(fields.pop("layer_types", ())), fields.get("sliding_window")
    strange = [kind for kind in types if kind not in ("sliding_attention", "full_attention")]
    if strange or (types and len(types) != layers):
        said = f"{strange[0]!r} cannot be computed" if strange else f"has {len(types)} entries for {layers} layers"
        raise ValueError(f"{where}: layer_types: {said}; it takes sliding_attention or full_attention per layer.")
    if window is None or (types and "sliding_attention" not in types):
        return {**fields, "sliding_window": None}
    _check("sliding_window", window, "int", where)
    return {**fields, "layer_types": types} if "full_attention" in types else fields


def _ids(raw: Raw, where: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = raw.get(key)
        found[key] = tuple(value) if isinstance(value, list) else value
        for one in found[key] if isinstance(value, list) else (value,):
            if one is not None and (isinstance(one, bool) or not isinstance(one, int)):
                raise ValueError(f"{where}: {key} = {value!r} should be the number of a token.")
    return found


def _rope(family: Family, raw: Raw, where: str) -> dict[str, Any]:
    """Both key styles: `rope_theta` with `rope_scaling`, and `rope_parameters`, which may differ by kind of layer."""
    given = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(given, Mapping) or not all(isinstance(v, Mapping) for k, v in given.items() if k in KINDS):
        raise ValueError(f"{where}: rope_parameters should be an object.")
    sliding = given.get("sliding_attention") or {}
    given = dict(given.get("full_attention", {}) if any(kind in given for kind in KINDS) else given)
    kind = given.pop("rope_type", None) or given.pop("type", None) or "default"
    kind = {"su": "longrope"}.get(kind, kind)
    given.pop("type", None)
    found: dict[str, Any] = {}
    for name, key in (("rope_theta", family.rope_keys[0]), ("partial_rotary_factor", family.rope_keys[1])):
        places = given.pop(name, None), raw.get(key), family.defaults.get(name)
        value = next((value for value in places if value is not None), None)
        if value is not None:
            _check(key, value, "float", where)
            found[name] = float(value)
    if not family.partial_rotary and found.pop("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError(f"{where}: partial_rotary_factor below 1 cannot be computed for {family.model_type}.")
    if sliding.get("rope_type", "default") != "default":
        raise ValueError(f"{where}: RoPE scaling {sliding['rope_type']!r} of sliding_attention cannot be computed.")
    if sliding.get("rope_theta") is not None:
        _check("rope_theta of sliding_attention", sliding["rope_theta"], "float", where)
        found["sliding_rope_theta"] = float(sliding["rope_theta"])
    if kind not in ROPE_NEEDS:
        raise ValueError(f"{where}: RoPE scaling {kind!r} cannot be computed; these can: {', '.join(ROPE_NEEDS)}.")
    if kind in ("yarn", "longrope") and not given.get("original_max_position_embeddings"):
        given["original_max_position_embeddings"] = (
            raw.get("original_max_position_embeddings") or raw.get("max_position_embeddings") or 2048
        )
    missing = [k for k in ROPE_NEEDS[kind] if given.get(k) is None]
    if missing:
        raise ValueError(f"{where}: RoPE scaling {kind!r} needs {', '.join(missing)}.")
    for key, value in given.items():
        if key in NUMBERS and value is not None:
            _check(key, value, "float", where, zero=key in MAY_BE_ZERO)
    if kind == "llama3" and given["high_freq_factor"] <= given["low_freq_factor"]:
        said = f"low_freq_factor = {given['low_freq_factor']!r}, high_freq_factor = {given['high_freq_factor']!r}"
        raise ValueError(f"{where}: {said}: the second should be above the first.")
    if kind == "longrope" and given["original_max_position_embeddings"] <= 1:
        said = f"original_max_position_embeddings = {given['original_max_position_embeddings']!r}"
        raise ValueError(f"{where}: {said} should be above 1 for longrope, which takes its logarithm.")
    if kind == "yarn" and found.get("rope_theta", 10000.0) <= 1:
        raise ValueError(f"{where}: rope_theta = {found['rope_theta']!r} should be above 1 for yarn, which takes its logarithm.")
    if kind != "default":
        found["rope_scaling"] = {"rope_type": kind, **given}
    return found


def _write_rope(family: Family, config: DecoderConfig) -> dict[str, Any]:
    """Both key styles: readers before and after transformers 5."""
    theta_key, share_key = family.rope_keys
    whole: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta, **config.rope_scaling}
    raw: dict[str, Any] = {theta_key: config.rope_theta, "rope_scaling": dict(config.rope_scaling) or None}
    if family.partial_rotary:
        raw[share_key] = whole["partial_rotary_factor"] = config.partial_rotary_factor
    if config.sliding_rope_theta is None:
        return {**raw, "rope_parameters": whole}
    local = {"rope_type": "default", "rope_theta": config.sliding_rope_theta}
    return {**raw, "rope_parameters": {"full_attention": whole, "sliding_attention": local}}
