"""What figures are called in Prometheus, where one module writes them and another one reads them."""

PREFIX = "quart_tenants_"
"""All names begin so. Those below are without it."""

TOTAL = "_total"
"""A number that only grows ends so in Prometheus' format; its name below does not."""

WORKER_UP = "worker_up"
WORKER_STARTS = "worker_starts"
REQUESTS = "requests"
ANSWER_DELAY = "answer_delay_seconds"
CONNECTIONS = "connections"
REGISTRY_AGE = "registry_age_seconds"
BEHIND_TENANTS = "behind_tenants"
TENANT_BEHIND = "tenant_behind"

OF_TENANTS = {
    "requests": "tenant_requests",
    "refused": "tenant_refused_requests",
    "errors": "tenant_failed_requests",
    "bytes": "tenant_answer_bytes",
    "blocks": "tenant_blocks",
    "block_seconds": "tenant_block_seconds",
    "statements": "tenant_statements",
    "statement_seconds": "tenant_statement_seconds",
    "rows": "tenant_rows",
    "failed_logins": "tenant_failed_logins",
}
"""What is counted of each tenant, by its name in `TenantStats`."""

OTHERS = "(others)"
"""The label of all tenants that are not named. No slug has brackets."""
