"""`wsgi`, after `be_patient`."""

from support.patient import be_patient

be_patient()

from wsgi import app  # noqa: E402 - the stores are opened with it

__all__ = ["app"]
