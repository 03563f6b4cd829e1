"""Log in to both companies of the demo at once, and see that each shows its own data.

    quart-tenants demo                      # in another terminal
    python examples/two_companies.py [PORT]

Needs httpx. Python's resolver does not know *.localhost on every system, so the script connects to 127.0.0.1 and
names the company in the Host header, as a proxy would.
"""

import asyncio
import sys

import httpx

MEMBERS = {"company1": "user_1", "company2": "user_2"}
PASSWORD = "foo"  # noqa: S105  (the demo's)


async def fetch_data(company: str, username: str, port: int) -> list[dict[str, object]]:
    """Log in to *company* as *username*; return the company's data, after logging out again."""
    host = {"Host": f"{company}.localhost:{port}"}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=host) as client:
        login = await client.post("/login", data={"uname": username, "passwd": PASSWORD})
        login.raise_for_status()
        rows: list[dict[str, object]] = []
        page: str | None = "/data"
        while page is not None:
            answer = await client.get(page)
            answer.raise_for_status()
            rows += answer.json()["data"]
            page = answer.links.get("next", {}).get("url")
        await client.post("/logout")
    return rows


async def main(port: int) -> None:
    """Print what each company has."""
    companies = await asyncio.gather(*(fetch_data(company, username, port) for company, username in MEMBERS.items()))
    for company, rows in zip(MEMBERS, companies, strict=True):
        print(f"{company}: {', '.join(str(row['description']) for row in rows)}")


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 5000))
