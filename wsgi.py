"""The web service for production: `gunicorn wsgi:app`."""

from app import create_app
from app.config import load

app = create_app(load())
