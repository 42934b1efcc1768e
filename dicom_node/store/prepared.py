"""Statements for the driver: compiled once, their values converted without looking anything up.

For each run of a statement SQLAlchemy keys it, finds what it compiled, and names its parameters. In
the transaction that records what arrives that took most of the time, under the interpreter's lock.
What a statement means, errors and types remain SQLAlchemy's.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

Values = Mapping[str, Any]
Row = Mapping[str, sa.BindParameter[Any]]


@dataclass(frozen=True, kw_only=True)
class _Parameter:
    """Where a statement's parameter comes from, and how the driver wants it."""

    name: str
    row: int
    column: str
    convert: Callable[[Any], Any] | None

    def value(self, rows: Sequence[Values]) -> Any:
        """Return the value for the driver."""
        value = rows[self.row][self.column]
        return value if self.convert is None else self.convert(value)


@dataclass(frozen=True, kw_only=True)
class _Form:
    """A statement as one database wants it."""

    text: str
    parameters: Sequence[_Parameter]  # in their order
    positional: bool

    def values(self, rows: Sequence[Values]) -> tuple[Any, ...] | dict[str, Any]:
        """Return one run's values for the driver.

        Raises
        ------
        StatementError
            If a value cannot be converted, as from SQLAlchemy itself.
        """
        try:
            values = [each.value(rows) for each in self.parameters]
        except (TypeError, ValueError, RecursionError) as error:
            kind = type(error).__name__
            raise sa.exc.StatementError(
                kind, self.text, None, error, hide_parameters=True
            ) from error
        if self.positional:
            return tuple(values)
        return dict(zip([each.name for each in self.parameters], values, strict=True))


class OfRows:
    """A prepared statement about several rows, as many as each run names.

    One for all: with one for each row the driver would let go of the interpreter, and wait to have
    it again, at every one of them, while others wait for the transaction to end. Safe to use from
    many threads.

    What it returns is as the driver has it: columns that need a conversion do not belong there.
    """

    def __init__(
        self,
        types: Mapping[str, sa.types.TypeEngine[Any]],
        statement: Callable[[Sequence[Row]], sa.Executable],
    ) -> None:
        """Keep what makes the statement of rows of parameters, whose names and types these are."""
        self._types = types
        self._statement = statement
        self._forms: dict[tuple[str, int], _Form] = {}  # by dialect and number of rows

    def run(self, connection: sa.Connection, rows: Sequence[Values]) -> sa.CursorResult[Any]:
        """Return the result about `rows`, of which there is one at least.

        A few sizes serve every number: the last row may be named several times.
        """
        size = 1 << (len(rows) - 1).bit_length()
        return self._run(connection, [*rows, *[rows[-1]] * (size - len(rows))])

    def run_once_each(self, connection: sa.Connection, rows: Sequence[Values]) -> None:
        """Run it so that each row is named once, as when they are inserted."""
        at = 0
        while at < len(rows):
            size = 1 << ((len(rows) - at).bit_length() - 1)
            self._run(connection, rows[at : at + size])
            at += size

    def for_driver(
        self, dialect: sa.Dialect, rows: Sequence[Values]
    ) -> tuple[str, tuple[Any, ...] | dict[str, Any]]:
        """Return the statement about exactly these rows, and the values, as the driver has them.

        Raises
        ------
        StatementError
            If a value cannot be converted.
        """
        key = dialect.name, len(rows)
        form = self._forms.get(key)
        if form is None:
            form = self._forms[key] = self._compiled(dialect, len(rows))
        return form.text, form.values(rows)

    def _run(self, connection: sa.Connection, rows: Sequence[Values]) -> sa.CursorResult[Any]:
        return connection.exec_driver_sql(*self.for_driver(connection.dialect, rows))

    def _compiled(self, dialect: sa.Dialect, size: int) -> _Form:
        places: dict[str, tuple[int, str]] = {}
        rows = []
        for number in range(size):
            names = {column: f"{column}_{number}" for column in self._types}
            places |= {name: (number, column) for column, name in names.items()}
            rows.append({
                column: sa.bindparam(names[column], type_=type_)
                for column, type_ in self._types.items()
            })  # fmt: skip
        compiled: Any = self._statement(rows).compile(dialect=dialect)  # type: ignore[attr-defined]
        types = {name: bind.type.dialect_impl(dialect) for name, bind in compiled.binds.items()}
        names = compiled.positiontup if compiled.positional else types
        return _Form(
            text=str(compiled),
            parameters=[
                _Parameter(
                    name=name,
                    row=places[name][0],
                    column=places[name][1],
                    convert=types[name].bind_processor(dialect),
                )
                for name in names
            ],
            positional=compiled.positional,
        )


def inserting(table: sa.Table, columns: Sequence[str], returning: str | None = None) -> OfRows:
    """Return the INSERT of rows that have values for `columns`, which may be `returning` one."""
    types = {name: table.c[name].type for name in columns}

    def statement(rows: Sequence[Row]) -> sa.Insert:
        insert = sa.insert(table).values(rows)
        return insert if returning is None else insert.returning(table.c[returning])

    return OfRows(types, statement)
