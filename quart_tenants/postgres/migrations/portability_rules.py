"""What fails on Citus, or is silently wrong there, and the statements in which `check-portable` sees it. Pure."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from quart_tenants.postgres.migrations.lint_rules import Danger
from quart_tenants.sql_parser import SqlSyntaxError, messages, parse_sql, walk

PORTABLE_REMEDIES = {
    "do-block": "write its statements as they are: nobody sees what a DO block runs",
    "foreign-key-out": "let it refer to a table of the tenant, or accept this where the other one is a reference table "
    "(create_reference_table)",
    "function-reads": "ask in the app: a function runs on another machine than the tables that it reads",
    "inherits": "repeat the columns: tables that inherit cannot be distributed",
    "no-primary-key": "give it one: a tenant moves to another machine while it is served only if each table has a key",
    "own-type": "put the type into a shared schema, or use text with a CHECK: each tenant's would be another type",
    "rule": "do it in the app: tables with rules cannot be distributed",
    "session-value": "write the value, or pass it as a parameter: a worker answers for its own session",
    "small-number": "bigint with GENERATED … AS IDENTITY, or bigserial: numbers of other machines do not fit",
    "subcommands": "one ALTER TABLE for each: Citus takes this one only alone",
    "trigger": "do it in the app: tables with triggers cannot be distributed",
    "view-write": "write to the table: a view of distributed tables takes no rows",
}
"""What to write instead."""

_SMALL_SERIAL = frozenset({"serial", "serial4", "smallserial", "serial2"})
_SMALL = frozenset({"int4", "int2"})
_ALONE = (
    messages.AT_AddConstraint,
    messages.AT_AddIdentity,
    messages.AT_AttachPartition,
    messages.AT_DetachPartition,
)
# Statements that Citus does not take, by the parser's names, each with the name of what it makes.
_REFUSED: dict[str, tuple[str, Callable[[Any], str]]] = {
    "create_trig_stmt": ("trigger", lambda node: f"{node.trigname} on {node.relation.relname}"),
    "rule_stmt": ("rule", lambda node: f"{node.rulename} on {node.relation.relname}"),
    "do_stmt": ("do-block", lambda node: "DO"),
    "create_enum_stmt": ("own-type", lambda node: node.type_name[-1].string.sval),
    "create_range_stmt": ("own-type", lambda node: node.type_name[-1].string.sval),
    "create_domain_stmt": ("own-type", lambda node: node.domainname[-1].string.sval),
    "composite_type_stmt": ("own-type", lambda node: node.typevar.relname),
}
_SESSION_FUNCTIONS = frozenset({"current_schema", "current_schemas", "current_setting"})
# In a language that this parser does not read.
_TOUCHES_TABLES = re.compile(r"\b(from|into|update|execute)\b", re.IGNORECASE)


class PortabilityCheck:
    """Looks through the files of a folder, in their order."""

    def __init__(self) -> None:
        # Tables of the tenants by their names, with where each was made; and views.
        self._without_key: dict[str, tuple[int, Danger]] = {}
        self._tables: set[str] = set()
        self._views: set[str] = set()
        self._file = 0

    def look_at_file(self, version: int, sql: str, lines: Sequence[int]) -> list[Danger]:
        """Return what is found in a file, but for tables without a primary key, which a later file may add."""
        self._file = version
        found = []
        for line, raw in zip(lines, parse_sql(sql).stmts, strict=True):
            kind = raw.stmt.WhichOneof("node")
            look = getattr(self, f"_look_at_{kind}", None)
            node = getattr(raw.stmt, kind)
            dangers = [] if look is None else list(look(node, line) or ())
            if kind in _REFUSED:
                rule, name = _REFUSED[kind]
                dangers.append((rule, name(node)))
            dangers += _look_for_session_values(raw.stmt)
            found += [Danger(line, rule, what) for rule, what in dict.fromkeys(dangers)]
        return found

    def list_without_key(self) -> list[tuple[int, Danger]]:
        """Return the tables without a primary key after all files, each with the version of the file that makes it."""
        return list(self._without_key.values())

    def _look_at_create_stmt(self, node: Any, line: int) -> Iterator[tuple[str, str]]:
        table = node.relation.relname
        self._tables.add(table)
        constraints = [each.constraint for each in node.table_elts if each.HasField("constraint")]
        has_key = any(constraint.contype == messages.CONSTR_PRIMARY for constraint in constraints)
        for constraint in constraints:
            yield from self._look_at_constraint(table, constraint)
        for element in node.table_elts:
            if element.HasField("column_def"):
                has_key |= any(
                    each.constraint.contype == messages.CONSTR_PRIMARY for each in element.column_def.constraints
                )
                yield from self._look_at_column(table, element.column_def)
        if node.inh_relations and not node.HasField("partbound"):
            yield "inherits", table
        # A partition has the key of its parent.
        if not has_key and not node.HasField("partbound"):
            self._without_key[table] = self._file, Danger(line, "no-primary-key", table)

    def _look_at_create_table_as_stmt(self, node: Any, line: int) -> None:
        if node.objtype == messages.OBJECT_TABLE:
            table = node.into.rel.relname
            self._tables.add(table)
            self._without_key[table] = self._file, Danger(line, "no-primary-key", table)

    def _look_at_drop_stmt(self, node: Any, line: int) -> None:
        for one in node.objects:
            if node.remove_type == messages.OBJECT_TABLE:
                self._without_key.pop(one.list.items[-1].string.sval, None)

    def _look_at_rename_stmt(self, node: Any, line: int) -> None:
        if node.rename_type == messages.OBJECT_TABLE:
            self._tables.add(node.newname)
            if node.relation.relname in self._without_key:
                self._without_key[node.newname] = self._without_key.pop(node.relation.relname)

    def _look_at_alter_table_stmt(self, node: Any, line: int) -> Iterator[tuple[str, str]]:
        table = node.relation.relname
        for one in node.cmds:
            command = one.alter_table_cmd
            if command.subtype == messages.AT_AddConstraint:
                constraint = getattr(command, "def").constraint
                if constraint.contype == messages.CONSTR_PRIMARY:
                    self._without_key.pop(table, None)
                yield from self._look_at_constraint(table, constraint)
            elif command.subtype == messages.AT_AddColumn:
                column = getattr(command, "def").column_def
                if any(each.constraint.contype == messages.CONSTR_PRIMARY for each in column.constraints):
                    self._without_key.pop(table, None)
                yield from self._look_at_column(table, column)
            if command.subtype in _ALONE and len(node.cmds) > 1:
                yield "subcommands", table

    def _look_at_column(self, table: str, column: Any) -> Iterator[tuple[str, str]]:
        name = f"{table}.{column.colname}"
        type_name = column.type_name.names[-1].string.sval if column.type_name.names else ""
        kinds = {each.constraint.contype for each in column.constraints}
        if type_name in _SMALL_SERIAL or (type_name in _SMALL and messages.CONSTR_IDENTITY in kinds):
            yield "small-number", name
        for each in column.constraints:
            yield from self._look_at_constraint(table, each.constraint)

    def _look_at_constraint(self, table: str, constraint: Any) -> Iterator[tuple[str, str]]:
        if constraint.contype != messages.CONSTR_FOREIGN:
            return
        other = constraint.pktable
        if other.schemaname or other.relname not in self._tables:
            yield "foreign-key-out", f"{table} refers to {'.'.join(filter(None, (other.schemaname, other.relname)))}"

    def _look_at_create_function_stmt(self, node: Any, line: int) -> Iterator[tuple[str, str]]:
        if _reads_tables(node):
            yield "function-reads", node.funcname[-1].string.sval

    def _look_at_view_stmt(self, node: Any, line: int) -> None:
        self._views.add(node.view.relname)

    def _look_at_insert_stmt(self, node: Any, line: int) -> Iterator[tuple[str, str]]:
        if node.relation.relname in self._views:
            yield "view-write", node.relation.relname

    _look_at_update_stmt = _look_at_delete_stmt = _look_at_insert_stmt


def _reads_tables(function: Any) -> bool:
    """Return whether the body of *function* names a table, as far as that can be seen."""
    if function.HasField("sql_body"):
        return _names_table(function.sql_body)
    bodies = [
        option.def_elem.arg.list.items[0].string.sval
        for option in function.options
        if option.def_elem.defname == "as" and option.def_elem.arg.list.items
    ]
    for body in bodies:
        try:
            if _names_table(parse_sql(body)):
                return True
        except SqlSyntaxError:
            # PL/pgSQL, or another language.
            if _TOUCHES_TABLES.search(body):
                return True
    return False


def _names_table(tree: Any) -> bool:
    return any(isinstance(node, messages.RangeVar) for _, node in walk(tree))


def _look_for_session_values(statement: Any) -> Iterator[tuple[str, str]]:
    for _, node in walk(statement):
        if isinstance(node, messages.FuncCall) and node.funcname[-1].string.sval in _SESSION_FUNCTIONS:
            yield "session-value", f"{node.funcname[-1].string.sval}()"
        elif isinstance(node, messages.SQLValueFunction) and node.op == messages.SVFOP_CURRENT_SCHEMA:
            yield "session-value", "current_schema"
