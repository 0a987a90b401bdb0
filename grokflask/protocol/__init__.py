"""Values and rules of the wire: routes, events, usage and errors of each API. No IO."""
