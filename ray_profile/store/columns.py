"""Arrow types as Delta keeps them. Delta has no float16, no unsigned integers and no fixed-size lists."""

from __future__ import annotations

from typing import Any

import pyarrow as pa


def at_rest(schema: pa.Schema) -> pa.Schema:
    """The schema as Delta can keep it: fixed-size lists and dictionaries become plain lists and values.

    Raises `TypeError` for float16 and unsigned integers, which Delta would refuse or silently store as signed.
    """
    return pa.schema([field.with_type(_stored(field.type, field.name)) for field in schema])


def large(schema: pa.Schema) -> pa.Schema:
    """The schema with 64-bit offsets, so that no column is limited to 2 GiB of text."""
    return pa.schema([field.with_type(_large(field.type)) for field in schema])


def differing(there: pa.Schema, declared: pa.Schema) -> str:
    """The columns whose presence or type differs, in words; empty where the two keep the same."""
    found = {field.name: _bare(_large(field.type)) for field in there}
    wanted = {field.name: _bare(_large(field.type)) for field in declared}
    return ", ".join(
        f"{name} ({found.get(name, 'absent')} there, {wanted.get(name, 'absent')} here)"
        for name in sorted(found.keys() | wanted.keys())
        if found.get(name) != wanted.get(name)
    )


def _stored(kind: pa.DataType, name: str) -> pa.DataType:
    if pa.types.is_float16(kind) or pa.types.is_unsigned_integer(kind):
        raise TypeError(f"column {name}: Delta has no {kind}; store raw float16 as binary, unsigned as a wider integer")
    if pa.types.is_dictionary(kind):
        return _stored(kind.value_type, name)
    if pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind):
        return pa.list_(_field(kind.value_field, name))
    if pa.types.is_large_list(kind):
        return pa.large_list(_field(kind.value_field, name))
    if pa.types.is_map(kind):
        return pa.map_(_stored(kind.key_type, name), _stored(kind.item_type, name))
    if pa.types.is_struct(kind):
        return pa.struct([_field(field, name) for field in kind])
    return kind


def _field(field: pa.Field[Any], name: str) -> pa.Field[Any]:
    return field.with_type(_stored(field.type, name))


def _large(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_string(kind):
        return pa.large_string()
    if pa.types.is_binary(kind):
        return pa.large_binary()
    if pa.types.is_list(kind):
        return pa.large_list(kind.value_field.with_type(_large(kind.value_type)))
    if pa.types.is_map(kind):
        return pa.map_(_large(kind.key_type), _large(kind.item_type))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_large(field.type)) for field in kind])
    return kind


def _bare(kind: pa.DataType) -> str:
    """A type's name without what Delta does not keep: the names and nullability inside lists and maps."""
    if pa.types.is_large_list(kind):
        return f"list<{_bare(kind.value_type)}>"
    if pa.types.is_map(kind):
        return f"map<{_bare(kind.key_type)}, {_bare(kind.item_type)}>"
    if pa.types.is_struct(kind):
        return f"struct<{', '.join(f'{field.name}: {_bare(field.type)}' for field in kind)}>"
    return str(kind)
