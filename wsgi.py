"""The WSGI entry point: `gunicorn wsgi:app`, `flask --app wsgi`, `waitress-serve wsgi:app`."""

from grokflask import create_app

app = create_app()
