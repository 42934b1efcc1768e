"""How good the engine is: degraded references, planted lesions, real inputs, reports."""
