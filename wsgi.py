"""The web service for production: `gunicorn wsgi:app`."""

from app import create_app, logs
from app.config import load
from app.errors import SettingError

settings = load()
if not settings.database_url:
    raise SettingError("DATABASE_URL", "is needed by the web service; `nurture up` sets it for the one it starts")

logs.start(settings.secret_key)
app = create_app(settings)
