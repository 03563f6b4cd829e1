"""The two routes."""

from django.urls import path
from records import views

urlpatterns = [path("login", views.log_in), path("data", views.list_data)]
