"""Statements for the driver: compiled once, their values converted without looking anything up.

For each run of a statement SQLAlchemy keys it, finds what it compiled, and names its parameters. In
the transaction that records what arrives that took most of the time, under the interpreter's lock.
What a statement means, errors and types remain SQLAlchemy's.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

Values = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class _Form:
    """A statement as one database wants it."""

    text: str
    converters: Sequence[tuple[str, Callable[[Any], Any] | None]]  # by parameter, in their order
    positional: bool

    def parameters(self, values: Values) -> tuple[Any, ...] | dict[str, Any]:
        """Return one run's values for the driver.

        Raises
        ------
        StatementError
            If a value cannot be converted, as from SQLAlchemy itself.
        """
        try:
            converted = [
                values[name] if convert is None else convert(values[name])
                for name, convert in self.converters
            ]
        except (TypeError, ValueError, RecursionError) as error:
            kind = type(error).__name__
            raise sa.exc.StatementError(
                kind, self.text, None, error, hide_parameters=True
            ) from error
        if self.positional:
            return tuple(converted)
        return dict(zip([name for name, _ in self.converters], converted, strict=True))


class Prepared:
    """A statement whose parameters are all named at each run; safe to use from many threads.

    Rows come as the driver has them: columns that need a conversion do not belong here.
    """

    def __init__(self, statement: sa.Executable, columns: Sequence[str] | None = None) -> None:
        """Keep `statement`; `columns` are those that an INSERT has values for."""
        self._statement = statement
        self._columns = columns
        self._forms: dict[str, _Form] = {}  # by dialect

    def run(self, connection: sa.Connection, values: Values) -> sa.CursorResult[Any]:
        """Return the result of the statement."""
        form = self._form(connection.dialect)
        return connection.exec_driver_sql(form.text, form.parameters(values))

    def run_each(self, connection: sa.Connection, rows: Iterable[Values]) -> None:
        """Run the statement once for each of `rows`, of which there is one at least."""
        form = self._form(connection.dialect)
        connection.exec_driver_sql(form.text, [form.parameters(row) for row in rows])

    def _form(self, dialect: sa.Dialect) -> _Form:
        if dialect.name not in self._forms:
            self._forms[dialect.name] = self._compiled(dialect)
        return self._forms[dialect.name]

    def _compiled(self, dialect: sa.Dialect) -> _Form:
        compiled: Any = self._statement.compile(  # type: ignore[attr-defined]
            dialect=dialect, column_keys=self._columns, for_executemany=self._columns is not None
        )
        types = {name: bind.type.dialect_impl(dialect) for name, bind in compiled.binds.items()}
        names = compiled.positiontup if compiled.positional else types
        return _Form(
            text=str(compiled),
            converters=[(name, types[name].bind_processor(dialect)) for name in names],
            positional=compiled.positional,
        )


class Among:
    """A prepared query about some of many rows, `some` of which are named at each run."""

    def __init__(self, query: Callable[[Sequence[Any]], sa.Executable]) -> None:
        """Keep what makes the query of its parameters, which stand for what is looked for."""
        self._query = query
        self._sizes: dict[int, Prepared] = {}

    def run(self, connection: sa.Connection, some: Sequence[Any]) -> sa.CursorResult[Any]:
        """Return the result about `some`, of which there is one at least."""
        size = 1 << (len(some) - 1).bit_length()  # a few statements serve every number
        padded = [*some, *[some[-1]] * (size - len(some))]
        values = {f"p{place}": each for place, each in enumerate(padded)}
        if size not in self._sizes:
            self._sizes[size] = Prepared(self._query([sa.bindparam(name) for name in values]))
        return self._sizes[size].run(connection, values)
