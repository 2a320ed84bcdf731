"""What everything speaks: tables, costs, policies, traces. Knows no models."""
