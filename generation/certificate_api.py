"""The API of certificates: to read. For administrators only, by the default permission."""

from drf_spectacular.utils import OpenApiParameter, extend_schema, extend_schema_view
from rest_framework import serializers
from rest_framework.exceptions import ValidationError
from rest_framework.viewsets import ReadOnlyModelViewSet

from generation.models import KIND_CHOICES, Certificate

_RELEASE = OpenApiParameter("release", str, description="Digest.")
_KIND = OpenApiParameter("kind", str, enum=[slug for slug, _ in KIND_CHOICES])


class CertificateSerializer(serializers.ModelSerializer):
    release = serializers.SlugRelatedField("digest", read_only=True)
    sentence = serializers.CharField(read_only=True, help_text="The promise; it holds where is_valid.")
    is_valid = serializers.BooleanField(read_only=True)

    class Meta:
        model = Certificate
        fields = [
            "id",
            "release",
            "kind",
            "status",
            "is_valid",
            "sentence",
            "alpha",
            "delta",
            "num_kinds",
            "version",
            "spent_delta",
            "num_images",
            "num_poor",
            "threshold",
            "served_share",
            "poor_bound",
            "refusal",
            "num_further",
            "hash",
            "pipeline",
            "manifest",
            "created_at",
            "revoked_at",
            "revocation",
        ]
        read_only_fields = fields


@extend_schema_view(list=extend_schema(parameters=[_RELEASE, _KIND]))
class CertificateViewSet(ReadOnlyModelViewSet):
    """Certificates and refusals, the newest first."""

    serializer_class = CertificateSerializer
    queryset = Certificate.objects.select_related("release")

    def filter_queryset(self, queryset):
        queryset = super().filter_queryset(queryset)
        if self.action != "list":
            return queryset
        if release := self.request.query_params.get("release"):
            queryset = queryset.filter(release__digest=release)
        if kind := self.request.query_params.get("kind"):
            if kind not in dict(KIND_CHOICES):
                raise ValidationError({"kind": [f"{kind!r} is no kind. Known: {', '.join(dict(KIND_CHOICES))}."]})
            queryset = queryset.filter(kind=kind)
        return queryset
