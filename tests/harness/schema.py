"""The schemas of torch.ops.sgl_kernel, parsed: "rmsnorm(Tensor! output, Tensor input, …) -> ()"."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Argument:
    name: str
    type: str  # "Tensor", "Tensor?", "Tensor[]", "int", "SymInt", "float", "bool", "ScalarType", "Generator?", …
    written: bool  # the schema says "Tensor!"

    @property
    def is_tensor(self) -> bool:
        return self.type.startswith("Tensor")


@dataclass(frozen=True)
class Schema:
    name: str
    arguments: tuple[Argument, ...]
    returns: str  # "()", "Tensor", "Tensor[]", "(Tensor, Tensor)"

    @property
    def written(self) -> list[str]:
        return [argument.name for argument in self.arguments if argument.written]


def parse_schema(text: str) -> Schema:
    """Reads a schema as it is written in python/sgl_kernel/_<family>.cc and in the pinned API."""
    head, _, returns = text.partition("->")
    name, _, inside = head.strip().partition("(")
    arguments = []
    for part in inside.rstrip().removesuffix(")").split(","):
        if not part.strip():
            continue
        kind, argument = part.split("=")[0].split()  # a default value is no part of the type
        arguments.append(Argument(argument, kind.replace("!", ""), "!" in kind))
    returned = returns.strip()
    if returned.startswith("(") and returned.count(",") == 0 and returned != "()":
        returned = returned[1:-1].strip()  # upstream writes both "Tensor[]" and "(Tensor[])"
    return Schema(name.strip(), tuple(arguments), returned)


def built_schemas() -> dict[str, Schema]:
    """Every operator of the installed sgl_kernel, by name."""
    from sgl_kernel._index import SCHEMAS

    return {schema.name: schema for family in SCHEMAS.values() for schema in map(parse_schema, family)}
