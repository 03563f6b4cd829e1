"""Tell what a statement can do at most, whatever is in the tables. Pure: no I/O."""

import enum
from collections import OrderedDict
from typing import Any

from quart_tenants.sql_parser import SqlSyntaxError, messages, parse_sql, walk

LONGEST = 15_000
"""Characters. As in asyncpg: longer statements are mostly made for one occasion, and not worth being remembered."""
# Texts. An app has some hundred; a text that is made anew each time is parsed anew each time.
_REMEMBERED = 2000


class Effect(enum.IntEnum):
    """What a statement can do at most. Each includes what is before it."""

    READS = 0
    """One SELECT that changes, locks and sets nothing: it may be run twice."""
    ROWS = 1
    """One statement that works on rows, or on a savepoint, and runs no SQL but its own."""
    ANYTHING = 2
    """All other statements, which may also prepare and drop prepared statements unseen."""


# PostgreSQL's own functions that have no effect once they have returned. Left out is whatever waits, locks, notifies
# others, sets or reads a setting, draws from a sequence, or has an effect in another session or file.
# fmt: off
_HARMLESS = frozenset({
    "abs", "age", "array_agg", "array_append", "array_cat", "array_dims", "array_length", "array_lower",
    "array_ndims", "array_position", "array_positions", "array_prepend", "array_remove", "array_replace",
    "array_to_json", "array_to_string", "array_upper", "ascii", "avg", "bit_and", "bit_length", "bit_or", "bit_xor",
    "bool_and", "bool_or", "btrim", "cardinality", "cbrt", "ceil", "ceiling", "char_length", "character_length",
    "chr", "clock_timestamp", "coalesce", "concat", "concat_ws", "corr", "count", "cume_dist", "current_schemas",
    "date", "date_bin", "date_part", "date_trunc", "decode", "degrees", "dense_rank", "div", "encode", "every",
    "exp", "extract", "first_value", "floor", "format", "gen_random_uuid", "generate_series", "generate_subscripts",
    "get_byte", "greatest", "initcap", "isfinite", "json_agg", "json_array_elements", "json_array_elements_text",
    "json_array_length", "json_build_array", "json_build_object", "json_each", "json_each_text",
    "json_extract_path", "json_extract_path_text", "json_object", "json_object_agg", "json_object_keys",
    "json_strip_nulls", "json_typeof", "jsonb_agg", "jsonb_array_elements", "jsonb_array_elements_text",
    "jsonb_array_length", "jsonb_build_array", "jsonb_build_object", "jsonb_each", "jsonb_each_text",
    "jsonb_extract_path", "jsonb_extract_path_text", "jsonb_object", "jsonb_object_agg", "jsonb_object_keys",
    "jsonb_path_exists", "jsonb_path_match", "jsonb_path_query", "jsonb_path_query_array", "jsonb_path_query_first",
    "jsonb_pretty", "jsonb_set", "jsonb_strip_nulls", "jsonb_typeof", "justify_days", "justify_hours",
    "justify_interval", "lag", "last_value", "lead", "least", "left", "length", "ln", "log", "lower", "lpad",
    "ltrim", "make_date", "make_interval", "make_time", "make_timestamp", "make_timestamptz", "max", "md5", "min",
    "mod", "mode", "now", "nth_value", "ntile", "nullif", "num_nonnulls", "num_nulls", "octet_length", "overlaps",
    "overlay", "percent_rank", "percentile_cont", "percentile_disc", "pg_backend_pid", "pg_typeof",
    "phraseto_tsquery", "plainto_tsquery", "position", "power", "quote_ident", "quote_literal", "quote_nullable",
    "radians", "random", "range_agg", "rank", "regexp_count", "regexp_instr", "regexp_like", "regexp_match",
    "regexp_matches", "regexp_replace", "regexp_split_to_array", "regexp_split_to_table", "regexp_substr",
    "regr_count", "regr_slope", "repeat", "replace", "reverse", "right", "round", "row_number", "row_to_json",
    "rpad", "rtrim", "sha256", "sha512", "sign", "split_part", "sqrt", "starts_with", "statement_timestamp",
    "stddev", "stddev_pop", "stddev_samp", "string_agg", "string_to_array", "string_to_table", "strpos", "substr",
    "substring", "sum", "timeofday", "timezone", "to_char", "to_date", "to_json", "to_jsonb", "to_number",
    "to_timestamp", "to_tsquery", "to_tsvector", "transaction_timestamp", "translate", "trim", "trim_array",
    "trunc", "ts_headline", "ts_rank", "ts_rank_cd", "unnest", "upper", "var_pop", "var_samp", "variance",
    "version", "websearch_to_tsquery", "width_bucket",
})
# fmt: on
_WRITING_NODES = frozenset(("InsertStmt", "UpdateStmt", "DeleteStmt", "MergeStmt", "IntoClause", "LockingClause"))
# These have effects of their own, but they run no SQL that somebody else has written.
_KNOWN = _HARMLESS | {
    "currval", "current_setting", "lastval", "nextval", "pg_advisory_xact_lock", "pg_sleep", "pg_try_advisory_lock",
    "pg_try_advisory_xact_lock", "set_config", "to_regclass", "to_regnamespace",
}  # fmt: skip
_ROW_STATEMENTS = frozenset(("select_stmt", "insert_stmt", "update_stmt", "delete_stmt", "merge_stmt"))
_SAVEPOINTS = frozenset(
    (
        messages.TRANS_STMT_SAVEPOINT,
        messages.TRANS_STMT_RELEASE,
        messages.TRANS_STMT_ROLLBACK_TO,
    )
)


class StatementEffects:
    """Finds the effects of statements, and remembers them by their text."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: OrderedDict[str, Effect] = OrderedDict()

    def find(self, statement: str) -> Effect:
        """Return what *statement* can do at most.

        In doubt that is anything: a function that is not one of PostgreSQL's own may do whatever it likes. Not seen are
        triggers, functions behind operators, casts and views, and functions of a tenant's own that are named as
        PostgreSQL's are, or written as if they were columns. So a connection is reset before another tenant gets it,
        also after blocks that only read.
        """
        if len(statement) > LONGEST:
            return Effect.ANYTHING
        known = self._known.get(statement)
        if known is None:
            known = self._known[statement] = _judge(statement)
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return known


def _judge(statement: str) -> Effect:
    try:
        parsed = parse_sql(statement)
    except (SqlSyntaxError, ValueError):
        # The server will say what is wrong with it. ValueError: such as a NUL, or half a surrogate pair.
        return Effect.ANYTHING
    if len(parsed.stmts) != 1:
        return Effect.ANYTHING
    outermost = parsed.stmts[0].stmt
    kind = outermost.WhichOneof("node")
    if kind == "transaction_stmt":
        return Effect.ROWS if outermost.transaction_stmt.kind in _SAVEPOINTS else Effect.ANYTHING
    if kind not in _ROW_STATEMENTS:
        return Effect.ANYTHING
    effect = Effect.READS if kind == "select_stmt" else Effect.ROWS
    for _, node in walk(parsed):
        name = type(node).__name__
        if name in _WRITING_NODES:
            effect = Effect.ROWS
        elif name == "FuncCall" and not _is_one_of(_HARMLESS, node):
            if not _is_one_of(_KNOWN, node):
                return Effect.ANYTHING
            effect = Effect.ROWS
    return effect


def _is_one_of(functions: frozenset[str], call: Any) -> bool:
    names = [part.string.sval for part in call.funcname]
    return names[-1] in functions and names[:-1] in ([], ["pg_catalog"])
