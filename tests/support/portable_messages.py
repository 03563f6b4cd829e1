"""Say which of the recorded statements break the rules that a cluster of Citus and a pooler need. Pure."""

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

from quart_tenants.sql_parser import messages, parse_sql, walk
from tests.support.message_recorder import Recorded

# Citus sends the text of a message on to its workers, so what changes tables of tenants stands alone in its message.
_TOGETHER = frozenset(
    {
        "close_portal_stmt",
        "deallocate_stmt",
        "discard_stmt",
        "insert_stmt",
        "select_stmt",
        "transaction_stmt",
        "unlisten_stmt",
        "variable_set_stmt",
    }
)
_UNDOING = (messages.VAR_RESET, messages.VAR_RESET_ALL, messages.VAR_SET_DEFAULT)
_SESSION_LOCKS = frozenset(
    {"pg_advisory_lock", "pg_advisory_lock_shared", "pg_try_advisory_lock", "pg_try_advisory_lock_shared"}
)
_BEGINNINGS = (messages.TRANS_STMT_BEGIN, messages.TRANS_STMT_START)
_ENDS = (messages.TRANS_STMT_COMMIT, messages.TRANS_STMT_ROLLBACK)
# From here on Citus sends each SET LOCAL on, with the whole text of its message.
_PASS_ON = "SET LOCAL citus.propagate_set_commands"
# Also in a DO block.
_LIMIT = "SET LOCAL lock_timeout"
# asyncpg's look-up of types that it does not know by itself. On Citus it takes half a minute.
_LOOK_UP = "typeinfo_tree"
_AROUND_LOOK_UP = "set_config('jit'"


def find_breaches(connections: Iterable[Recorded]) -> list[str]:
    """Return what breaks a rule, each with the statement."""
    return [breach for one in connections for breach in _look_through(one)]


def _look_through(connection: Recorded) -> Iterator[str]:
    own_session = _has_session_of_its_own(connection)
    in_transaction = passes_on = False
    asked = ""
    for text in connection.parsed:
        if _LOOK_UP in text:
            yield f"a type that asyncpg looks up: {_shorten(asked)}"
        elif _AROUND_LOOK_UP not in text:
            asked = text
    for text in connection.texts:
        statements = _parse(text)
        kinds = [statement.WhichOneof("node") for statement in statements]
        passes_on = (in_transaction and passes_on) or _PASS_ON in text
        sets = any(each.variable_set_stmt.is_local for each in statements)
        if len(kinds) > 1 and ((passes_on and sets) or not _TOGETHER.issuperset(kinds)):
            yield f"several statements in one message: {_shorten(text)}"
        if _LIMIT in text and not passes_on:
            yield f"a limit that no worker hears of: {_shorten(text)}"
        for kind, statement in zip(kinds, statements, strict=True):
            node = getattr(statement, kind)
            if kind == "transaction_stmt":
                in_transaction = (in_transaction or node.kind in _BEGINNINGS) and node.kind not in _ENDS
            elif kind == "variable_set_stmt" and node.is_local and not in_transaction:
                yield f"SET LOCAL outside a transaction: {_shorten(text)}"
            elif not own_session and _lasts(kind, node):
                yield f"what lasts longer than the transaction: {_shorten(text)}"


def _has_session_of_its_own(connection: Recorded) -> bool:
    """Return whether it is one of the documented exceptions, which need a direct connection to PostgreSQL.

    A file without a transaction runs on a connection that was opened with the tenant's path. LISTEN waits on one of
    its own, and so do the probes of `doctor`, which look for what a pooler lets through. Connections of PostgreSQL's
    programs ask for no path.
    """
    on_purpose = any(text.startswith(("LISTEN ", "SET quart_tenants_probe.")) for text in connection.texts)
    return on_purpose or connection.options.get("search_path") not in ("", '""')


def _lasts(kind: str, node: Any) -> bool:
    if kind == "variable_set_stmt":
        return not node.is_local and node.kind not in _UNDOING and not node.name.startswith("TRANSACTION")
    if kind == "listen_stmt":
        return True
    if kind == "create_stmt":
        return bool(node.relation.relpersistence == "t")
    return any(_lasts_after(call) for _, call in walk(node) if isinstance(call, messages.FuncCall))


def _lasts_after(call: Any) -> bool:
    name = call.funcname[-1].string.sval
    if name == "set_config":
        return not call.args[2].a_const.boolval.boolval and not call.args[2].HasField("param_ref")
    return name in _SESSION_LOCKS


@cache
def _parse(text: str) -> list[Any]:
    return [raw.stmt for raw in parse_sql(text).stmts]


def _shorten(text: str) -> str:
    return " ".join(text.split())[:300]
