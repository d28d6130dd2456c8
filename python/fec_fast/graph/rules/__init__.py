"""How operators move channel labels: one rule per ATen operator."""
