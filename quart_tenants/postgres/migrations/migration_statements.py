"""Split the text of a migration into single statements, and refuse those that a migration must not have. Pure."""

import re
from dataclasses import dataclass
from typing import Any, NamedTuple

from quart_tenants.errors import MigrationFileError
from quart_tenants.sql_parser import SqlSyntaxError, list_tokens, messages, parse_sql, walk

_DIRECTIVE = re.compile(r"--[ \t]*quart[-_]tenants[ \t]*:(.*)", re.IGNORECASE)
_NO_TRANSACTION = "no transaction"
_IN_BATCHES = re.compile(r"in[ \t]+batches(?:[ \t]+of[ \t]+([1-9][0-9]{0,6}))?", re.IGNORECASE)
_BATCH_ROWS = 5000
_CHANGES_ROWS = ("insert_stmt", "update_stmt", "delete_stmt")
_ACCEPT = re.compile(r"accept[ \t]+([a-z-]+)[ \t]*:[ \t]*\S.*", re.IGNORECASE)
# With CONCURRENTLY these cannot run in a transaction. (REFRESH MATERIALIZED VIEW CONCURRENTLY can.)
_CONCURRENT_STATEMENTS = frozenset({"index_stmt", "drop_stmt", "reindex_stmt", "alter_table_stmt"})
# These change no rows. After anything else a deferred constraint may wait for its check.
_WITHOUT_ROWS = frozenset(
    {
        "alter_domain_stmt",
        "alter_enum_stmt",
        "alter_table_stmt",
        "comment_stmt",
        "composite_type_stmt",
        "create_domain_stmt",
        "create_enum_stmt",
        "create_function_stmt",
        "create_seq_stmt",
        "create_stmt",
        "create_trig_stmt",
        "drop_stmt",
        "grant_stmt",
        "index_stmt",
        "rename_stmt",
        "view_stmt",
    }
)


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement, without the semicolon.

    Attributes:
        sql: The text as written.
        kind: What the parser calls it, such as `create_stmt`.
        line: The line of its text on which it begins, from 1.
        needs_no_transaction: Whether PostgreSQL refuses it in a transaction.
        may_defer: Whether a constraint may wait for its check after it.
        settled_tables: Tables for which no check may wait when it runs.
    """

    sql: str
    kind: str
    line: int
    needs_no_transaction: bool
    may_defer: bool
    settled_tables: tuple[str, ...]

    @property
    def sql_for_new_tables(self) -> str | None:
        """The statement without CONCURRENTLY, for new tables that nobody uses yet.

        None for VACUUM and REINDEX, which new tables do not need.
        """
        if not self.needs_no_transaction:
            return self.sql
        if self.sql[:6].upper() in ("VACUUM", "REINDE"):
            return None
        encoded = self.sql.encode()
        for start, end in reversed(_find_concurrently(self.sql)):
            encoded = encoded[:start] + encoded[end:]
        return encoded.decode()

    def locate(self, position: str | None) -> int:
        """Return the line in the whole text of the character number *position*, from 1, of this statement."""
        return self.line + (self.sql.count("\n", 0, int(position) - 1) if position else 0)


class Accepted(NamedTuple):
    """A danger that a file accepts, by `-- quart-tenants: accept RULE: reason`.

    Attributes:
        rule: The name that `lint` has for the danger.
        line: Where the file says so, from 1.
    """

    rule: str
    line: int


@dataclass(frozen=True, slots=True)
class Script:
    """The content of a file.

    Attributes:
        statements: The statements in their order; at least one.
        in_transaction: False if the file says `-- quart-tenants: no transaction`, or is run in batches.
        batch_rows: How many rows each run of its one statement is to change, until none is left; None for other files.
        sets_all_constraints: Whether it says SET CONSTRAINTS ALL.
        accepted: The dangers that it accepts.
    """

    statements: tuple[Statement, ...]
    in_transaction: bool
    batch_rows: int | None
    sets_all_constraints: bool
    accepted: tuple[Accepted, ...]


def parse_script(name: str, text: str, *, may_create_extensions: bool = False) -> Script:
    """Return the statements of *text*.

    Args:
        name: The name of the file, for errors.
        text: SQL; it may have comments.
        may_create_extensions: Whether CREATE EXTENSION is taken. The first tenant's schema would swallow it, and the
            next tenant would not find it.

    Raises:
        MigrationFileError: The text is no SQL, ends inside a quote, holds no statement, ends the
            transaction that it would run in, changes search_path, creates an extension that belongs
            elsewhere, or has an unknown directive.
    """
    if "\0" in text:
        raise MigrationFileError(f"{name}: has a NUL in it, where PostgreSQL would stop reading")
    encoded = text.encode()

    def refuse(position: int, reason: str) -> MigrationFileError:
        return MigrationFileError(f"{name}: line {_count_line(encoded, position)}: {reason}")

    try:
        parsed = parse_sql(text)
    except SqlSyntaxError as error:
        # The message may quote the rest of the file, so it is put into one line.
        position = len(text[: max(error.position - 1, 0)].encode())
        raise refuse(position, " ".join(str(error).split())) from error
    # The text before the first statement is comments.
    head = encoded[: parsed.stmts[0].stmt_location].decode() if parsed.stmts else text
    directives = _read_directives(name, head)
    in_transaction = directives.in_transaction
    if directives.batch_rows is not None and not _is_batch(parsed.stmts):
        raise MigrationFileError(
            f"{name}: a file in batches holds one INSERT, UPDATE or DELETE with LIMIT $1, "
            "which is run until it changes no row"
        )
    statements = []
    sets_all_constraints = False
    for raw in parsed.stmts:
        start = raw.stmt_location
        sql = encoded[start : start + raw.stmt_len if raw.stmt_len else None].decode()
        kind = raw.stmt.WhichOneof("node")
        if kind == "transaction_stmt":
            raise refuse(start, "it ends the transaction that it runs in; take BEGIN, COMMIT and the like out")
        if kind == "variable_set_stmt" and raw.stmt.variable_set_stmt.name in ("search_path", ""):
            raise refuse(start, "it changes search_path; use unqualified names only")
        if kind == "create_extension_stmt" and not (may_create_extensions or _lies_elsewhere(raw.stmt)):
            raise refuse(
                start,
                "an extension belongs to the whole database and not to one tenant's schema; create it in a file of "
                "TENANTS_SHARED_MIGRATIONS_DIR, in a schema of TENANTS_SHARED_SCHEMAS",
            )
        if kind == "copy_stmt" and raw.stmt.copy_stmt.is_from and not raw.stmt.copy_stmt.filename:
            raise refuse(start, "COPY FROM STDIN has no data here; write INSERT")
        # ANALYZE is a kind of VACUUM to the parser.
        outside = (kind == "vacuum_stmt" and raw.stmt.vacuum_stmt.is_vacuumcmd) or (
            kind in _CONCURRENT_STATEMENTS and bool(_find_concurrently(sql))
        )
        if outside and in_transaction:
            raise refuse(
                start,
                "PostgreSQL refuses this in a transaction; move it into a file of its own "
                f"that begins with the line -- quart-tenants: {_NO_TRANSACTION}",
            )
        # Without names it means ALL.
        sets_all_constraints |= kind == "constraints_set_stmt" and not raw.stmt.constraints_set_stmt.constraints
        statements.append(
            Statement(
                sql,
                kind,
                _count_line(encoded, start),
                outside,
                kind not in _WITHOUT_ROWS,
                _list_settled_tables(raw.stmt),
            )
        )
    if not statements:
        raise MigrationFileError(f"{name}: holds no statement")
    return Script(tuple(statements), in_transaction, directives.batch_rows, sets_all_constraints, directives.accepted)


def _lies_elsewhere(statement: Any) -> bool:
    """Return whether a CREATE EXTENSION may run for each tenant: it names its schema, and does nothing again."""
    extension = statement.create_extension_stmt
    names = {option.def_elem.defname for option in extension.options}
    return extension.if_not_exists and "schema" in names


def _list_settled_tables(statement: Any) -> tuple[str, ...]:
    """Return the names of the tables for which PostgreSQL refuses *statement* while a check waits."""
    kind = statement.WhichOneof("node")
    if kind in ("alter_table_stmt", "cluster_stmt", "index_stmt"):
        return (getattr(statement, kind).relation.relname,)
    if kind == "truncate_stmt":
        return tuple(table.range_var.relname for table in statement.truncate_stmt.relations)
    if kind == "drop_stmt" and statement.drop_stmt.remove_type == messages.OBJECT_TABLE:
        return tuple(table.list.items[-1].string.sval for table in statement.drop_stmt.objects)
    return ()


class _Directives(NamedTuple):
    in_transaction: bool
    batch_rows: int | None
    accepted: tuple[Accepted, ...]


def _read_directives(name: str, text: str) -> _Directives:
    """Return what the comments before the first statement say. These are *text*."""
    in_transaction = True
    batch_rows = None
    accepted = []
    for number, line in enumerate(text.splitlines(), start=1):
        match = _DIRECTIVE.search(line)
        if match is None:
            continue
        directive = match[1].strip()
        if directive.lower() == _NO_TRANSACTION:
            in_transaction = False
        elif batches := _IN_BATCHES.fullmatch(directive):
            in_transaction = False
            batch_rows = int(batches[1] or _BATCH_ROWS)
        elif acceptance := _ACCEPT.fullmatch(directive):
            # The rules may change, and a file that has run may not. So nobody looks whether there is such a rule here.
            accepted.append(Accepted(acceptance[1].lower(), number))
        else:
            raise MigrationFileError(
                f"{name}: line {number}: there is no such directive; there are -- quart-tenants: {_NO_TRANSACTION}, "
                "in batches of N, and accept RULE: reason"
            )
    return _Directives(in_transaction, batch_rows, tuple(accepted))


def _is_batch(statements: Any) -> bool:
    """Return whether there is one statement, which changes as many rows as its only parameter says."""
    if len(statements) != 1 or statements[0].stmt.WhichOneof("node") not in _CHANGES_ROWS:
        return False
    return {node.number for _, node in walk(statements[0].stmt) if isinstance(node, messages.ParamRef)} == {1}


def _find_concurrently(sql: str) -> list[tuple[int, int]]:
    """Return the positions of the keyword in bytes, not counting quoted names, texts and comments."""
    encoded = sql.encode()
    return [
        (token.start, token.end)
        for token in list_tokens(sql)
        if token.keyword_kind and encoded[token.start : token.end].upper() == b"CONCURRENTLY"
    ]


def _count_line(encoded: bytes, position: int) -> int:
    return encoded.count(b"\n", 0, position) + 1
