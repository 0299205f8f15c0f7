"""What is said when a rating is declared void, or counts again."""

from django import forms


class ReasonForm(forms.Form):
    """Why; it stays in the rating's history."""

    reason = forms.CharField(
        label="Why",
        max_length=500,
        widget=forms.Textarea(attrs={"rows": 2}),
        error_messages={"required": "Say why: the reason stays in the rating's history."},
    )
