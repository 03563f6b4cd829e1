"""What the database gives, as JSON."""

import datetime
import decimal
import ipaddress
import json
import uuid
from http import HTTPStatus

import asyncpg
import msgspec
import pytest
from markupsafe import Markup
from quart import Quart

from quart_tenants import RowJSONProvider
from quart_tenants.web.answers.row_json import encode_json

TWO_HOURS_EAST = datetime.timezone(datetime.timedelta(hours=2))


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (decimal.Decimal("12.50"), '"12.50"'),
        (decimal.Decimal("0.1234567890123456789012345678901234567890"), '"0.1234567890123456789012345678901234567890"'),
        (decimal.Decimal("NaN"), '"NaN"'),
        (2**63 - 1, "9223372036854775807"),
        (float("nan"), "null"),
        (float("inf"), "null"),
        (datetime.datetime(2026, 11, 23, 4, 50, tzinfo=datetime.UTC), '"2026-11-23T04:50:00Z"'),
        (datetime.datetime(2026, 11, 23, 4, 50, tzinfo=TWO_HOURS_EAST), '"2026-11-23T04:50:00+02:00"'),
        (datetime.datetime(2026, 11, 23, 4, 50, 0, 1), '"2026-11-23T04:50:00.000001"'),  # noqa: DTZ001
        (datetime.date(2026, 11, 23), '"2026-11-23"'),
        (datetime.time(4, 50, tzinfo=datetime.UTC), '"04:50:00Z"'),
        (datetime.timedelta(days=1, hours=2), '"P1DT7200S"'),
        (uuid.UUID(int=1), '"00000000-0000-0000-0000-000000000001"'),
        (b"\x00\xff", '"AP8="'),
        (ipaddress.ip_network("10.0.0.0/8"), '"10.0.0.0/8"'),
        (ipaddress.ip_interface("::1/64"), '"::1/64"'),
        (asyncpg.BitString.from_int(10, 4), '"1010"'),
        (asyncpg.Range(1, 5), '{"lower":1,"upper":5,"bounds":"[)"}'),
        (asyncpg.Range(None, 5, lower_inc=False, upper_inc=True), '{"lower":null,"upper":5,"bounds":"(]"}'),
        (asyncpg.Range(empty=True), '{"lower":null,"upper":null,"bounds":"empty"}'),
        (msgspec.Raw(b'{"a": 1.10}'), '{"a": 1.10}'),
        ([[1, None], [True]], "[[1,null],[true]]"),
        (Markup("<b>"), '"<b>"'),
        (HTTPStatus.NOT_FOUND, "404"),
        ("\u2028é\x00", '"\u2028é\\u0000"'),
    ],
)
def test_each_type_is_written_in_one_way(value: object, written: str) -> None:
    """What has no word in JSON is a text or an object that keeps all of it, and the same wherever it stands."""
    assert encode_json(value).decode() == written
    assert encode_json({"in": [value]}).decode() == f'{{"in":[{written}]}}'


def test_what_json_cannot_say_is_an_error() -> None:
    """Nothing is written as its description in Python, which would look like a text."""
    with pytest.raises(TypeError, match="object cannot be written as JSON"):
        encode_json({"view": object()})


async def test_options_of_templates_are_followed() -> None:
    """`tojson` in a template sorts the keys and hides what would end a script, as it does with Quart's own provider."""
    app = Quart(__name__)
    app.json = RowJSONProvider(app)
    price = {"b": decimal.Decimal("1.10"), "a": "</script>"}

    async with app.app_context():
        template = app.jinja_env.from_string("{{ price|tojson }}")
        written = await template.render_async(price=price)

    assert "</script>" not in written
    assert list(json.loads(written).items()) == [("a", "</script>"), ("b", "1.10")]
    assert app.json.dumps(price, indent=1).startswith("{\n ")
