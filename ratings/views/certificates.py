"""Certificates: what is promised of served images, the calibration sets that are behind it, and its end. For
administrators."""

from typing import Any

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views import View

from generation.certificate import CalibrationError
from generation.certification import CertificationError, revoke, status
from generation.models import Certificate
from medsyn.roles import StaffMixin
from ratings.calibration import progress, progress_of
from ratings.certificate_page import certificate_page
from ratings.forms.certificates import CalibrationForm, MonitoringForm, RevocationForm
from ratings.models import CalibrationPlan
from ratings.services.calibration_plans import CertifyError, plan_calibration, plan_monitoring
from ratings.services.certification import certify, observe_ratings, obstacles
from ratings.services.errors import StudyError
from ratings.views.paging import paged

_PLANS_SHOWN = 20


class CertificateList(StaffMixin, View):
    """Certificates and refusals, and the calibration sets that are being rated."""

    def get(self, request: HttpRequest) -> HttpResponse:
        certificates = Certificate.objects.select_related("release")
        plans = list(CalibrationPlan.objects.select_related("study", "release", "certificate")[:_PLANS_SHOWN])
        found = progress_of(plans)
        rows = [(plan, found[plan.pk]) for plan in plans]
        context = {"page": paged(certificates, request), "plans": rows}
        return render(request, "ratings/certificates.html", context)


class CertificateDetail(StaffMixin, View):
    """One certificate, on one page of paper."""

    def get(self, request: HttpRequest, pk: int) -> HttpResponse:
        certificate = get_object_or_404(Certificate.objects.select_related("release", "created_by"), pk=pk)
        return self.show(request, certificate, RevocationForm())

    @staticmethod
    def show(request: HttpRequest, certificate: Certificate, form: RevocationForm, code: int = 200) -> HttpResponse:
        context = {
            "certificate": certificate,
            "standing": status(certificate.release, certificate.kind),
            "form": form,
            "plans": certificate.monitoring_plans.select_related("study").order_by("pk"),
            **certificate_page(certificate),
        }
        return render(request, "ratings/certificate.html", context, status=code)


class CertificateRevoke(StaffMixin, View):
    """Ends a certificate by hand."""

    def post(self, request: HttpRequest, pk: int) -> HttpResponse:
        certificate = get_object_or_404(Certificate, pk=pk)
        form = RevocationForm(request.POST)
        if not form.is_valid():
            return CertificateDetail.show(request, certificate, form, 422)
        try:
            revoke(certificate=certificate, reason=form.cleaned_data["reason"])
        except CertificationError as error:
            messages.error(request, str(error))
        else:
            messages.success(request, "The certificate is revoked: nothing is served under it any more.")
        return redirect(certificate)


class CertificateWatch(StaffMixin, View):
    """Draws served images for the drift monitor."""

    def get(self, request: HttpRequest, pk: int) -> HttpResponse:
        return self._show(request, get_object_or_404(Certificate, pk=pk), MonitoringForm())

    def post(self, request: HttpRequest, pk: int) -> HttpResponse:
        certificate = get_object_or_404(Certificate, pk=pk)
        form = MonitoringForm(request.POST)
        if form.is_valid():
            given: dict[str, Any] = form.service_arguments()
            try:
                plan = plan_monitoring(certificate=certificate, created_by=request.user, **given)
            except StudyError as error:
                form.add_error(None, str(error))
            else:
                messages.success(request, f"{plan.calibration_images.count()} served images are in {plan.study}.")
                return redirect(certificate)
        return self._show(request, certificate, form, 422)

    @staticmethod
    def _show(request: HttpRequest, certificate: Certificate, form: MonitoringForm, code: int = 200) -> HttpResponse:
        context = {"certificate": certificate, "form": form}
        return render(request, "ratings/certificate_watch.html", context, status=code)


class CertificateObserve(StaffMixin, View):
    """Shows the drift monitor what was rated since."""

    def post(self, request: HttpRequest, pk: int) -> HttpResponse:
        certificate = get_object_or_404(Certificate, pk=pk)
        try:
            added = observe_ratings(certificate=certificate)
        except CertificationError as error:
            messages.error(request, str(error))
        else:
            messages.success(request, f"{len(added)} more images were looked at.")
        return redirect(certificate)


class PlanCreate(StaffMixin, View):
    """Settles everything that a certificate rests on, before anybody rates."""

    def get(self, request: HttpRequest) -> HttpResponse:
        return render(request, "ratings/calibration_new.html", {"form": CalibrationForm()})

    def post(self, request: HttpRequest) -> HttpResponse:
        form = CalibrationForm(request.POST)
        if form.is_valid():
            try:
                plan = plan_calibration(created_by=request.user, **form.service_arguments())
            except (StudyError, CalibrationError) as error:
                form.add_error(None, str(error))
            else:
                messages.success(request, f"{plan.study} is made: {plan.calibration_images.count()} images.")
                return redirect("certificates:plan", plan.public_id)
        return render(request, "ratings/calibration_new.html", {"form": form}, status=422)


class PlanDetail(StaffMixin, View):
    """A calibration set: what was settled, how far it is rated, and what was tested on it."""

    def get(self, request: HttpRequest, plan_id) -> HttpResponse:
        plans = CalibrationPlan.objects.select_related("study", "release", "certificate")
        plan = get_object_or_404(plans, public_id=plan_id)
        context = {
            "plan": plan,
            "progress": progress(plan),
            "obstacles": obstacles(plan, plan.kinds),
            "tests": Certificate.objects.filter(calibration_set=plan.public_id).select_related("release"),
            "jobs": plan.jobs.order_by("pk"),
            "pipelines": list(plan.pipelines.items()),
        }
        return render(request, "ratings/calibration.html", context)


class PlanTest(StaffMixin, View):
    """Tests a calibration set."""

    def post(self, request: HttpRequest, plan_id) -> HttpResponse:
        plan = get_object_or_404(CalibrationPlan, public_id=plan_id)
        try:
            tested = certify(plan=plan, created_by=request.user)
        except CertifyError as error:
            messages.error(request, str(error))
            return redirect("certificates:plan", plan.public_id)
        issued = sum(each.status == Certificate.Status.ISSUED for each in tested)
        messages.success(request, f"{issued} certified, {len(tested) - issued} refused.")
        return redirect(tested[0] if len(tested) == 1 else "certificates:certificates")
