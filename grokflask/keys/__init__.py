"""The gateway's own keys: who may call, and what each key may do."""
