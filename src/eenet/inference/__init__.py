"""Where models and policies meet: record, measure, run for real, time it, ship it."""
