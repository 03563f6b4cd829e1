"""Write the migration files of a small ERP: 43 tables, 79 indexes, foreign keys, enums, views, functions, triggers."""

from collections.abc import Sequence
from pathlib import Path

SHARED_SCHEMA = "erp_shared"

_SHARED_FILE = """\
CREATE TABLE countries (code char(2) PRIMARY KEY, name text NOT NULL);
CREATE TABLE currencies (code char(3) PRIMARY KEY, digits smallint NOT NULL DEFAULT 2);
CREATE TABLE units (code text PRIMARY KEY, name text NOT NULL);
INSERT INTO countries VALUES ('DE', 'Germany'), ('FR', 'France'), ('IT', 'Italy');
INSERT INTO currencies VALUES ('EUR', 2), ('USD', 2), ('JPY', 0);
INSERT INTO units VALUES ('pc', 'piece'), ('kg', 'kilogram'), ('h', 'hour');
"""
_ENUMS = {
    "document_state": ("draft", "sent", "confirmed", "done", "cancelled"),
    "payment_kind": ("cash", "transfer", "card", "direct_debit"),
    "move_kind": ("in", "out", "internal"),
    "employment": ("full_time", "part_time", "external"),
}
# Each table with those that it refers to; a name with a dot is of the shared schema.
_TABLES: dict[str, Sequence[str]] = {
    "companies": (f"{SHARED_SCHEMA}.countries", f"{SHARED_SCHEMA}.currencies"),
    "users": ("companies",),
    "roles": (),
    "user_roles": ("users", "roles"),
    "partners": (f"{SHARED_SCHEMA}.countries", "companies"),
    "partner_addresses": ("partners", f"{SHARED_SCHEMA}.countries"),
    "partner_contacts": ("partners",),
    "bank_accounts": ("partners", f"{SHARED_SCHEMA}.currencies"),
    "product_categories": (),
    "products": ("product_categories", f"{SHARED_SCHEMA}.units"),
    "product_prices": ("products", f"{SHARED_SCHEMA}.currencies"),
    "product_suppliers": ("products", "partners"),
    "price_lists": (f"{SHARED_SCHEMA}.currencies",),
    "price_list_items": ("price_lists", "products"),
    "taxes": (f"{SHARED_SCHEMA}.countries",),
    "product_taxes": ("products", "taxes"),
    "warehouses": ("companies",),
    "locations": ("warehouses",),
    "lots": ("products",),
    "stock_levels": ("products", "locations"),
    "stock_moves": ("products", "locations", "lots"),
    "inventories": ("warehouses", "users"),
    "inventory_lines": ("inventories", "products"),
    "quotations": ("partners", "users"),
    "quotation_lines": ("quotations", "products"),
    "sales_orders": ("partners", "users", f"{SHARED_SCHEMA}.currencies"),
    "sales_order_lines": ("sales_orders", "products", "taxes"),
    "deliveries": ("sales_orders", "warehouses"),
    "delivery_lines": ("deliveries", "sales_order_lines"),
    "purchase_orders": ("partners", "users", f"{SHARED_SCHEMA}.currencies"),
    "purchase_order_lines": ("purchase_orders", "products"),
    "receipts": ("purchase_orders", "warehouses"),
    "accounts": ("companies",),
    "journals": ("companies", "accounts"),
    "journal_entries": ("journals", "users"),
    "journal_lines": ("journal_entries", "accounts", "partners"),
    "invoices": ("partners", "sales_orders", f"{SHARED_SCHEMA}.currencies"),
    "invoice_lines": ("invoices", "products", "taxes"),
    "payments": ("partners", "bank_accounts"),
    "payment_invoices": ("payments", "invoices"),
    "employees": ("users", "companies"),
    "time_sheets": ("employees", "sales_orders"),
    "audit_log": ("users",),
}
_INDEXES = 36  # beside the 43 of the primary keys
_STATES = {"quotations", "sales_orders", "purchase_orders", "invoices", "deliveries", "receipts"}
_KINDS = {"payments": "payment_kind", "stock_moves": "move_kind", "employees": "employment"}
_VIEWS = """\
CREATE VIEW open_orders AS
    SELECT o.id, o.number, p.number AS partner, o.amount
    FROM sales_orders AS o JOIN partners AS p ON p.id = o.partners_id
    WHERE o.state IN ('draft', 'sent', 'confirmed');
CREATE VIEW unpaid_invoices AS
    SELECT i.id, i.number, i.amount - coalesce(sum(l.amount), 0) AS due
    FROM invoices AS i LEFT JOIN payment_invoices AS l ON l.invoices_id = i.id GROUP BY i.id;
CREATE VIEW stock AS
    SELECT products_id, sum(amount) AS amount FROM stock_levels GROUP BY products_id;
CREATE VIEW balances AS
    SELECT accounts_id, sum(amount) AS balance FROM journal_lines GROUP BY accounts_id;
CREATE VIEW sales_by_country AS
    SELECT p.countries_code, sum(i.amount) AS amount FROM invoices AS i JOIN partners AS p ON p.id = i.partners_id
    GROUP BY p.countries_code;
"""
_FUNCTIONS = """\
CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.changed_at := now(); RETURN NEW; END $$;
CREATE FUNCTION next_number(kind text) RETURNS text LANGUAGE sql SET search_path FROM CURRENT
    AS $$ SELECT kind || count(*) FROM sales_orders $$;
CREATE FUNCTION get_balance(account bigint) RETURNS numeric LANGUAGE sql STABLE SET search_path FROM CURRENT
    AS $$ SELECT sum(amount) FROM journal_lines WHERE accounts_id = account $$;
CREATE FUNCTION round_amount(amount numeric, digits integer) RETURNS numeric LANGUAGE sql IMMUTABLE
    AS $$ SELECT round(amount, digits) $$;
"""


def write_erp_files(folder: Path, shared_folder: Path) -> None:
    """Write the tenants' files into *folder* and those of the schema that all share into *shared_folder*."""
    (shared_folder / "0001_common.sql").write_text(_SHARED_FILE)
    types = [f"CREATE TYPE {name} AS ENUM ({', '.join(map(repr, values))});" for name, values in _ENUMS.items()]
    (folder / "0001_types.sql").write_text("\n".join(types) + "\n")
    (folder / "0002_tables.sql").write_text("\n".join(map(_write_table, _TABLES)))
    (folder / "0003_indexes.sql").write_text("\n".join(_list_indexes()) + "\n")
    triggers = [
        f"CREATE TRIGGER {table}_touch BEFORE UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION touch();"
        for table in sorted(_STATES)
    ]
    (folder / "0004_views_and_functions.sql").write_text(_VIEWS + _FUNCTIONS + "\n".join(triggers) + "\n")


def _write_table(table: str) -> str:
    columns = [
        "id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
        "number text NOT NULL",
        "amount numeric(18, 4) NOT NULL DEFAULT 0",
        "note text",
        "active boolean NOT NULL DEFAULT true",
        "created_at timestamptz NOT NULL DEFAULT now()",
        "changed_at timestamptz NOT NULL DEFAULT now()",
    ]
    if table in _STATES:
        columns.append("state document_state NOT NULL DEFAULT 'draft'")
    if table in _KINDS:
        columns.append(f"kind {_KINDS[table]} NOT NULL")
    for other in _TABLES[table]:
        schema, _, name = other.rpartition(".")
        columns.append(
            f"{name}_code {'text' if name == 'units' else 'char(2)' if name == 'countries' else 'char(3)'}"
            f" REFERENCES {other}"
            if schema
            else f"{name}_id bigint NOT NULL REFERENCES {name}"
        )
    if table.endswith("_lines"):
        columns.append("CHECK (amount >= 0)")
    return f"CREATE TABLE {table} (\n    " + ",\n    ".join(columns) + "\n);"


def _list_indexes() -> list[str]:
    named = [
        f"CREATE UNIQUE INDEX {table}_number ON {table} (number);" for table in _TABLES if not table.endswith("_lines")
    ]
    foreign = [
        f"CREATE INDEX {table}_by_{others[0]} ON {table} ({others[0]}_id, created_at DESC);"
        for table, others in _TABLES.items()
        if others and "." not in others[0]
    ]
    return [*named[:16], *foreign][:_INDEXES]
