"""/docs and /openapi.json: the API reference, made from the tables that the gateway runs on."""
