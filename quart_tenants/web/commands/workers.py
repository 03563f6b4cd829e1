"""Ask the workers of `serve` for their figures, at the port of `TENANTS_METRICS_BIND`."""

import urllib.request
from http.client import HTTPException

from quart_tenants.errors import SettingError

_ANSWERS_WITHIN = 5.0  # seconds


def ask_workers(address: str) -> list[tuple[str, dict[str, str], float]]:
    """Return what they tell: the name of each number, its labels, and the number. This blocks: call it in a thread.

    Raises:
        SettingError: Nobody answers there, or the extra `metrics` is not installed.
    """
    try:
        from prometheus_client.parser import text_string_to_metric_families
    except ModuleNotFoundError as error:
        raise SettingError(
            "TENANTS_METRICS_BIND", "can be asked with the extra only: pip install 'quart-tenants[metrics]'"
        ) from error
    try:
        # The scheme is ours, and no proxy of the environment is asked.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://{address}/metrics", timeout=_ANSWERS_WITHIN) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
    except (OSError, HTTPException, ValueError) as error:
        raise SettingError(
            "TENANTS_METRICS_BIND",
            f"is {address}, where no worker answers ({error}): is `serve` running with it?",
        ) from error
    return [(sample.name, dict(sample.labels), sample.value) for family in families for sample in family.samples]
