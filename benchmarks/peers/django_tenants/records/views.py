"""Log in, and show the tenant's rows."""

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.http import require_GET, require_POST
from passlib.hash import pbkdf2_sha256

from records.models import AppUser, CompanyData


@require_POST
def log_in(request: HttpRequest) -> HttpResponse:
    """Check the password, and begin a session."""
    user = AppUser.objects.filter(username=request.POST.get("uname", "")).first()
    if user is None or not pbkdf2_sha256.verify(request.POST.get("passwd", ""), user.password):
        return HttpResponse(status=401)
    request.session["user"] = user.username
    request.session["site"] = request.tenant.schema_name
    return JsonResponse({"msg": "login successful"})


@require_GET
def list_data(request: HttpRequest) -> HttpResponse:
    """Return the tenant's rows, 1,000 at most, to who is logged in there."""
    if "user" not in request.session:
        return HttpResponse(status=401)
    if request.session.get("site") != request.tenant.schema_name:
        return HttpResponse(status=400)
    return JsonResponse({"data": list(CompanyData.objects.order_by("id").values("id", "description")[:1000])})
