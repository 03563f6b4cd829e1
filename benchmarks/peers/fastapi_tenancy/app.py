"""FastAPI with fastapi-tenancy: its middleware, its store with the cache in memory, its sessions of SQLAlchemy."""

import os
from typing import Annotated

from fastapi import Depends, FastAPI, Form, HTTPException, Request
from fastapi_tenancy import TenancyConfig, TenancyManager, TenancyMiddleware
from fastapi_tenancy.dependencies import TenantDep, make_tenant_db_dependency
from fastapi_tenancy.storage.database import SQLAlchemyTenantStore
from passlib.hash import pbkdf2_sha256
from pydantic import BaseModel, ConfigDict
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from starlette.middleware.sessions import SessionMiddleware


class Base(DeclarativeBase):
    """Of all tables of a tenant."""


class AppUser(Base):
    """Who may log in."""

    __tablename__ = "app_user"

    id: Mapped[int] = mapped_column(primary_key=True)
    username: Mapped[str]
    password: Mapped[str]


class CompanyData(Base):
    """What a tenant's users see."""

    __tablename__ = "company_data"

    id: Mapped[int] = mapped_column(primary_key=True)
    description: Mapped[str]


class Row(BaseModel):
    """One of the tenant's rows."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    description: str


class Page(BaseModel):
    """What `/data` answers."""

    data: list[Row]


config = TenancyConfig(
    database_url=os.environ["DATABASE_URL"].replace("postgresql://", "postgresql+asyncpg://", 1),
    resolution_strategy="subdomain",
    domain_suffix=".localhost",
    isolation_strategy="schema",
    l1_cache_enabled=True,
    l1_cache_max_size=10_000,
    l1_cache_ttl_seconds=3600,
    # One round trip less a request.
    database_pool_pre_ping=False,
)
manager = TenancyManager(config, SQLAlchemyTenantStore(config.database_url, pool_pre_ping=False))
app = FastAPI(lifespan=manager.create_lifespan())
app.add_middleware(TenancyMiddleware, manager=manager)
app.add_middleware(SessionMiddleware, secret_key=os.environ["SECRET_KEY"])

Session = Annotated[AsyncSession, Depends(make_tenant_db_dependency(manager))]


async def check_login(request: Request, tenant: TenantDep) -> None:
    """Refuse who is not logged in, or is so at another tenant."""
    if "user" not in request.session:
        raise HTTPException(401)
    if request.session.get("site") != tenant.identifier:
        raise HTTPException(400)


@app.post("/login")
async def login(
    request: Request,
    tenant: TenantDep,
    db: Session,
    uname: Annotated[str, Form()],
    passwd: Annotated[str, Form()],
) -> dict[str, str]:
    """Check the password, and begin a session."""
    stored = await db.scalar(select(AppUser.password).where(AppUser.username == uname))
    if stored is None or not pbkdf2_sha256.verify(passwd, stored):
        raise HTTPException(401)
    request.session.update(user=uname, site=tenant.identifier)
    return {"msg": "login successful"}


@app.get("/data", dependencies=[Depends(check_login)])
async def list_data(db: Session) -> Page:
    """Return the tenant's rows, 1,000 at most."""
    rows = await db.scalars(select(CompanyData).order_by(CompanyData.id).limit(1000))
    return Page(data=[Row.model_validate(row) for row in rows])
