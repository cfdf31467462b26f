"""What users import and call stays: ``public.json`` holds every public name with its parameters and their defaults.

A name, a parameter or a default may be added (``python tests/test_public.py`` writes the file again); none may go or
change.
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
MODELS = {"forward", "backward", "replace", "merge", "from_pretrained", "from_state_dict", "from_dict", "modules"}


def parameters(f: typing.Any) -> str:
    """The parameters that a caller may name, in order, "name" or "name=default"; of ``**options`` as its type lists."""
    names = []
    for one in inspect.signature(f).parameters.values():
        if one.kind is not one.VAR_KEYWORD:
            default = getattr(one.default, "__name__", repr(one.default)).replace(" ", "")
            names.append(one.name if one.default is one.empty else f"{one.name}={default}")
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
    """Each recorded name is there, takes each recorded parameter in the same order, and has its default."""
    found = public(room)
    assert kept(room).keys() <= found.keys()
    for name, recorded in kept(room).items():
        now = found[name]
        if recorded is not None and now is not None and "**" not in now:
            own = recorded.split()  # of these one that was asked for may have a default by now
            same = [one if one in own else one.partition("=")[0] for one in now.split()]
            assert [one for one in same if one in own] == own, name


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_is_recorded(room: str) -> None:
    """The record is whole: what is public now is held from now on."""
    assert public(room).keys() <= kept(room).keys(), "write it again: python tests/test_public.py"


if __name__ == "__main__":
    RECORD.write_text(json.dumps({room: public(room) for room in ROOMS}, indent=1) + "\n", encoding="utf-8")
