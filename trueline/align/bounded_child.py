"""The child of `trueline.align.bounded`: reads questions, one line of JSON each, and answers them. It imports nothing of Trueline."""

import json
import re
import sys
from typing import Any


def answer(kind: str, rule: Any, text: str) -> dict[str, Any]:
    """{"fits": bool}, or {"wrong": why the rule is none}."""
    if kind == "regex":
        try:
            return {"fits": re.search(rule, text) is not None}
        except (re.error, TypeError) as error:
            return {"wrong": f"{str(rule)[:80]!r} is no regular expression: {error}"}
    from jsonschema import SchemaError
    from jsonschema.validators import validator_for
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    fence = re.fullmatch(r"\s*```(?:json)?\s*\n(.*?)\n?```\s*", text, re.DOTALL)
    try:
        value = json.loads(fence.group(1) if fence else text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return {"fits": False}
    try:
        kind_of_schema = validator_for(rule)
        kind_of_schema.check_schema(rule)
        return {"fits": kind_of_schema(rule, registry=Registry()).is_valid(value)}  # an empty registry fetches nothing
    except SchemaError as error:
        return {"wrong": f"this is no JSON schema: {error.message[:200]}"}
    except Unresolvable as error:
        return {"wrong": f"the schema refers to what it does not hold, {error.ref[:100]!r}: put it under $defs"}
    except RecursionError:
        return {"fits": False}


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def main() -> None:
    """Answer until there is nothing more to read."""
    if sys.argv[1:] == ["json_schema"]:
        import jsonschema  # noqa: F401  # what takes long, before the clock runs
    print("ready", flush=True)
    for line in sys.stdin.buffer:
        print(json.dumps(answer(**json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
