"""What users import and call stays: ``public.json`` holds every public name with the names of its parameters.

A name or a parameter may be added (``python tests/test_public.py`` writes the file again); none may go.
"""

import importlib
import inspect
import json
import typing
from pathlib import Path

import pytest

RECORD = Path(__file__).with_name("public.json")
ROOMS = ("", ".adapters", ".conformance", ".models", ".nn", ".optim", ".rank", ".spec")
# Of a model and a configuration; their other methods are not for users.
MODELS = {"forward", "backward", "replace", "from_dict", "modules"}


def parameters(f: typing.Any) -> str:
    """The parameters that a caller may name, in order; those of ``**options`` as its type lists them."""
    names = []
    for one in inspect.signature(f).parameters.values():
        if one.kind is not one.VAR_KEYWORD:
            names.append(one.name)
        elif typing.is_typeddict(options := next(iter(typing.get_args(one.annotation)), None)):  # Unpack[options]
            names += options.__annotations__
        else:
            names.append("**")
    return " ".join(names)


def public(room: str) -> dict[str, str | None]:
    """By public name of ``room``, and by "Class.method", the parameters; None for what is not called."""
    module = importlib.import_module(f"randlora_ref{room}")
    own = [name for name, x in vars(module).items() if getattr(x, "__module__", "").startswith(module.__name__)]
    found: dict[str, str | None] = {}
    for name in getattr(module, "__all__", [name for name in own if not name.startswith("_")]):
        x = getattr(module, name)
        found[name] = parameters(x) if inspect.isfunction(x) or inspect.isclass(x) else None
        for key in dir(x) if inspect.isclass(x) else ():
            method = getattr(x, key)
            hidden = room == ".models" and key not in MODELS
            if not (hidden or key.startswith("_")) and (inspect.isfunction(method) or inspect.ismethod(method)):
                found[f"{name}.{key}"] = parameters(method)
    return found


def kept(room: str) -> dict[str, str | None]:
    """What the record has of ``room``."""
    return dict(json.loads(RECORD.read_text(encoding="utf-8"))[room])


@pytest.mark.parametrize("room", ROOMS)
def test_no_public_name_and_no_parameter_goes(room: str) -> None:
    """Each recorded name is there, and takes each recorded parameter in the same order."""
    found = public(room)
    assert kept(room).keys() <= found.keys()
    for name, recorded in kept(room).items():
        now = found[name]
        if recorded is not None and now is not None and "**" not in now:
            assert [one for one in now.split() if one in recorded.split()] == recorded.split(), name


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_is_recorded(room: str) -> None:
    """The record is whole: what is public now is held from now on."""
    assert public(room).keys() <= kept(room).keys(), "write it again: python tests/test_public.py"


if __name__ == "__main__":
    RECORD.write_text(json.dumps({room: public(room) for room in ROOMS}, indent=1) + "\n", encoding="utf-8")
