"""Tenants and their domains."""

from django.db import models
from django_tenants.models import DomainMixin, TenantMixin


class Client(TenantMixin):
    """A tenant."""

    name = models.CharField(max_length=100)
    # The schemas are made before.
    auto_create_schema = False


class Domain(DomainMixin):
    """Where a tenant answers."""
