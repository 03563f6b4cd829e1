"""The dangers that `lint` knows, each by a name, and the statements in which it sees them. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from quart_tenants.sql_parser import messages, parse_sql, walk

_ALONE = "in a file of its own that begins with -- quart-tenants: no transaction"
_LATER = "when no running code uses it any more"

REMEDIES = {
    "check": f"add it NOT VALID, and VALIDATE CONSTRAINT {_ALONE}",
    "column-type": "add a column of the new type, fill it in batches, and let the code change over; accept this where "
    "PostgreSQL stores both types alike, such as varchar and text",
    "detach-partition": f"DETACH PARTITION … CONCURRENTLY, {_ALONE}",
    "domain-constraint": "add it NOT VALID, and validate it in a later file",
    "drop-column": f"drop it in a later file, {_LATER}",
    "drop-index": f"DROP INDEX CONCURRENTLY, {_ALONE}",
    "drop-table": f"drop it in a later file, {_LATER}",
    "enum-value": "use the value in a later file: nobody may use it in the transaction that adds it",
    "exclusion": "there is no safe form: let the tenants wait, or check it in the app",
    "foreign-key": f"add it NOT VALID, and VALIDATE CONSTRAINT {_ALONE}",
    "index": f"CREATE INDEX CONCURRENTLY, {_ALONE}",
    "lock-table": "let each statement take the lock that it needs",
    "reindex": f"REINDEX … CONCURRENTLY, {_ALONE}",
    "rename": "add the new name beside the old one, let the code change over, and drop the old one in a later file",
    "required-column": "give it a constant default, or let it be null: old code writes rows without it",
    "rewrite": "there is no safe form: the table is locked while it is copied",
    "rewriting-column": "add it without a default, set the default after that, and fill the old rows in batches",
    "set-not-null": f"CHECK (… IS NOT NULL) NOT VALID first, then VALIDATE CONSTRAINT {_ALONE}, then SET NOT NULL",
    "truncate": "DELETE in batches",
    "unique": f"CREATE UNIQUE INDEX CONCURRENTLY {_ALONE}, then ADD CONSTRAINT … USING INDEX",
    "validate-with-add": f"VALIDATE CONSTRAINT {_ALONE}: the lock of ADD CONSTRAINT lasts until the commit",
    "whole-table": "write it in batches: a file that begins with -- quart-tenants: in batches",
}
"""The safe form of each danger."""

# These give the same value for all rows of a statement, so that PostgreSQL need not write the rows.
_STABLE = frozenset({"now", "transaction_timestamp", "statement_timestamp", "current_setting", "current_schema"})
_SERIAL = frozenset({"serial", "bigserial", "smallserial", "serial2", "serial4", "serial8"})
_READ = (
    messages.OBJECT_TABLE,
    messages.OBJECT_VIEW,
    messages.OBJECT_MATVIEW,
    messages.OBJECT_COLUMN,
    messages.OBJECT_ATTRIBUTE,
)
_REWRITING = (messages.AT_SetLogged, messages.AT_SetUnLogged, messages.AT_SetTableSpace, messages.AT_SetAccessMethod)


class Danger(NamedTuple):
    """A danger in a statement of a file."""

    line: int
    rule: str
    what: str


@dataclass(slots=True)
class History:
    """What earlier statements have prepared, in all files so far.

    Attributes:
        checked: The column that a constraint keeps from being null, by table and constraint.
        not_null: Columns, with their tables, for which such a constraint is validated.
    """

    checked: dict[tuple[str, str], str] = field(default_factory=dict)
    not_null: set[tuple[str, str]] = field(default_factory=set)


class FileLint:
    """Looks through the statements of one file in their order."""

    def __init__(self, sql: str, lines: Sequence[int], history: History, *, in_transaction: bool) -> None:
        self._in_transaction = in_transaction
        self._statements = [raw.stmt for raw in parse_sql(sql).stmts]
        self._lines = lines
        self._history = history
        # Nobody uses what the file itself makes.
        self._new: set[str] = set()
        self._new_indexes: set[str] = set()
        self._not_valid: set[tuple[str, str]] = set()
        self._new_values: set[str] = set()

    def find_dangers(self) -> list[Danger]:
        """Return all dangers, and note in the history what later files may rely on."""
        return [
            Danger(line, rule, what)
            for line, statement in zip(self._lines, self._statements, strict=True)
            for rule, what in self._look(statement)
        ]

    def _look(self, statement: Any) -> Iterator[tuple[str, str]]:
        kind = statement.WhichOneof("node")
        node = getattr(statement, kind)
        if self._new_values and any(value in self._new_values for value in _list_texts(statement)):
            yield "enum-value", ", ".join(sorted(self._new_values))
        look = getattr(self, f"_look_at_{kind}", None)
        if look is not None:
            yield from look(node) or ()

    def _look_at_create_stmt(self, node: Any) -> None:
        self._new.add(node.relation.relname)

    def _look_at_create_table_as_stmt(self, node: Any) -> None:
        self._new.add(node.into.rel.relname)

    def _look_at_alter_enum_stmt(self, node: Any) -> None:
        if node.new_val and not node.old_val and self._in_transaction:
            self._new_values.add(node.new_val)

    def _look_at_index_stmt(self, node: Any) -> Iterator[tuple[str, str]]:
        self._new_indexes.add(node.idxname)
        if not node.concurrent and node.relation.relname not in self._new:
            yield "index", node.idxname or node.relation.relname

    def _look_at_drop_stmt(self, node: Any) -> Iterator[tuple[str, str]]:
        is_index = node.remove_type == messages.OBJECT_INDEX
        if node.concurrent or not (is_index or node.remove_type in _READ):
            return
        for one in node.objects:
            # The last part of a name is the one behind the schema.
            name = one.list.items[-1].string.sval
            if name not in (self._new_indexes if is_index else self._new):
                yield "drop-index" if is_index else "drop-table", name

    def _look_at_rename_stmt(self, node: Any) -> Iterator[tuple[str, str]]:
        if node.rename_type in _READ and node.relation.relname not in self._new:
            yield "rename", f"{node.relation.relname}.{node.subname}" if node.subname else node.relation.relname

    def _look_at_reindex_stmt(self, node: Any) -> Iterator[tuple[str, str]]:
        if not any(option.def_elem.defname == "concurrently" for option in node.params):
            yield "reindex", node.relation.relname or node.name

    def _look_at_vacuum_stmt(self, node: Any) -> Iterator[tuple[str, str]]:
        if any(option.def_elem.defname == "full" for option in node.options):
            yield "rewrite", "VACUUM FULL"

    def _look_at_cluster_stmt(self, node: Any) -> Iterator[tuple[str, str]]:
        yield "rewrite", f"CLUSTER {node.relation.relname}"

    def _look_at_truncate_stmt(self, node: Any) -> Iterator[tuple[str, str]]:
        for table in node.relations:
            if table.range_var.relname not in self._new:
                yield "truncate", table.range_var.relname

    def _look_at_lock_stmt(self, node: Any) -> Iterator[tuple[str, str]]:
        yield "lock-table", ", ".join(table.range_var.relname for table in node.relations)

    def _look_at_alter_domain_stmt(self, node: Any) -> Iterator[tuple[str, str]]:
        added = getattr(node, "def").constraint
        if node.subtype == "C" and not added.skip_validation:
            yield "domain-constraint", node.type_name[-1].string.sval

    def _look_at_update_stmt(self, node: Any) -> Iterator[tuple[str, str]]:
        if not node.HasField("where_clause") and node.relation.relname not in self._new:
            yield "whole-table", node.relation.relname

    _look_at_delete_stmt = _look_at_update_stmt

    def _look_at_alter_table_stmt(self, node: Any) -> Iterator[tuple[str, str]]:
        table = node.relation.relname
        for command in node.cmds:
            found = list(self._look_at_command(table, command.alter_table_cmd))
            if table not in self._new:
                yield from found

    def _look_at_command(self, table: str, command: Any) -> Iterator[tuple[str, str]]:
        kind = command.subtype
        column = f"{table}.{command.name}"
        if kind == messages.AT_AddColumn:
            yield from _look_at_new_column(table, getattr(command, "def").column_def)
        elif kind == messages.AT_AddConstraint:
            yield from self._look_at_constraint(table, getattr(command, "def").constraint)
        elif kind == messages.AT_ValidateConstraint:
            if (table, command.name) in self._not_valid and self._in_transaction:
                yield "validate-with-add", column
            if (table, command.name) in self._history.checked:
                self._history.not_null.add((table, self._history.checked[table, command.name]))
        elif kind == messages.AT_SetNotNull:
            if (table, command.name) not in self._history.not_null:
                yield "set-not-null", column
        elif kind == messages.AT_AlterColumnType:
            yield "column-type", column
        elif kind == messages.AT_DropColumn:
            yield "drop-column", column
        elif kind == messages.AT_DetachPartition:
            partition = getattr(command, "def").partition_cmd
            if not partition.concurrent:
                yield "detach-partition", partition.name.relname
        elif kind in _REWRITING:
            yield "rewrite", table

    def _look_at_constraint(self, table: str, constraint: Any) -> Iterator[tuple[str, str]]:
        name = f"{table}.{constraint.conname}" if constraint.conname else table
        if constraint.skip_validation:
            self._not_valid.add((table, constraint.conname))
            if (column := _find_column_that_is_not_null(constraint)) is not None:
                self._history.checked[table, constraint.conname] = column
            return
        if constraint.contype == messages.CONSTR_CHECK:
            # It costs what SET NOT NULL costs, and afterwards SET NOT NULL costs nothing.
            if (column := _find_column_that_is_not_null(constraint)) is not None:
                self._history.not_null.add((table, column))
            yield "check", name
        elif constraint.contype == messages.CONSTR_NOTNULL:
            yield "set-not-null", name
        elif constraint.contype == messages.CONSTR_FOREIGN:
            yield "foreign-key", name
        elif constraint.contype == messages.CONSTR_EXCLUSION:
            yield "exclusion", name
        elif constraint.contype in (messages.CONSTR_UNIQUE, messages.CONSTR_PRIMARY) and not constraint.indexname:
            yield "unique", name


def _look_at_new_column(table: str, column: Any) -> Iterator[tuple[str, str]]:
    name = f"{table}.{column.colname}"
    constraints = [one.constraint for one in column.constraints]
    kinds = {constraint.contype for constraint in constraints}
    makes_values = column.type_name.names[-1].string.sval in _SERIAL or messages.CONSTR_IDENTITY in kinds
    for constraint in constraints:
        # A value that is computed when it is read (VIRTUAL) is not stored.
        makes_values |= constraint.contype == messages.CONSTR_GENERATED and constraint.generated_kind != "v"
        makes_values |= constraint.contype == messages.CONSTR_DEFAULT and _is_volatile(constraint.raw_expr)
    if makes_values:
        yield "rewriting-column", name
    if messages.CONSTR_NOTNULL in kinds and not makes_values and messages.CONSTR_DEFAULT not in kinds:
        yield "required-column", name
    if kinds & {messages.CONSTR_UNIQUE, messages.CONSTR_PRIMARY}:
        yield "unique", name
    if messages.CONSTR_FOREIGN in kinds:
        yield "foreign-key", name
    if messages.CONSTR_CHECK in kinds:
        yield "check", name


def _is_volatile(expression: Any) -> bool:
    """Return whether *expression* may have another value for each row, because it calls a function."""
    return any(
        node.funcname[-1].string.sval not in _STABLE
        for _, node in walk(expression)
        if isinstance(node, messages.FuncCall)
    )


def _find_column_that_is_not_null(constraint: Any) -> str | None:
    """Return the column of CHECK (column IS NOT NULL), or None for any other constraint."""
    test = constraint.raw_expr.null_test
    if test.nulltesttype != messages.IS_NOT_NULL or len(test.arg.column_ref.fields) != 1:
        return None
    name: str = test.arg.column_ref.fields[0].string.sval
    return name


def _list_texts(statement: Any) -> Iterator[str]:
    for _, node in walk(statement):
        if isinstance(node, messages.A_Const) and node.HasField("sval"):
            yield node.sval.sval
