"""gunicorn's worker and response, as grokflask needs them. Loaded by gunicorn.conf.py, in the master too."""
