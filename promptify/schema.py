"""A schema says what each column of a profile or an item is, and so how it is put in words."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self, get_args

from promptify.validation import BadInput

FieldKind = Literal["text", "category", "list", "number", "time", "name"]

MAX_SECONDS = 100_000_000_000
"""The year 5138; a larger timestamp is taken for milliseconds."""

_RESERVED = {"user_id", "item_id", "kind"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Field:
    """One column of a profile or an item.

    Args:
        name: the column, e.g. ``"pay"``.
        kind: ``text`` and ``category`` are words as they stand, ``list`` is several words,
            ``number`` is told as a percentile of the training data, ``time`` is seconds (int64).
            A ``name`` is what people call it: shown to them and looked up by, never told to a
            model, which would learn who somebody is and not what they can do.
        label: the words before the value in a prompt, e.g. ``"pay"``; empty for the value alone.

    Raises:
        BadInput: the name is empty or reserved, or the kind is unknown.
    """

    name: str
    kind: FieldKind
    label: str = ""

    @property
    def is_told(self) -> bool:
        """Whether a text tells it: a name says who and not what, a time depends on the moment."""
        return self.kind not in ("time", "name")

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip() or self.name.startswith("__"):
            raise BadInput(f"Field.name={self.name!r} must be the name of a column.")
        if self.name in _RESERVED:
            raise BadInput(
                f"Field.name={self.name!r} is a column of its own; leave it out of the schema."
            )
        if self.kind not in get_args(FieldKind):
            raise BadInput(
                f"Field.kind={self.kind!r} of field {self.name!r} must be one of "
                f"{', '.join(get_args(FieldKind))}."
            )
        if not isinstance(self.label, str):
            raise BadInput(f"Field.label={self.label!r} of field {self.name!r} must be text.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Schema:
    """The fields of a profile, and of each kind of item, in the order in which they are told.

    Args:
        user: fields of the profile; may be empty.
        items: kind of item → its fields, at least one each that a text tells. A field that two
            kinds share is one column, so it must be of one kind.

    Raises:
        BadInput: a field stands twice, a kind of item has nothing to read, or a shared field
            has two kinds.

    Example:
        >>> schema = Schema(
        ...     user=(Field(name="age", kind="number", label="age"),),
        ...     items={"film": (Field(name="title", kind="text"),)},
        ... )
        >>> Schema.from_dict(schema.to_dict()) == schema
        True
    """

    user: tuple[Field, ...]
    items: Mapping[str, tuple[Field, ...]]

    def __post_init__(self) -> None:
        object.__setattr__(self, "user", tuple(self.user))
        object.__setattr__(self, "items", {kind: tuple(f) for kind, f in self.items.items()})
        if not self.items:
            raise BadInput("Schema.items is empty; name at least one kind of item and its fields.")
        for owner, owned in [("user", self.user), *self.items.items()]:
            names = [field.name for field in owned]
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise BadInput(f"Schema of {owner!r} names {', '.join(twice)} twice; keep one.")
            if owner in self.items and not any(field.is_told for field in owned):
                raise BadInput(
                    f"Schema.items[{owner!r}] has no fields but names and times; give it a text to "
                    "read."
                )
        kinds: dict[str, FieldKind] = {}
        for owned in self.items.values():
            for field in owned:
                if kinds.setdefault(field.name, field.kind) != field.kind:
                    raise BadInput(
                        f"Schema.items: field {field.name!r} is a {kinds[field.name]} for one kind "
                        f"of item and a {field.kind} for another; rename one of them."
                    )

    @property
    def item_columns(self) -> tuple[Field, ...]:
        """Every field that any kind of item has, each once."""
        return tuple(
            {field.name: field for owned in self.items.values() for field in owned}.values()
        )

    def names(self, kind: str) -> tuple[Field, ...]:
        """The fields that an item of this kind is called by."""
        return tuple(field for field in self.items[kind] if field.kind == "name")

    def to_dict(self) -> dict[str, Any]:
        """The schema as plain JSON values; `from_dict` reads it back."""
        return {
            "user": [asdict(field) for field in self.user],
            "items": {kind: [asdict(field) for field in f] for kind, f in self.items.items()},
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build a schema from plain values, as read from YAML or JSON.

        Raises:
            BadInput: the values are not of the form that `to_dict` gives.
        """
        try:
            return cls(
                user=tuple(Field(**field) for field in values.get("user", ())),
                items={
                    kind: tuple(Field(**field) for field in owned)
                    for kind, owned in values["items"].items()
                },
            )
        except (TypeError, KeyError, AttributeError) as error:
            raise BadInput(
                "A schema is `user:` and `items: {kind: …}`, each a list of "
                f"`{{name: …, kind: …, label: …}}`; got {values!r} ({error!r})."
            ) from error
