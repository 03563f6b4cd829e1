"""Make the tables of tenants and their domains, and fill them. The tenants' schemas exist."""

import os

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")
django.setup()

from customers.models import Client, Domain  # noqa: E402
from django.db import connection  # noqa: E402

with connection.schema_editor() as editor:
    editor.create_model(Client)
    editor.create_model(Domain)
with connection.cursor() as cursor:
    cursor.execute("SELECT DISTINCT tenant FROM public.all_data ORDER BY tenant")
    slugs = [slug for (slug,) in cursor]
clients = Client.objects.bulk_create(Client(schema_name=slug, name=slug) for slug in slugs)
Domain.objects.bulk_create(
    Domain(domain=f"{client.schema_name}.localhost", tenant=client, is_primary=True) for client in clients
)
