"""The tables of a tenant, which exist already."""

from django.db import models


class AppUser(models.Model):
    """Who may log in."""

    username = models.TextField(unique=True)
    password = models.TextField()

    class Meta:
        """Another's tables."""

        managed = False
        db_table = "app_user"

    def __str__(self) -> str:
        return self.username


class CompanyData(models.Model):
    """What a tenant's users see."""

    description = models.TextField()

    class Meta:
        """Another's tables."""

        managed = False
        db_table = "company_data"

    def __str__(self) -> str:
        return self.description
