"""Recipes: training runs as YAML files, those of the paper among them, and what becomes of them with other options."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from ccrk.trainer.options import (
    FIELDS,
    GROUPS,
    NEW_MODEL_OPTIONS,
    TrainOptions,
    checked,
    convert,
    default_of,
    flag,
    nearest,
)

RESOLVED = "training_config.yaml"
"""What a run writes into its folder: a recipe that repeats it."""

HEAD = ("description", "base", "needs")
"""Keys of a recipe that are no options: a line on what it is, the recipe that it changes, what it leaves to you."""

# these belong to one call of the command, not to a run that could be repeated
_NOT_REPEATED = ("resume",)


@dataclass
class Recipe:
    """A recipe as read.

    Attributes:
        name: its name, or the path of its file.
        description: one line.
        options: option -> value, those of its base included.
        needs: option -> what it is; without it the run cannot start.
    """

    name: str
    description: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    needs: dict[str, str] = field(default_factory=dict)


def _folder():
    return resources.files("ccrk.trainer") / "recipes"


def recipe_names() -> list[str]:
    """Names of the recipes that come with this package."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _folder().iterdir() if entry.name.endswith(".yaml"))


def load_recipe(name: str) -> Recipe:
    """Reads a recipe.

    Args:
        name: one of `recipe_names`, or the path of a YAML file.

    Raises:
        ValueError: if there is no such recipe, it is not YAML, or a key or value is unknown; naming the nearest one.
        OSError: if the file cannot be read.
    """
    name = str(name)
    if name.endswith((".yaml", ".yml")) or "/" in name:
        return _parse(Path(name).read_text(encoding="utf-8"), name)
    names = recipe_names()
    if name not in names:
        raise ValueError(
            f"there is no recipe '{name}'{nearest(name, names)}; ccrk train --list-recipes prints all, and a recipe "
            "of your own is named by a path that ends in .yaml"
        )
    return _parse((_folder() / f"{name}.yaml").read_text(encoding="utf-8"), name)


def _parse(text: str, name: str, deriving: tuple[str, ...] = ()) -> Recipe:
    where = f"recipe '{name}'"
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{where} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{where} is not a mapping of options to values")
    recipe = Recipe(name)
    if content.get("base") is not None:
        base = str(content["base"])
        if base in deriving or base == name:
            raise ValueError(f"{where} is based on itself")
        known = recipe_names()
        if base not in known:
            raise ValueError(f"{where}: there is no recipe '{base}' to change{nearest(base, known)}")
        recipe = _parse((_folder() / f"{base}.yaml").read_text(encoding="utf-8"), base, (*deriving, name))
        recipe.name = name
    for key, value in content.items():
        key = str(key).replace("-", "_")
        if key == "description":
            recipe.description = str(value)
        elif key == "needs":
            recipe.needs |= _needs(value, where)
        elif key in FIELDS:
            recipe.options[key] = convert(key, value, where)
        elif key != "base":
            raise ValueError(f"{where} has an unknown key '{key}'{nearest(key, [*FIELDS, *HEAD])}")
    return recipe


def _needs(value: Any, where: str) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}: needs is {value!r}; it is a mapping of options to what they are")
    for key in value:
        if key not in FIELDS:
            raise ValueError(f"{where}: needs names an unknown option '{key}'{nearest(str(key), FIELDS)}")
    return {str(key): str(what) for key, what in value.items()}


def resolve(given: Mapping[str, Any], recipe: str | None = None) -> tuple[TrainOptions, list[str]]:
    """The options of a run: what was given, else what the recipe says, else the defaults.

    Args:
        given: option -> value, of the command line; None undoes what a recipe says.
        recipe: name or path.

    Returns:
        The options, and remarks for the user.

    Raises:
        ValueError: if a needed option is missing, or options do not go together; saying what would do.
    """
    read = load_recipe(recipe) if recipe is not None else Recipe("")
    values, remarks = dict(read.options), []
    shaping = [name for name in NEW_MODEL_OPTIONS if name in values and name not in given]
    if given.get("model") and shaping:
        remarks.append(f"not taken from the recipe, because the model is there already: {', '.join(shaping)}")
        for name in shaping:
            del values[name]
    extra = {**values.get("set", {}), **given.get("set", {})}
    values |= given
    values["set"] = extra
    options = TrainOptions(**{name: default_of(name) if value is None else value for name, value in values.items()})
    _check_needed(options, read)
    _check_start(options)
    return checked(options), remarks


def _check_needed(options: TrainOptions, recipe: Recipe) -> None:
    missing = [name for name in ("data", "out") if not getattr(options, name)]
    if missing:
        told = [f"{flag(name)} ({recipe.needs[name]})" if name in recipe.needs else flag(name) for name in missing]
        whose = f"the recipe '{recipe.name}' leaves to you" if recipe.name else "what is missing"
        raise ValueError(f"{whose}: {', '.join(told)}")
    missing = [name for name in recipe.needs if not getattr(options, name)]
    if "model" in missing and options.image_tower:
        missing.remove("model")
    if missing:
        told = ", ".join(f"{flag(name)} ({recipe.needs[name]})" for name in missing)
        raise ValueError(f"the recipe '{recipe.name}' leaves to you: {told}")


def _check_start(options: TrainOptions) -> None:
    if options.model:
        given = [name for name in NEW_MODEL_OPTIONS if getattr(options, name) != default_of(name)]
        if given:
            words = ", ".join(flag(name) for name in given)
            raise ValueError(f"{words}: these shape a new model, but --model goes on from '{options.model}' as it is")
    elif not (options.image_tower and options.text_tower):
        raise ValueError("say what to start from: --model, or both --image-tower and --text-tower")


def recipe_text(options: TrainOptions, remark: str = "") -> str:
    """The options as a recipe, by groups, defaults included: later defaults may differ.

    Args:
        options: resolved.
        remark: lines at the top.
    """
    values = asdict(options)
    lines = [f"# {line}" for line in remark.splitlines()]
    for group in GROUPS:
        lines += ["", f"# {group}"]
        for name, one in FIELDS.items():
            if one.metadata["group"] == group and name not in _NOT_REPEATED:
                lines.append(f"{name}: {_plain(values[name])}")
    return "\n".join(lines).lstrip("\n") + "\n"


def _plain(value: Any) -> str:
    """A value in one line of YAML that reads back as the same."""
    return (
        yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True).removesuffix("\n...\n").strip()
    )


def recipe_table(names: Iterable[str] | None = None) -> str:
    """Name, what it is, and what it leaves to you, one recipe a line."""
    read = [load_recipe(name) for name in (recipe_names() if names is None else names)]
    width = max(len(recipe.name) for recipe in read)
    lines = []
    for recipe in read:
        needs = ", ".join(flag(name) for name in recipe.needs)
        lines.append(f"{recipe.name:<{width}}  {recipe.description}" + (f"; needs {needs}" if needs else ""))
    return "\n".join(lines)
