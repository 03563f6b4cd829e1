"""Procrastinate: a job is given its tenant, and works on that tenant's tables."""

from collections.abc import AsyncGenerator

from procrastinate import App, PsycopgConnector
from quart import Quart, ResponseReturnValue

from quart_tenants import QuartTenants, current_tenant, tenant_connection
from tests.other_libraries.support import make_app
from tests.support.databases import execute


def make_jobs(database_url: str) -> App:
    """Return the jobs of an app. Their tables are in the schema "jobs", which is no tenant's."""
    jobs = App(connector=PsycopgConnector(conninfo=database_url, kwargs={"options": "-c search_path=jobs"}))

    @jobs.task(name="add_digest")
    async def add_digest(slug: str) -> None:
        async with tenant_connection(slug) as connection:
            await connection.execute("INSERT INTO company_data (description) VALUES ('digest of ' || $1)", slug)

    return jobs


def add_jobs(app: Quart, tenants: QuartTenants, jobs: App) -> None:
    """Let a page of *app* ask for a job."""

    @app.while_serving
    async def open_jobs() -> AsyncGenerator[None, None]:
        async with jobs.open_async():
            yield

    @app.post("/digest", host=tenants.host)
    async def ask_for_digest() -> ResponseReturnValue:
        await jobs.configure_task("add_digest").defer_async(slug=current_tenant.slug)
        return "", 202


async def work(app: Quart, tenants: QuartTenants, jobs: App, *, wait: bool = True) -> None:
    """Run a worker, which is a program of its own."""
    async with app.app_context(), tenants.running(), jobs.open_async():
        await jobs.run_worker_async(wait=wait)


async def test_job_works_on_the_tables_of_the_tenant_that_asked(database_url: str) -> None:
    """In a worker that is another process, and knows the tenant by its slug."""
    jobs = make_jobs(database_url)
    await execute(database_url, "CREATE SCHEMA jobs")
    async with jobs.open_async():
        await jobs.schema_manager.apply_schema_async()
    app, tenants = make_app(database_url)
    add_jobs(app, tenants, jobs)
    async with app.test_app():
        client = app.test_client()
        for host in ("acme.localhost", "globex.localhost"):
            assert (await client.post("/digest", headers={"Host": host})).status_code == 202

    app, tenants = make_app(database_url)
    jobs = make_jobs(database_url)
    await work(app, tenants, jobs, wait=False)

    async with app.app_context(), tenants.running():
        for slug in ("acme", "globex"):
            async with tenant_connection(slug) as connection:
                rows = await connection.fetch("SELECT description FROM company_data")
            assert [row["description"] for row in rows] == [f"digest of {slug}"]
